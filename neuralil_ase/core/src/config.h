// Descriptions of models, read from the header of a model file and checked; model/config.py is the reference.

#pragma once

#include <string>
#include <vector>

#include "json.h"

namespace neuralil {

struct Config {
  std::vector<std::string> elements;
  std::vector<std::int32_t> atomic_numbers;
  std::int64_t n_max = 4, radial_scaling = 0;
  double r_cut = 3.5;
  bool cross_terms = false;

  std::string kind = "core", activation = "swish";
  std::vector<std::int64_t> widths = {64, 32, 16, 16, 16}, head_widths;
  std::int64_t embed_d = 2, shared_layers = 0;
  bool linear = false;

  std::int64_t n_members = 1;
  std::string pair_term = "none";
  std::vector<double> zbl_radii;

  std::int64_t n_elements() const { return std::int64_t(elements.size()); }
  std::int64_t n_features() const;
};

// Throws BadFile where the description is not valid, and Unsupported where it has no compiled code.
Config read_config(const Json& header);

}  // namespace neuralil

// From spreads to error bars of forces; calibration.py is the reference.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json.h"

namespace neuralil {

struct Calibration {
  bool is_there = false, uses_aleatoric = false, has_spread_alone = false, has_exponent = false;
  // By element: NaN where the calibration did not see it.
  std::vector<double> scale, floor, scale_of_spread, floor_of_spread, unusual, exponent;

  double force_error_bar(std::int32_t type, double spread, const double* aleatoric) const;
  double force_error_bar_of_spread(std::int32_t type, double spread) const;
};

// Throws BadFile where there is a calibration that cannot be read.
Calibration read_calibration(const Json& header, const std::vector<std::string>& elements);

}  // namespace neuralil

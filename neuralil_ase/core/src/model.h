// A potential in one precision: its numbers, and the view of them that the code of an instruction set gets.

#pragma once

#include <string>
#include <vector>

#include "config.h"
#include "model_file.h"
#include "tape.h"
#include "views.h"

namespace neuralil {

template <class T>
class Model {
 public:
  // Throws BadFile where arrays do not fit the description, and Unsupported.
  Model(const ModelFile& file, const Config& config, const std::vector<double>& reference);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const View<T>& view() const { return view_; }

 private:
  void read_network(const ModelFile& file, const Config& config);
  void read_pair_term(const ModelFile& file, const Config& config);
  void read_zbl(const Config& config);
  void read_morse(const ModelFile& file, const Config& config, bool is_repulsive);

  Tape tape_;
  std::vector<T> series_, numbers_, reach_;
  std::vector<Parameter<T>> parameters_;
  std::vector<ZblPair<T>> zbl_;
  std::vector<MorsePair<T>> morse_;
  std::vector<MorseSwitch<T>> switches_;
  std::vector<double> reference_;
  View<T> view_{};
};

// The energy of every element. Throws BadFile.
std::vector<double> read_reference(const ModelFile& file, const Config& config);

// Names of all arrays that belong to a description, with their shapes.
std::map<std::string, std::vector<std::int64_t>> expected_arrays(const Config& config, const Tape& tape);

}  // namespace neuralil

// Networks as lists of operations on columns, one number per atom each; written from a description, then checked.

#pragma once

#include <string>
#include <vector>

#include "config.h"
#include "views.h"

namespace neuralil {

struct Tape {
  // A parameter by its slash-separated name in the model file, with the shape of one member's share.
  struct Entry {
    std::string name;
    std::vector<std::int64_t> shape;
    bool is_shared;

    std::int64_t size() const;
  };

  std::vector<Operation> operations;  // in the order of the forward pass
  std::vector<Entry> parameters;      // in the order of their numbers
  std::vector<std::int64_t> outputs;  // columns; the energy's first
  std::int64_t n_features = 0, n_elements = 0;
  std::int64_t n_columns = 0;  // the features stand in the first ones
  std::int64_t n_shared = 0, n_shared_columns = 0, n_backward = 0;
};

Tape write_tape(const Config& config);

// Throws std::logic_error unless every operation reads and writes inside its columns and parameters: code that runs
// the tape does not look again.
void check_tape(const Tape& tape);

}  // namespace neuralil

// The code of the best instruction set that the processor has.

#pragma once

#include "views.h"

namespace neuralil {

struct InstructionSet {
  const char* name;
  const Instance<float>* of_float;
  const Instance<double>* of_double;
};

const InstructionSet& instruction_set();

template <class T>
const Instance<T>& instance();

}  // namespace neuralil

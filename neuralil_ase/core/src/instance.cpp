// The code of one instruction set in one precision: compiled several times, with NEURALIL_ISA the name of the set (v1,
// v3 or v4: levels of x86-64; generic elsewhere) and NEURALIL_REAL the precision.

#include "evaluate.h"

namespace neuralil::NEURALIL_ISA {

#define NEURALIL_JOIN(a, b) a##b
#define NEURALIL_NAME(real) NEURALIL_JOIN(instance_, real)

template <class T, int... Order>
constexpr Instance<T> instance_of(std::integer_sequence<int, Order...>) {
  return {&width_of<T>, {&run<T, Order + 1>...}};
}

extern const Instance<NEURALIL_REAL> NEURALIL_NAME(NEURALIL_REAL);
constexpr Instance<NEURALIL_REAL> NEURALIL_NAME(NEURALIL_REAL) =
    instance_of<NEURALIL_REAL>(std::make_integer_sequence<int, kMaxOrder>{});

}  // namespace neuralil::NEURALIL_ISA

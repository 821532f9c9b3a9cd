#include "dispatch.h"

#define NEURALIL_DECLARE(isa)                    \
  namespace neuralil::isa {                      \
  extern const Instance<float> instance_float;   \
  extern const Instance<double> instance_double; \
  }

#if defined(NEURALIL_X86_LEVELS)
NEURALIL_DECLARE(v1)
NEURALIL_DECLARE(v3)
NEURALIL_DECLARE(v4)
#else
NEURALIL_DECLARE(generic)
#endif

namespace neuralil {
namespace {

InstructionSet choose() {
#if defined(NEURALIL_X86_LEVELS)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return {"x86-64-v4", &v4::instance_float, &v4::instance_double};
  if (__builtin_cpu_supports("x86-64-v3")) return {"x86-64-v3", &v3::instance_float, &v3::instance_double};
  return {"x86-64", &v1::instance_float, &v1::instance_double};
#else
  return {"generic", &generic::instance_float, &generic::instance_double};
#endif
}

}  // namespace

const InstructionSet& instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

template <>
const Instance<float>& instance<float>() {
  return *instruction_set().of_float;
}

template <>
const Instance<double>& instance<double>() {
  return *instruction_set().of_double;
}

}  // namespace neuralil

#include <new>

#include "views.h"

namespace neuralil {

constexpr std::align_val_t kAlignment{64};

void* allocate(std::size_t bytes) { return ::operator new(bytes, kAlignment); }

void release(void* memory) noexcept { ::operator delete(memory, kAlignment); }

}  // namespace neuralil

// Threads of the library's own, for hosts that lend none.

#pragma once

namespace neuralil {

// Number of processors that this process may use.
int usable_processors();

// Calls task(data, k) for k = 0 ... count - 1, on this thread and on those of a pool that come in time; returns when
// all calls have. Throws std::bad_alloc.
void run_on_pool(void* context, void (*task)(void* data, int k), void* data, int count);

}  // namespace neuralil

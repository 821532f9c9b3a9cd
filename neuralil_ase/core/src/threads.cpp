#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace neuralil {
namespace {

// One call of run_on_pool: calls of the task that are left, and that are done.
struct Work {
  void (*task)(void* data, int k);
  void* data;
  int count;
  std::atomic<int> next{0}, done{0};

  void help() {
    for (int k; (k = next.fetch_add(1)) < count; done.fetch_add(1)) task(data, k);
  }
};

// Threads that wait for work, as many as were ever needed at once. It is never destroyed: threads of the host may be
// using it until the process ends.
class Pool {
 public:
  void offer(const std::shared_ptr<Work>& work, int helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (; n_threads_ < helpers; ++n_threads_) {
        try {
          std::thread([this] { serve(); }).detach();
        } catch (const std::exception&) {
          break;  // no more threads, or no memory: those there are, or the caller alone, do the work
        }
      }
      for (int k = 0; k < helpers; ++k) try {
          waiting_.push_back(work);
        } catch (const std::bad_alloc&) {
          break;  // fewer helpers
        }
    }
    came_.notify_all();
  }

 private:
  void serve() {
    while (true) {
      std::shared_ptr<Work> work;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        came_.wait(lock, [this] { return !waiting_.empty(); });
        work = std::move(waiting_.front());
        waiting_.pop_front();
      }
      work->help();
    }
  }

  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<std::shared_ptr<Work>> waiting_;
  int n_threads_ = 0;
};

std::mutex pool_mutex;
Pool* the_pool = nullptr;

// A forked child has none of the threads: it gets a pool of its own.
void keep_through_forks() {
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork([] { pool_mutex.lock(); }, [] { pool_mutex.unlock(); },
                 [] {
                   the_pool = nullptr;
                   pool_mutex.unlock();
                 });
#endif
}

Pool& pool() {
  static const bool is_registered = (keep_through_forks(), true);
  static_cast<void>(is_registered);
  const std::lock_guard<std::mutex> lock(pool_mutex);
  if (!the_pool) the_pool = new Pool;
  return *the_pool;
}

}  // namespace

int usable_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
  return std::max(int(std::thread::hardware_concurrency()), 1);
}

void run_on_pool(void*, void (*task)(void* data, int k), void* data, int count) {
  const auto work = std::make_shared<Work>();
  work->task = task, work->data = data, work->count = count;
  if (count > 1) pool().offer(work, std::min(count, usable_processors()) - 1);
  work->help();
  while (work->done.load() < count) std::this_thread::yield();
}

}  // namespace neuralil

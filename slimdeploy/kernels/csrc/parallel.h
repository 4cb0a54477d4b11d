// Work shared out to threads, and memory for what runs at the same time.

#ifndef SLIMDEPLOY_PARALLEL_H
#define SLIMDEPLOY_PARALLEL_H

#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "slimdeploy_kernels.h"
#include "threads.h"

namespace slimdeploy {

struct Free {
    void operator()(void *p) const { free(p); }
};
using Memory = std::unique_ptr<void, Free>;

inline Memory allocate(size_t bytes) {
    void *memory = nullptr;
    if (posix_memalign(&memory, 64, bytes)) throw std::bad_alloc();
    return Memory(memory);
}

// Memory for the tasks that run at the same time: a piece for each thread, of which every task borrows one.
class Scratch {
   public:
    Scratch(size_t pieces, size_t bytes) {
        for (size_t i = 0; i < pieces; i++) free_.push_back(allocate(bytes));
    }

    // Calls fn with a piece that nobody else has. Waits for one where a pool that was brought along has more threads.
    template <class Function>
    void lend(Function fn) {
        std::unique_lock<std::mutex> lock(mutex_);
        returned_.wait(lock, [this] { return !free_.empty(); });
        Memory piece = std::move(free_.back());
        free_.pop_back();
        lock.unlock();
        fn(piece.get());
        lock.lock();
        free_.push_back(std::move(piece));
        returned_.notify_one();
    }

   private:
    std::mutex mutex_;
    std::condition_variable returned_;
    std::vector<Memory> free_;
};

// Where the i-th of `parts` equal parts begins.
inline size_t part(size_t total, size_t i, size_t parts) { return total * i / parts; }

// What a caller brings along to work with. count: threads, the caller's among them.
struct Workers {
    size_t count;
    slimdeploy_parallel_for parallel_for;
    void *pool;

    // On at most `threads` threads. A pool that is brought along takes as many as there are tasks.
    template <class Function>
    void share_out(size_t threads, size_t tasks, Function fn) const {
        const auto task = [](void *argument, size_t i) { (*static_cast<Function *>(argument))(i); };
        if (tasks <= 1) {
            if (tasks) fn(0);
        } else if (parallel_for) {
            parallel_for(pool, tasks, task, &fn);
        } else {
            run_on_own_threads(threads, tasks, task, &fn);
        }
    }
};

}  // namespace slimdeploy

#endif

#include "threads.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>

namespace slimdeploy {
namespace {

class Pool {
   public:
    void run(size_t threads, size_t tasks, void (*task)(void *, size_t), void *argument) {
        std::lock_guard<std::mutex> one_region(region_);
        while (started_ + 1 < threads) {
            std::thread([this, index = started_] { work(index); }).detach();
            started_++;
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            task_ = task;
            argument_ = argument;
            tasks_ = tasks;
            next_ = 0;
            helpers_ = running_ = threads - 1;
            generation_++;
        }
        wake_.notify_all();
        work_through();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
    }

   private:
    void work_through() {
        for (size_t i; (i = next_.fetch_add(1)) < tasks_;) task_(argument_, i);
    }

    void work(size_t index) {
        size_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return generation_ != seen; });
            seen = generation_;
            if (index >= helpers_) continue;
            lock.unlock();
            work_through();
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex region_, mutex_;
    std::condition_variable wake_, done_;
    std::atomic<size_t> next_{0};
    void (*task_)(void *, size_t) = nullptr;
    void *argument_ = nullptr;
    size_t tasks_ = 0, helpers_ = 0, running_ = 0, generation_ = 0, started_ = 0;
};

// Never destroyed: its threads outlive static destructors. A forked child has none of them and starts over.
Pool *pool = nullptr;

void renew() { pool = new Pool; }

}  // namespace

void run_on_own_threads(size_t threads, size_t tasks, void (*task)(void *, size_t), void *argument) {
    if (threads <= 1 || tasks <= 1) {
        for (size_t i = 0; i < tasks; i++) task(argument, i);
        return;
    }
    // Not std::call_once, which would need the glibc of the building machine.
    static const bool ready = [] {
        renew();
        return pthread_atfork(nullptr, nullptr, renew) == 0;
    }();
    static_cast<void>(ready);
    pool->run(threads < tasks ? threads : tasks, tasks, task, argument);
}

}  // namespace slimdeploy

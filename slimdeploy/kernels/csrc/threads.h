// The library's own threads, for callers that bring none.

#ifndef SLIMDEPLOY_THREADS_H
#define SLIMDEPLOY_THREADS_H

#include <cstddef>

namespace slimdeploy {

// Runs task(argument, i) for every i in [0, tasks) on up to `threads` threads, this one among them. Waiting threads
// sleep: threads that spin collapse on a machine that is shared. One region runs at a time; others wait for it.
void run_on_own_threads(size_t threads, size_t tasks, void (*task)(void *argument, size_t i), void *argument);

}  // namespace slimdeploy

#endif

// What the headers of newer compilers call and older libstdc++ does not have, so that a library built on a new system
// runs on an old one: our wheels ask for no newer a system than onnxruntime's do.

#include <pthread.h>

#include <condition_variable>
#include <mutex>
#include <new>

#if defined(_GLIBCXX_RELEASE) && _GLIBCXX_RELEASE >= 12
namespace std {

void __throw_bad_array_new_length() { throw bad_array_new_length(); }  // since gcc 11

void condition_variable::wait(unique_lock<mutex> &lock) {  // since gcc 12, which took noexcept away
    pthread_cond_wait(native_handle(), lock.mutex()->native_handle());
}

}  // namespace std
#endif

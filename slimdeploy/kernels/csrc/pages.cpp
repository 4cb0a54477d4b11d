#include "pages.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>

namespace slimdeploy {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;

size_t page_size() {
    static const auto size = size_t(sysconf(_SC_PAGESIZE));
    return size;
}

uintptr_t round_up(uintptr_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

#if defined(__linux__)
// What the system says of each page; see proc_pid_pagemap(5). A page that was written to is its process's own.
bool is_unchanged_file_page(uint64_t entry) {
    const bool present = entry >> 63 & 1, of_file = entry >> 61 & 1;
    return present && of_file;
}

// Calls fn(first, count) for every run of pages that are in memory just as their file has them.
template <class Function>
void for_unchanged_pages(int pagemap, uintptr_t first, uintptr_t last, Function fn) {
    uint64_t entries[512];
    while (first < last) {
        const size_t most = std::min<size_t>(last - first, sizeof entries / sizeof entries[0]);
        const ssize_t bytes = pread(pagemap, entries, most * sizeof entries[0], off_t(first * sizeof entries[0]));
        if (bytes < ssize_t(sizeof entries[0])) return;
        const size_t count = size_t(bytes) / sizeof entries[0];
        for (size_t i = 0, run = 0; i <= count; i++) {
            if (i < count && is_unchanged_file_page(entries[i])) {
                run++;
            } else if (run) {
                fn(first + i - run, run);
                run = 0;
            }
        }
        first += count;
    }
}
#endif

}  // namespace

Buffer::Buffer(size_t capacity) : mapped_(capacity + kHugePage) {
    mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    data_ = reinterpret_cast<uint8_t *>(round_up(reinterpret_cast<uintptr_t>(mapping_), kHugePage));
#if defined(MADV_HUGEPAGE)
    madvise(data_, capacity, MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() { munmap(mapping_, mapped_); }

#if defined(__linux__)
void give_back_file_pages(const void *begin, size_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(begin);
    const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0) return;  // not told; the pages stay
    for_unchanged_pages(pagemap, round_up(address, page_size()) / page_size(), (address + bytes) / page_size(),
                        [](uintptr_t first, size_t count) {
                            // Advice: where it is not taken, the pages merely stay.
                            (void)madvise(reinterpret_cast<void *>(first * page_size()), count * page_size(),
                                          MADV_DONTNEED);
                        });
    close(pagemap);
}
#else
void give_back_file_pages(const void *, size_t) {}
#endif

}  // namespace slimdeploy

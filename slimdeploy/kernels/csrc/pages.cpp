#include "pages.h"

#include <cinttypes>
#include <cstdint>
#include <cstdio>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace slimdeploy {

#if defined(__linux__)
namespace {

// Whether one mapping of a file holds all of [begin, end); see proc_pid_maps(5).
bool mapped_from_file(uintptr_t begin, uintptr_t end) {
    FILE *maps = fopen("/proc/self/maps", "re");
    if (!maps) return false;
    char line[512];
    bool found = false, at_start = true;
    while (!found && fgets(line, sizeof line, maps)) {
        uintptr_t from = 0, to = 0;
        unsigned long inode = 0;
        // A long path comes in several pieces; only the first is a line's start.
        found = at_start && sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %*x %*s %lu", &from, &to, &inode) == 3 &&
                inode != 0 && from <= begin && end <= to;
        at_start = false;
        for (const char *c = line; *c; c++) at_start = *c == '\n';
    }
    fclose(maps);
    return found;
}

}  // namespace

void give_back_file_pages(const void *begin, size_t bytes) {
    const auto page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t first = (uintptr_t(begin) + page - 1) / page * page;
    const uintptr_t last = (uintptr_t(begin) + bytes) / page * page;
    if (first < last && mapped_from_file(first, last)) {
        // Advice: where it is not taken, the pages merely stay.
        (void)madvise(reinterpret_cast<void *>(first), last - first, MADV_DONTNEED);
    }
}
#else
void give_back_file_pages(const void *, size_t) {}
#endif

}  // namespace slimdeploy

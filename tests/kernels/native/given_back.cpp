#include "given_back.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>

#include "pages.h"

namespace {

constexpr size_t kPages = 64, kWritten = 9;

}  // namespace

int check_given_back_pages(const char *file) {
    const auto page = size_t(sysconf(_SC_PAGESIZE)), bytes = kPages * page;
    const int opened = open(file, O_RDONLY);
    void *mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, opened, 0);
    if (opened < 0 || mapping == MAP_FAILED) {
        printf("%s cannot be mapped\n", file);
        return 1;
    }
    volatile uint8_t *data = static_cast<uint8_t *>(mapping);
    for (size_t i = 0; i < kPages; i++) (void)data[i * page];
    data[kWritten * page + 5] = 77;
    // Not from the border of a page: the first and the last one stay.
    slimdeploy::give_back_file_pages(static_cast<uint8_t *>(mapping) + 1, bytes - 2);

    const int pagemap = open("/proc/self/pagemap", O_RDONLY);
    if (pagemap < 0) {
        printf("the system does not tell of pages\n");
        munmap(mapping, bytes);
        close(opened);
        return 0;
    }
    size_t present = 0;
    for (size_t i = 0; i < kPages; i++) {
        uint64_t entry = 0;
        const auto place = off_t((reinterpret_cast<uintptr_t>(mapping) / page + i) * sizeof entry);
        if (pread(pagemap, &entry, sizeof entry, place) == sizeof entry) present += entry >> 63;
    }
    int failures = present != 3;
    if (failures) printf("%zu pages stayed in memory, not the first, the last and the one written to\n", present);
    for (size_t i = 0; i < kPages; i++) {
        if (data[i * page + 5] == (i == kWritten ? 77 : 1)) continue;
        printf("page %zu reads %d\n", i, data[i * page + 5]);
        failures++;
    }
    close(pagemap);
    close(opened);
    munmap(mapping, bytes);
    printf("pages given back: %d failures\n", failures);
    return failures != 0;
}

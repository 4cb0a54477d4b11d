/* Reads memory as fast as plain code can: the roof under every multiplication that has to fetch its weights.
   Compiled by roof.py for the machine that it runs on. */

#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20, LINE = 64, LARGEST_THREADS = 256 };

typedef struct {
    const uint64_t *start, *end;
    size_t ahead;
    uint64_t sum;
} part;

/* Memory in huge pages where the system gives them, written once so that it is there. */
uint64_t *buffer_create(size_t bytes) {
    uint64_t *buffer = aligned_alloc(HUGE_PAGE, bytes);
    if (!buffer) return NULL;
    madvise(buffer, bytes, MADV_HUGEPAGE);
    for (size_t i = 0; i < bytes / sizeof *buffer; i++) buffer[i] = i * 0x9E3779B97F4A7C15u;
    return buffer;
}

static void *read_part(void *argument) {
    part *mine = argument;
    uint64_t sums[32] = {0};
    for (const uint64_t *at = mine->start; at < mine->end; at += 32) {
        if (mine->ahead)
            for (size_t line = 0; line < 32 * sizeof *at; line += LINE)
                __builtin_prefetch((const char *)at + mine->ahead + line);
        for (int i = 0; i < 32; i++) sums[i] ^= at[i];
    }
    for (int i = 0; i < 32; i++) mine->sum ^= sums[i];
    return NULL;
}

/* bytes: a multiple of 256 per thread. ahead: distance of the prefetch in bytes, 0 for none.
   The result only keeps the compiler from leaving the reads out. */
uint64_t buffer_read(const uint64_t *buffer, size_t bytes, size_t ahead, int threads) {
    part parts[LARGEST_THREADS];
    pthread_t running[LARGEST_THREADS];
    if (threads > LARGEST_THREADS) threads = LARGEST_THREADS;
    size_t count = bytes / sizeof *buffer / 32 / (size_t)threads * 32;
    for (int i = 0; i < threads; i++)
        parts[i] = (part){buffer + (size_t)i * count, buffer + (size_t)(i + 1) * count, ahead, 0};
    int started = 1;
    while (started < threads && !pthread_create(&running[started], NULL, read_part, &parts[started])) started++;
    read_part(&parts[0]);
    for (int i = started; i < threads; i++) read_part(&parts[i]);
    uint64_t sum = parts[0].sum;
    for (int i = 1; i < started; i++) pthread_join(running[i], NULL);
    for (int i = 1; i < threads; i++) sum ^= parts[i].sum;
    return sum;
}

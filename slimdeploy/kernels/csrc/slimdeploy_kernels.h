/* The C interface of libslimdeploy_kernels: y = x W^T for packed weights (docs/packed-format.md) on the CPU.

   A `slimdeploy_weight` is a packed weight in the layout of one instruction set's kernels, made once and read by any
   number of threads. Functions that can fail return 0, or 1 with a sentence in `error`. */

#ifndef SLIMDEPLOY_KERNELS_H
#define SLIMDEPLOY_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define SLIMDEPLOY_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum slimdeploy_value_type { SLIMDEPLOY_BF16 = 0, SLIMDEPLOY_FP16 = 1, SLIMDEPLOY_INT8 = 2, SLIMDEPLOY_INT4 = 3 };

/* sparse: the mask is read with every product. dense: zeros are stored too, with no mask. automatic: whichever was
   faster on this machine when it was measured (slimdeploy_layout_choice). */
enum slimdeploy_layout { SLIMDEPLOY_AUTOMATIC = 0, SLIMDEPLOY_SPARSE = 1, SLIMDEPLOY_DENSE = 2 };

/* A packed weight as it lies in a file; nothing of it is trusted. Counts are in elements of each array.

   kept_per_block : block is the N:M pattern; 0:0 unstructured. A dense weight has no mask (NULL, 0).
   group: columns per scale; 0: one scale per row (int8) or none (bf16, fp16). */
typedef struct slimdeploy_packed {
    int64_t rows, columns;
    int32_t value_type, group, kept_per_block, block;
    const uint8_t *mask;
    uint64_t mask_count;
    const void *values; /* uint16 (bf16, fp16), int8, or two int4 in a uint8; counted in kept weights */
    uint64_t value_count;
    const uint16_t *scales;
    uint64_t scale_count;
} slimdeploy_packed;

typedef struct slimdeploy_weight slimdeploy_weight;

typedef struct slimdeploy_weight_info {
    int64_t rows, columns, kept;
    uint64_t bytes; /* of the kernel layout */
    int32_t value_type, layout;
    const char *instruction_set;
} slimdeploy_weight_info;

/* Runs task(argument, i) once for every i in [0, tasks), on any threads; returns when all are done. */
typedef void (*slimdeploy_parallel_for)(void *pool, size_t tasks, void (*task)(void *argument, size_t i),
                                        void *argument);

/* Changes with any function, structure or number here; whoever loads the library compares it with what it was made for.
 */
SLIMDEPLOY_API int32_t slimdeploy_interface_version(void);

/* instruction_set: a name from slimdeploy_instruction_set, or NULL for the fastest that this CPU supports. Checks every
   count, mask bit and scale before anything is read through them. */
SLIMDEPLOY_API int slimdeploy_weight_create(const slimdeploy_packed *packed, const char *instruction_set,
                                            int32_t layout, slimdeploy_weight **weight, char *error, size_t error_size);
SLIMDEPLOY_API void slimdeploy_weight_free(slimdeploy_weight *weight);
SLIMDEPLOY_API void slimdeploy_weight_describe(const slimdeploy_weight *weight, slimdeploy_weight_info *info);

/* x: (count, columns), y: (count, rows), both row-major float32. threads: how many may work at once, this one among
   them. parallel_for: runs the tasks, which are up to four a thread, on as many threads as it has; NULL takes the
   library's own. */
SLIMDEPLOY_API int slimdeploy_linear(const slimdeploy_weight *weight, const float *x, int64_t count, float *y,
                                     int32_t threads, slimdeploy_parallel_for parallel_for, void *pool, char *error,
                                     size_t error_size);

/* Causal attention over a cache of keys and values. A sequence's last token is number last[b], so it has last[b] + 1 of
   which the last `tokens`, or all if they are fewer, are new; queries, keys and values behind these are padding, and
   what comes of them is zero. All that is new is written into the cache before anything is read: sequences that share a
   row of it, each ending where the next begins, are pieces of one. Heads share keys in groups, in order. Arrays are
   row-major. */
typedef struct slimdeploy_attention {
    int64_t batch, tokens, cache_rows, capacity, heads, kv_heads, head_size;
    float scale;                  /* of the products of queries and keys */
    const float *query;           /* (batch, tokens, heads, head_size) */
    const float *key, *value;     /* (batch, tokens, kv_heads, head_size) */
    float *past_key, *past_value; /* (cache_rows, kv_heads, capacity, head_size); what is new is written into them */
    const int64_t *rows;          /* (batch): of the cache; NULL: sequence b has row b */
    const int32_t *last;          /* (batch) */
    float *output;                /* as the query */
} slimdeploy_attention;

/* threads, parallel_for: as for slimdeploy_linear, but for the number of tasks, which grows with that of tokens. */
SLIMDEPLOY_API int slimdeploy_attend(const slimdeploy_attention *attention, const char *instruction_set,
                                     int32_t threads, slimdeploy_parallel_for parallel_for, void *pool, char *error,
                                     size_t error_size);

/* Name of the index-th instruction set of this build, fastest first; NULL past the last. supported: on this CPU. */
SLIMDEPLOY_API const char *slimdeploy_instruction_set(int32_t index, int32_t *supported);

/* The layout that `automatic` takes for large weights of this kind and share of kept weights (0 to 1, taken to the next
   quarter), measured on first use: nanoseconds per 1000 weights of the sparse and of
   the dense kernel on one thread. */
SLIMDEPLOY_API int slimdeploy_layout_choice(const char *instruction_set, int32_t value_type, int32_t group, double kept,
                                            int32_t *layout, double *sparse_ns, double *dense_ns, char *error,
                                            size_t error_size);

#ifdef __cplusplus
}
#endif

#endif

// The layout in which kernels read a weight, and the table of kernels that every instruction set fills.
//
// A row is a sequence of blocks of 256 columns, each read front to back:
//
//     scales   uint16[2] or [8] (bf16)   one per 128 or 32 columns; none for bf16 and fp16 values
//     masks    uint64[4]                 bit i of masks[c]: column 64 c + i is kept; absent in dense layouts
//     values   int8, 16 bits or nibbles  what is kept, in order; dense layouts keep everything
//
// Nibbles: the first half of a block (columns 0 to 127) lies in the low nibbles, the second half in the high nibbles,
// so that one load serves both; the shorter half is padded. A code q is decoded as 16 q, which needs no sign extension,
// and 1/16 is folded into the scale. Where every 64 columns keep the same number of weights (N:M with M | 64), at most
// half of them, each 64 columns take the same room, padded in a remainder block, and addresses follow without counting
// bits.
// Columns are padded to whole blocks; padding is never kept.
//
// This header is compiled once for every instruction set. Nothing in it, or in what it includes, may be an inline
// function or template that the linker could share: a copy with AVX-512 instructions might be the one that is kept.

#ifndef SLIMDEPLOY_LAYOUT_H
#define SLIMDEPLOY_LAYOUT_H

#include <cstddef>
#include <cstdint>

namespace slimdeploy {

constexpr int kBlockColumns = 256;
constexpr int kChunkColumns = 64;
constexpr int kChunks = kBlockColumns / kChunkColumns;
constexpr int kMaskBytes = kChunks * 8;
// Kernels load whole vectors; this much may be read behind the last value.
constexpr size_t kReadAhead = 256;
// Up to this many rows of activations the product reads the weight once, decoding into registers; beyond it,
// weights are decoded into panels that stay in the cache.
constexpr int kMaxFusedRows = 8;
// Columns that a panel covers at a time, so that it stays in the second-level cache.
constexpr int kSlabBlocks = 16;

enum ValueKind { kInt8, kInt4Group128, kInt4Group32, kBf16, kFp16, kValueKinds };
enum Structure { kUnstructured, kFixedCount, kDense, kStructures };

struct Matrix {
    size_t rows, columns, blocks;
    int kept_per_chunk;  // kFixedCount: values that every 64 columns take
    const uint8_t *data;
    const uint64_t *row_offset;  // (rows + 1) in bytes
    // Activations of integer kinds may be stored with an offset (KernelTable). Where the weights of a row have one sign
    // its share is many times the product, so sums of integers start at minus the offset times the row's mean, and what
    // that leaves is subtracted at the end.
    const int32_t *starts;     // (rows), for 4 columns
    const float *corrections;  // (rows)
};

// Activations as a kernel reads them, rounded and padded to whole blocks, with zero rows up to what a tile reads.
struct Activations {
    const void *values;
    const float *scales;  // (count); integer kinds only
    size_t count;         // rows that count
    size_t stride;        // bytes from row to row
};

// y[m * rows + n] for every m < count and n in [begin, end).
using FusedKernel = void (*)(const Matrix &, const Activations &, float *y, size_t begin, size_t end);
// The same for panels [begin, end) of `panel_rows` weight rows; scratch: `panel_bytes`, 64-byte aligned.
using PanelKernel = void (*)(const Matrix &, const Activations &, float *y, size_t begin, size_t end, void *scratch);
// One row of activations: writes `blocks` whole blocks at `out`, returns the scale (1 for kinds without).
using RoundKernel = float (*)(const float *x, size_t columns, size_t blocks, void *out);

// Queries that attend together, over what they see of one head's keys and values: a query sees the first `keys`.
struct AttentionQuery {
    const float *data;
    float *output;
    size_t keys;
};
// keys, values: (count, size), of which no query sees more.
struct AttentionHead {
    const float *keys, *values;
    size_t count, size;
    float scale;
};
constexpr int kAttentionQueries = 4;  // that a tile holds
constexpr size_t kMaxAttentionQueries = 32;
// At most kMaxAttentionQueries of them; scratch: AttentionScratch::floats, 64-byte aligned.
using AttentionKernel = void (*)(const AttentionHead &, const AttentionQuery *, size_t count, float *scratch);

// By rows of activations. One row comes in two kinds, with two or four rows of the weight in flight: which is faster
// depends on a CPU's prefetchers, and is measured.
enum FusedSize { kOneByTwo, kOneByFour, kTwo, kFour, kEight, kFusedSizes };

struct KernelTable {
    const char *name;
    FusedKernel fused[kValueKinds][kStructures][kFusedSizes];
    PanelKernel panel[kValueKinds][kStructures];
    RoundKernel round[kValueKinds];
    AttentionKernel attention;
    int offset;                         // what `round` adds to activations of integer kinds
    int activation_bytes[kValueKinds];  // of one rounded activation
    size_t panel_rows;
    size_t tile_rows;  // activations are padded to a multiple of this many rows for panels
    size_t panel_bytes;
};

}  // namespace slimdeploy

#endif

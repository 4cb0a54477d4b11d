// The layout in which kernels read a weight, and the table of kernels that every instruction set fills.
//
// The rows of a weight lie together in sixteens, panels, each read front to back. A panel is a sequence of blocks of 16
// columns; scales stand before the first block of the columns that share them.
//
//     scales   uint16[16] (bf16)         one for each row, every 128 or 32 columns; none for bf16 and fp16 values
//     masks    uint64[4]                 bit i of masks[c]: weight i of chunk c is kept; absent in dense layouts
//     values   int8, 16 bits or nibbles  what is kept, in order; dense layouts keep everything
//
// A chunk is 4 columns of the 16 rows, in the order in which a vector holds them once it is decoded: every lane has 32
// bits of a row, a unit, of as many columns as activations in 32 bits. So with bytes weight i of a chunk is column i %
// 4 of row i / 4; with floats, row i % 16 of column i / 16. A product adds up one row of the weight in each lane, and
// nothing is transposed or added across lanes.
//
// Nibbles: the first half of a block (chunks 0 and 1) lies in the low nibbles, the second half in the high nibbles, so
// that one load serves both; the shorter half is padded. A code q is decoded as 16 q, which needs no sign extension,
// and 1/16 is folded into the scale. Columns are padded to a multiple of 128 and rows to one of 16; padding is never
// kept.
//
// This header is compiled once for every instruction set. Nothing in it, or in what it includes, may be an inline
// function or template that the linker could share: a copy with AVX-512 instructions might be the one that is kept.

#ifndef SLIMDEPLOY_LAYOUT_H
#define SLIMDEPLOY_LAYOUT_H

#include <cstddef>
#include <cstdint>

namespace slimdeploy {

constexpr int kPanelRows = 16;
constexpr int kPaddedColumns = 128;  // columns are padded to a multiple of
constexpr int kBlockColumns = 16;
constexpr int kChunkWeights = 64;
constexpr int kChunks = kBlockColumns * kPanelRows / kChunkWeights;
constexpr int kMaskBytes = kChunks * 8;
// Kernels load whole vectors; this much may be read behind the last value.
constexpr size_t kReadAhead = 256;
// Columns of a panel that are decoded into the second-level cache at a time.
constexpr int kSlabColumns = 4096;

enum ValueKind { kInt8, kInt4Group128, kInt4Group32, kBf16, kFp16, kValueKinds };
enum Structure { kSparse, kDense, kStructures };

struct Matrix {
    size_t rows, columns, padded_columns;
    const uint8_t *data;
    const uint64_t *panel_offset;  // (panels + 1) in bytes
    // Activations of integer kinds may be stored with an offset (KernelTable). Where the weights of a row have one sign
    // its share is many times the product, so sums of integers start at minus the offset times the row's mean, and what
    // that leaves is subtracted at the end. For every row, and for those that a kernel pads the last panels with.
    const int32_t *starts;  // of the columns that share a scale
    const float *corrections;
};

// Activations as a kernel reads them, rounded and padded to whole blocks, with zero rows up to what a tile reads.
struct Activations {
    const void *values;
    const float *scales;  // (count); integer kinds only
    size_t count;         // rows that count
    size_t stride;        // bytes from row to row
};

// y[m * rows + n] for every m < count and the rows n of panels [begin, end).
using FusedKernel = void (*)(const Matrix &, const Activations &, float *y, size_t begin, size_t end);
// The same; scratch: `scratch_bytes`, 64-byte aligned.
using CachedKernel = void (*)(const Matrix &, const Activations &, float *y, size_t begin, size_t end, void *scratch);
// One row of activations: writes `padded` of them at `out`, returns the scale (1 for kinds without).
using RoundKernel = float (*)(const float *x, size_t columns, size_t padded, void *out);

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
constexpr size_t kMaxAttentionQueries = 128;
// At most kMaxAttentionQueries of them; scratch: AttentionScratch::floats, 64-byte aligned.
using AttentionKernel = void (*)(const AttentionHead &, const AttentionQuery *, size_t count, float *scratch);

// Rows of activations that a fused kernel multiplies with weights that it holds in registers. An instruction set has
// those that its registers are enough for.
constexpr int kFusedRows[] = {1, 2, 4, 8, 12, 16};
constexpr int kFusedSizes = sizeof kFusedRows / sizeof kFusedRows[0];

struct KernelTable {
    const char *name;
    FusedKernel fused[kValueKinds][kStructures][kFusedSizes];
    CachedKernel cached[kValueKinds][kStructures];
    RoundKernel round[kValueKinds];
    AttentionKernel attention;
    int offset;                         // what `round` adds to activations of integer kinds
    int activation_bytes[kValueKinds];  // of one rounded activation
    int fused_sizes;                    // the first so many of kFusedRows are there
    size_t most_fused;     // up to so many rows of activations, fused kernels that go over a panel again are faster
    size_t cached_panels;  // panels that the others decode together, and tasks should not part
    size_t tile_rows;      // activations are padded to a multiple of this many rows for these
    size_t scratch_bytes;
};

}  // namespace slimdeploy

#endif

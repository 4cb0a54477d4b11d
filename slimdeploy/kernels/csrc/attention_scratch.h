// The memory that attention works in. See layout.h on unnamed namespaces.

#ifndef SLIMDEPLOY_ATTENTION_SCRATCH_H
#define SLIMDEPLOY_ATTENTION_SCRATCH_H

#include "layout.h"

namespace slimdeploy {
namespace {

// Of one call for `count` queries, in floats: where the parts begin and how wide their rows are.
struct AttentionScratch {
    static constexpr size_t kPadding = 64;     // of widths, no less than any instruction set's block of keys
    static constexpr size_t kRowPadding = 16;  // of the room for queries, for tiles of so many

    size_t count, rows, width, keys;  // queries, for vectors and for tiles; their size and keys; all padded
    size_t queries = 0, scores, sums, block, floats;

    AttentionScratch(size_t queries_of_call, size_t size, size_t keys_of_call)
        : count(padded(queries_of_call, kAttentionQueries)),
          rows(padded(queries_of_call, kRowPadding)),
          width(padded(size, kPadding)),
          keys(padded(keys_of_call, kPadding)),
          scores(rows * width),
          sums(scores + rows * keys),
          block(sums + rows * width),
          floats(block + width * kPadding) {}

   private:
    static size_t padded(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }
};

}  // namespace
}  // namespace slimdeploy

#endif

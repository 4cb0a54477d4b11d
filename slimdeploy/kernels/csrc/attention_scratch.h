// The memory that attention works in. See layout.h on unnamed namespaces.

#ifndef SLIMDEPLOY_ATTENTION_SCRATCH_H
#define SLIMDEPLOY_ATTENTION_SCRATCH_H

#include "layout.h"

namespace slimdeploy {
namespace {

// Of one call for `count` queries, in floats: where the parts begin and how wide their rows are.
struct AttentionScratch {
    static constexpr size_t kPadding = 64;  // of widths, no less than any instruction set's block of keys

    size_t count, width, keys;  // queries, their size and keys, padded
    size_t queries = 0, scores, sums, block, floats;

    AttentionScratch(size_t queries_of_call, size_t size, size_t keys_of_call)
        : count(padded(queries_of_call, kAttentionQueries)),
          width(padded(size, kPadding)),
          keys(padded(keys_of_call, kPadding)),
          scores(count * width),
          sums(scores + count * keys),
          block(sums + count * width),
          floats(block + width * kPadding) {}

   private:
    static size_t padded(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }
};

}  // namespace
}  // namespace slimdeploy

#endif

// slimdeploy_attend: new keys and values go into the cache, then queries that share keys are shared out.

#include <algorithm>
#include <cstring>
#include <vector>

#include "attention_scratch.h"
#include "parallel.h"
#include "weight.h"

namespace slimdeploy {
namespace {

void require_valid(const slimdeploy_attention &a) {
    const int64_t sizes[] = {a.batch, a.tokens, a.cache_rows, a.capacity, a.heads, a.kv_heads, a.head_size};
    for (const int64_t size : sizes) {
        if (size < 1 || size > INT32_MAX) throw InvalidInput("a size of attention is " + std::to_string(size));
    }
    if (a.heads % a.kv_heads) {
        throw InvalidInput(std::to_string(a.heads) + " heads cannot share those of " + std::to_string(a.kv_heads) +
                           " keys");
    }
    if (!a.query || !a.key || !a.value || !a.past_key || !a.past_value || !a.last || !a.output) {
        throw InvalidInput("an array of attention is missing");
    }
    for (int64_t b = 0; b < a.batch; b++) {
        const int64_t row = a.rows ? a.rows[b] : b;
        if (row < 0 || row >= a.cache_rows) {
            throw InvalidInput("a sequence is to have row " + std::to_string(row) + " of a cache with " +
                               std::to_string(a.cache_rows));
        }
        if (a.last[b] < 0 || a.last[b] >= a.capacity) {
            throw InvalidInput("a sequence's last token is number " + std::to_string(a.last[b]) +
                               ", and there is room for " + std::to_string(a.capacity));
        }
    }
}

// A sequence of the batch: its row of the cache, what was there before, and what is new. Tokens behind these are
// padding.
struct Sequence {
    size_t row, past, fresh;

    Sequence(const slimdeploy_attention &a, size_t b)
        : row(a.rows ? size_t(a.rows[b]) : b),
          past(size_t(std::max<int64_t>(a.last[b] + 1 - a.tokens, 0))),
          fresh(size_t(a.last[b]) + 1 - past) {}
};

void append(const slimdeploy_attention &a, size_t b, const float *fresh, float *cache) {
    const Sequence sequence(a, b);
    const size_t heads = size_t(a.kv_heads), size = size_t(a.head_size), capacity = size_t(a.capacity);
    for (size_t t = 0; t < sequence.fresh; t++) {
        for (size_t h = 0; h < heads; h++) {
            float *target = cache + ((sequence.row * heads + h) * capacity + sequence.past + t) * size;
            memcpy(target, fresh + ((b * size_t(a.tokens) + t) * heads + h) * size, size * sizeof(float));
        }
    }
}

// Tokens that follow each other in a row of the cache, whose queries attend together.
struct Piece {
    size_t place, row, keys, count;  // of the first: its place among the tokens of the batch, and what it sees
};

constexpr size_t kLeastAttentionQueries = 32;  // of a piece, where there are as many

// All new tokens, at most `most` in a piece: it may be of several sequences, where these are pieces of one.
std::vector<Piece> pieces_of(const slimdeploy_attention &a, size_t most) {
    std::vector<Piece> pieces;
    for (size_t b = 0; b < size_t(a.batch); b++) {
        const Sequence sequence(a, b);
        for (size_t t = 0; t < sequence.fresh; t++) {
            const size_t place = b * size_t(a.tokens) + t, keys = sequence.past + t + 1;
            Piece *before = pieces.empty() ? nullptr : &pieces.back();
            if (before && before->count < most && before->row == sequence.row &&
                before->place + before->count == place && before->keys + before->count == keys) {
                before->count++;
            } else {
                pieces.push_back({place, sequence.row, keys, 1});
            }
        }
    }
    return pieces;
}

// Of heads that share keys, as many attend together as keep all threads busy.
size_t heads_together(const slimdeploy_attention &a, size_t threads) {
    const size_t group = size_t(a.heads / a.kv_heads), all = size_t(a.batch * a.kv_heads * a.tokens);
    size_t heads = std::min(group, kMaxAttentionQueries);
    while (heads > 1 && all * divide_up(group, heads) < threads) heads = divide_up(heads, 2);
    return heads;
}

// Tokens of a piece, with so many heads each: keys are prepared once for all of them, and all threads have enough.
size_t tokens_together(const slimdeploy_attention &a, size_t threads, size_t heads) {
    const size_t queries = size_t(a.batch * a.tokens * a.heads) / (4 * threads);
    return std::max<size_t>(std::clamp(queries, kLeastAttentionQueries, kMaxAttentionQueries) / heads, 1);
}

// What comes of padding is zero.
void clear_padding(const slimdeploy_attention &a) {
    const size_t size = size_t(a.heads * a.head_size), tokens = size_t(a.tokens);
    for (size_t b = 0; b < size_t(a.batch); b++) {
        const size_t fresh = Sequence(a, b).fresh;
        std::fill_n(a.output + (b * tokens + fresh) * size, (tokens - fresh) * size, 0.0f);
    }
}

// Heads [first, first + heads) of those that share the keys of kv_head.
void attend_to(const slimdeploy_attention &a, const KernelTable &kernels, const Piece &piece, size_t kv_head,
               size_t first, size_t heads, float *scratch) {
    const size_t size = size_t(a.head_size), kv_heads = size_t(a.kv_heads), group = size_t(a.heads) / kv_heads;
    AttentionQuery queries[kMaxAttentionQueries];
    size_t count = 0;
    for (size_t t = 0; t < piece.count; t++) {
        for (size_t h = first; h < std::min(first + heads, group); h++) {
            const size_t place = ((piece.place + t) * size_t(a.heads) + kv_head * group + h) * size;
            queries[count++] = {a.query + place, a.output + place, piece.keys + t};
        }
    }
    const size_t cache = (piece.row * kv_heads + kv_head) * size_t(a.capacity) * size;
    const size_t keys = piece.keys + piece.count - 1;
    kernels.attention({a.past_key + cache, a.past_value + cache, keys, size, a.scale}, queries, count, scratch);
}

// About ten microseconds of a thread, in products of numbers.
constexpr size_t kLeastProducts = size_t(1) << 19;

void attend(const slimdeploy_attention &a, const KernelTable &kernels, const Workers &workers) {
    for (size_t b = 0; b < size_t(a.batch); b++) {
        append(a, b, a.key, a.past_key);
        append(a, b, a.value, a.past_value);
    }
    clear_padding(a);
    const auto longest = size_t(*std::max_element(a.last, a.last + a.batch)) + 1;
    const size_t products = 2 * size_t(a.batch * a.tokens * a.heads * a.head_size) * longest;
    const size_t threads = std::clamp<size_t>(products / kLeastProducts, 1, workers.count);
    const size_t heads = heads_together(a, threads), most = tokens_together(a, threads, heads);
    const std::vector<Piece> pieces = pieces_of(a, most);
    const size_t kv_heads = size_t(a.kv_heads), per_group = divide_up(size_t(a.heads / a.kv_heads), heads);
    const size_t tasks = pieces.size() * kv_heads * per_group;
    // A few for each thread even out what other processes take.
    const size_t shares = std::min(tasks, threads > 1 ? 4 * threads : 1);
    const AttentionScratch parts(heads * std::min(most, size_t(a.batch * a.tokens)), size_t(a.head_size), longest);
    Scratch scratch(std::min(shares, threads), parts.floats * sizeof(float));
    workers.share_out(threads, shares, [&](size_t share) {
        scratch.lend([&](void *own) {
            for (size_t task = part(tasks, share, shares); task < part(tasks, share + 1, shares); task++) {
                const Piece &piece = pieces[task / per_group / kv_heads];
                attend_to(a, kernels, piece, task / per_group % kv_heads, task % per_group * heads, heads,
                          static_cast<float *>(own));
            }
        });
    });
}

}  // namespace
}  // namespace slimdeploy

int slimdeploy_attend(const slimdeploy_attention *attention, const char *instruction_set, int32_t threads,
                      slimdeploy_parallel_for parallel_for, void *pool, char *error, size_t error_size) {
    return slimdeploy::guarded(error, error_size, [&] {
        if (!attention) throw slimdeploy::InvalidInput("no attention is described");
        slimdeploy::require_valid(*attention);
        slimdeploy::attend(*attention, slimdeploy::find_kernels(instruction_set),
                           {size_t(std::max(threads, 1)), parallel_for, pool});
    });
}

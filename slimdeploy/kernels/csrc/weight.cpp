#include "weight.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <new>

#include <sys/mman.h>
#include <unistd.h>

namespace slimdeploy {
namespace {

constexpr size_t kHugePage = size_t(2) << 20;
// Smaller weights live in caches, and measuring would take longer than it saves.
constexpr int64_t kWorthMeasuring = int64_t(1) << 20;

[[noreturn]] void fail(const char *format, int64_t a, int64_t b) {
    char text[256];
    snprintf(text, sizeof text, format, a, b);
    throw InvalidInput(text);
}

float bf16_value(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint16_t bf16_bits(float exact) {
    uint32_t bits;
    memcpy(&bits, &exact, sizeof bits);
    return uint16_t(bits >> 16);
}

size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

// round(kept * columns / block), ties to even.
int64_t kept_of_rest(int64_t kept, int64_t block, int64_t columns) {
    const int64_t product = kept * columns, quotient = product / block, twice_rest = 2 * (product % block);
    if (twice_rest != block) return quotient + (twice_rest > block);
    return quotient + quotient % 2;
}

int64_t count_bits(const uint8_t *row, int64_t begin, int64_t end) {
    int64_t count = 0;
    for (int64_t c = begin; c < end;) {
        if (c % 64 == 0 && c + 64 <= end) {
            uint64_t word;
            memcpy(&word, row + c / 8, sizeof word);
            count += __builtin_popcountll(word);
            c += 64;
        } else {
            count += row[c / 8] >> (c % 8) & 1;
            c++;
        }
    }
    return count;
}

void validate_shape(const slimdeploy_packed &p) {
    const int64_t limit = INT32_MAX;
    if (p.rows < 1 || p.columns < 1 || p.rows > limit || p.columns > limit) {
        fail("a weight of %" PRId64 " x %" PRId64 " is no matrix that can be held", p.rows, p.columns);
    }
    const bool words = p.value_type == SLIMDEPLOY_BF16 || p.value_type == SLIMDEPLOY_FP16;
    const bool int8 = p.value_type == SLIMDEPLOY_INT8, int4 = p.value_type == SLIMDEPLOY_INT4;
    if (!words && !int8 && !int4) fail("value type %" PRId64 " is not known", p.value_type, 0);
    if ((words && p.group != 0) || (int8 && p.group != 0 && p.group != 128) ||
        (int4 && p.group != 128 && p.group != 32)) {
        fail("a group of %" PRId64 " columns per scale does not go with value type %" PRId64, p.group, p.value_type);
    }
    const bool pattern = p.kept_per_block || p.block;
    if (pattern && (p.kept_per_block < 1 || p.block < p.kept_per_block)) {
        fail("%" PRId64 ":%" PRId64 " is no pattern; N:M keeps 1 to M of every M weights", p.kept_per_block, p.block);
    }
}

void validate_scales(const slimdeploy_packed &p) {
    const bool words = p.value_type == SLIMDEPLOY_BF16 || p.value_type == SLIMDEPLOY_FP16;
    const int64_t per_row = words ? 0 : p.group ? int64_t(divide_up(p.columns, p.group)) : 1;
    if (p.scale_count != uint64_t(p.rows * per_row) || (p.scale_count && !p.scales)) {
        fail("%" PRId64 " scales, not the %" PRId64 " that its shape asks for", int64_t(p.scale_count), p.rows * per_row);
    }
    for (uint64_t i = 0; i < p.scale_count; i++) {
        const float scale = bf16_value(p.scales[i]);
        if (!(scale > 0.0f && scale < 3.4e38f)) fail("scale %" PRId64 " is not a positive number", int64_t(i), 0);
    }
}

void validate_mask(const slimdeploy_packed &p) {
    const int64_t stride = 8 * int64_t(divide_up(p.columns, 64));
    if (!p.mask) {
        if (p.mask_count) fail("%" PRId64 " bytes of mask, but no mask", int64_t(p.mask_count), 0);
        if (p.value_count != uint64_t(p.rows * p.columns)) {
            fail("%" PRId64 " values, not the %" PRId64 " of a dense weight", int64_t(p.value_count), p.rows * p.columns);
        }
        return;
    }
    if (p.mask_count != uint64_t(p.rows * stride)) {
        fail("%" PRId64 " bytes of mask, not %" PRId64, int64_t(p.mask_count), p.rows * stride);
    }
    int64_t kept = 0;
    for (int64_t n = 0; n < p.rows; n++) {
        const uint8_t *row = p.mask + n * stride;
        if (count_bits(row, p.columns, stride * 8)) fail("row %" PRId64 " of the mask has bits in its padding", n, 0);
        kept += count_bits(row, 0, p.columns);
        for (int64_t c = 0; p.block && c < p.columns; c += p.block) {
            const int64_t end = std::min<int64_t>(c + p.block, p.columns);
            const int64_t expected = kept_of_rest(p.kept_per_block, p.block, end - c);
            if (count_bits(row, c, end) != expected) {
                fail("row %" PRId64 " does not keep the pattern's share in the block at column %" PRId64, n, c);
            }
        }
    }
    if (p.value_count != uint64_t(kept)) {
        fail("%" PRId64 " values, but the mask keeps %" PRId64, int64_t(p.value_count), kept);
    }
}

// Reads values of a row one after the other and writes them into blocks.
class RowWriter {
   public:
    RowWriter(const slimdeploy_packed &packed, slimdeploy_weight &weight, int64_t row, uint64_t first_value)
        : packed_(packed), weight_(weight), row_(row), value_(first_value) {}

    // Appends the row's blocks to `out`, and returns where they end. sum: of the row's weights.
    uint8_t *write(uint8_t *out, double &sum) {
        for (size_t block = 0; block < weight_.matrix.blocks; block++) {
            out = write_scales(out, block);
            if (weight_.structure != kDense) {
                for (int c = 0; c < kChunks; c++, out += 8) {
                    const uint64_t mask = chunk_mask(block * kChunks + c);
                    memcpy(out, &mask, 8);
                }
            }
            out = is_int4() ? write_nibbles(out, block, sum) : write_values(out, block, sum);
        }
        return out;
    }

    uint64_t next_value() const { return value_; }

   private:
    bool is_int4() const { return weight_.value_type == SLIMDEPLOY_INT4; }

    uint64_t chunk_mask(size_t chunk) const {
        const size_t chunks = divide_up(packed_.columns, 64);
        if (chunk >= chunks) return 0;
        if (packed_.mask) {
            uint64_t mask;
            memcpy(&mask, packed_.mask + (row_ * chunks + chunk) * 8, 8);
            return mask;
        }
        const size_t left = packed_.columns - chunk * 64;
        return left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
    }

    float scale_at(size_t column) const {
        if (!packed_.scale_count) return 1.0f;
        if (!packed_.group) return bf16_value(packed_.scales[row_]);
        const size_t per_row = divide_up(packed_.columns, packed_.group);
        const size_t group = std::min(column / packed_.group, per_row - 1);
        return bf16_value(packed_.scales[row_ * per_row + group]);
    }

    uint8_t *write_scales(uint8_t *out, size_t block) {
        if (weight_.kind == kBf16 || weight_.kind == kFp16) return out;
        const int columns = weight_.kind == kInt4Group32 ? 32 : 128;
        for (int c = 0; c < kBlockColumns; c += columns, out += 2) {
            const float scale = scale_at(block * kBlockColumns + c);
            // Nibbles are decoded as 16 q; dividing by a power of two is exact.
            const uint16_t half = bf16_bits(is_int4() ? scale / 16 : scale);
            memcpy(out, &half, 2);
        }
        return out;
    }

    int next_nibble() {
        const uint8_t byte = static_cast<const uint8_t *>(packed_.values)[value_ / 2];
        const int nibble = value_ % 2 ? byte >> 4 : byte & 15;
        value_++;
        return nibble;
    }

    // The nibbles of half a block into `codes`, one in a byte, where the layout wants them; returns how many bytes.
    int half_of_nibbles(size_t first_chunk, uint8_t *codes, double &sum) {
        int used = 0;
        for (size_t chunk = first_chunk; chunk < first_chunk + 2; chunk++) {
            const uint64_t mask = chunk_mask(chunk);
            const int room = weight_.structure == kDense         ? kChunkColumns
                             : weight_.structure == kFixedCount ? weight_.matrix.kept_per_chunk
                                                                : __builtin_popcountll(mask);
            memset(codes + used, 0, room);
            int at = used;
            for (uint64_t rest = mask; rest; rest &= rest - 1) {
                const int bit = __builtin_ctzll(rest), nibble = next_nibble();
                sum += double(nibble >= 8 ? nibble - 16 : nibble) * scale_at(chunk * 64 + bit);
                codes[weight_.structure == kDense ? used + bit : at++] = uint8_t(nibble);
            }
            used += room;
        }
        return used;
    }

    uint8_t *write_nibbles(uint8_t *out, size_t block, double &sum) {
        uint8_t low[kBlockColumns / 2], high[kBlockColumns / 2];
        const int low_count = half_of_nibbles(block * kChunks, low, sum);
        const int high_count = half_of_nibbles(block * kChunks + 2, high, sum);
        const int count = std::max(low_count, high_count);
        for (int i = 0; i < count; i++) {
            out[i] = uint8_t((i < low_count ? low[i] : 0) | (i < high_count ? high[i] : 0) << 4);
        }
        return out + count;
    }

    uint8_t *write_values(uint8_t *out, size_t block, double &sum) {
        const size_t size = weight_.kind == kInt8 ? 1 : 2;
        const uint8_t *source = static_cast<const uint8_t *>(packed_.values);
        for (size_t chunk = block * kChunks; chunk < (block + 1) * kChunks; chunk++) {
            const uint64_t mask = chunk_mask(chunk);
            const int kept = __builtin_popcountll(mask);
            if (weight_.structure == kDense) {
                memset(out, 0, kChunkColumns * size);
                uint64_t rest = mask;
                for (int i = 0; i < kept; i++, rest &= rest - 1) {
                    memcpy(out + __builtin_ctzll(rest) * size, source + (value_ + i) * size, size);
                }
                out += kChunkColumns * size;
            } else {
                const int room = weight_.structure == kFixedCount ? weight_.matrix.kept_per_chunk : kept;
                if (kept) memcpy(out, source + value_ * size, kept * size);
                memset(out + kept * size, 0, (room - kept) * size);
                out += room * size;
            }
            if (weight_.kind == kInt8) {
                int64_t codes = 0;
                for (int i = 0; i < kept; i++) codes += static_cast<const int8_t *>(packed_.values)[value_ + i];
                sum += double(codes) * scale_at(chunk * 64);
            }
            value_ += kept;
        }
        return out;
    }

    const slimdeploy_packed &packed_;
    const slimdeploy_weight &weight_;
    const int64_t row_;
    uint64_t value_;
};

// An upper bound of a row's bytes: every value kept, and nibbles without a partner.
size_t most_bytes_of_row(const slimdeploy_weight &weight) {
    const size_t values = weight.kind == kBf16 || weight.kind == kFp16 ? 2 * kBlockColumns : kBlockColumns;
    return weight.matrix.blocks * (16 + kMaskBytes + values);
}

}  // namespace

Buffer::Buffer(size_t capacity) : mapped_(capacity + kHugePage) {
    mapping_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    data_ = reinterpret_cast<uint8_t *>(divide_up(reinterpret_cast<uintptr_t>(mapping_), kHugePage) * kHugePage);
#if defined(MADV_HUGEPAGE)
    madvise(data_, capacity, MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() { munmap(mapping_, mapped_); }

void Buffer::shrink(size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t used = size_t(data_ - static_cast<uint8_t *>(mapping_)) + divide_up(bytes, page) * page;
    if (used < mapped_ && munmap(static_cast<uint8_t *>(mapping_) + used, mapped_ - used) == 0) mapped_ = used;
}

void validate(const slimdeploy_packed &packed) {
    validate_shape(packed);
    if (packed.value_count && !packed.values) throw InvalidInput("there are no values");
    validate_scales(packed);
    validate_mask(packed);
}

ValueKind value_kind(int32_t value_type, int32_t group) {
    switch (value_type) {
        case SLIMDEPLOY_BF16: return kBf16;
        case SLIMDEPLOY_FP16: return kFp16;
        case SLIMDEPLOY_INT8: return kInt8;
        default: return group == 32 ? kInt4Group32 : kInt4Group128;
    }
}

std::unique_ptr<slimdeploy_weight> make_weight(const slimdeploy_packed &packed, const KernelTable &kernels,
                                               int32_t layout) {
    auto weight = std::make_unique<slimdeploy_weight>();
    weight->kernels = &kernels;
    weight->kind = value_kind(packed.value_type, packed.group);
    weight->value_type = packed.value_type;
    weight->kept = int64_t(packed.value_count);
    const bool fixed = packed.block && kChunkColumns % packed.block == 0 && 2 * packed.kept_per_block <= packed.block;
    weight->structure = !packed.mask || layout == SLIMDEPLOY_DENSE ? kDense : fixed ? kFixedCount : kUnstructured;
    weight->one_row = kOneByTwo;
    if (packed.rows * packed.columns >= kWorthMeasuring) {
        const double kept = double(packed.value_count) / (double(packed.rows) * double(packed.columns));
        const LayoutChoice choice = choose_layout(kernels, weight->kind, weight->structure, kept);
        if (layout == SLIMDEPLOY_AUTOMATIC) weight->structure = choice.structure;
        weight->one_row = weight->structure == kDense ? choice.dense.one_row : choice.sparse.one_row;
    }
    Matrix &matrix = weight->matrix;
    matrix.rows = size_t(packed.rows);
    matrix.columns = size_t(packed.columns);
    matrix.blocks = divide_up(matrix.columns, kBlockColumns);
    matrix.kept_per_chunk = fixed ? packed.kept_per_block * (kChunkColumns / packed.block) : 0;

    weight->buffer = std::make_unique<Buffer>(matrix.rows * most_bytes_of_row(*weight) + kReadAhead);
    weight->row_offset.reserve(matrix.rows + 1);
    weight->weight_sums.reserve(matrix.rows);
    uint8_t *const start = weight->buffer->data(), *out = start;
    uint64_t value = 0;
    for (int64_t n = 0; n < packed.rows; n++) {
        RowWriter writer(packed, *weight, n, value);
        double sum = 0;
        weight->row_offset.push_back(uint64_t(out - start));
        out = writer.write(out, sum);
        weight->weight_sums.push_back(float(sum));
        value = writer.next_value();
    }
    weight->row_offset.push_back(uint64_t(out - start));
    weight->buffer->shrink(size_t(out - start) + kReadAhead);
    matrix.data = start;
    matrix.row_offset = weight->row_offset.data();
    matrix.weight_sums = weight->weight_sums.data();
    return weight;
}

}  // namespace slimdeploy

#include "weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "numbers.h"

namespace slimdeploy {
namespace {

// Columns that share a scale in the kernels' layout.
int layout_group(ValueKind kind) { return kind == kInt4Group32 ? 32 : 128; }

// Sums over a row: its weights, and the scales of its groups as kernels have them.
struct RowSums {
    double weights = 0, group_scales = 0;
};

// Reads values of a row one after the other and writes them into blocks.
class RowWriter {
   public:
    RowWriter(const slimdeploy_packed &packed, slimdeploy_weight &weight, int64_t row, uint64_t first_value)
        : packed_(packed), weight_(weight), row_(row), value_(first_value) {}

    // Appends the row's blocks to `out`, and returns where they end.
    uint8_t *write(uint8_t *out) {
        for (size_t block = 0; block < weight_.matrix.blocks; block++) {
            uint8_t *const scales = out;
            out += scale_bytes();
            if (weight_.structure != kDense) {
                for (int c = 0; c < kChunks; c++, out += 8) {
                    const uint64_t mask = chunk_mask(block * kChunks + c);
                    memcpy(out, &mask, 8);
                }
            }
            std::fill(std::begin(has_codes_), std::end(has_codes_), false);
            out = is_int4() ? write_nibbles(out, block) : write_values(out, block);
            write_scales(scales, block);
        }
        return out;
    }

    uint64_t next_value() const { return value_; }
    // Of what has been written; of no use for bf16 and fp16.
    const RowSums &sums() const { return sums_; }

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
        if (!packed_.group) return float_of_bf16(packed_.scales[row_]);
        const size_t per_row = divide_up(packed_.columns, packed_.group);
        const size_t group = std::min(column / packed_.group, per_row - 1);
        return float_of_bf16(packed_.scales[row_ * per_row + group]);
    }

    size_t scale_bytes() const {
        const bool words = weight_.kind == kBf16 || weight_.kind == kFp16;
        return words ? 0 : 2 * kBlockColumns / layout_group(weight_.kind);
    }

    // After the block's values. A group without codes may have any scale in a file; what sums of integers start at
    // would be multiplied with it, so it becomes 0.
    void write_scales(uint8_t *out, size_t block) {
        for (size_t i = 0; i < scale_bytes() / 2; i++) {
            const int columns = layout_group(weight_.kind), first = int(i) * columns;
            const bool *codes = has_codes_ + first / 32;
            const bool any = std::find(codes, codes + columns / 32, true) != codes + columns / 32;
            // Nibbles are decoded as 16 q; dividing by a power of two is exact.
            const float scale = any ? scale_at(block * kBlockColumns + first) / (is_int4() ? 16 : 1) : 0;
            const auto bf16 = uint16_t(bits_of_float(scale) >> 16);
            memcpy(out + 2 * i, &bf16, 2);
            sums_.group_scales += scale;
        }
    }

    int next_nibble() {
        const uint8_t byte = static_cast<const uint8_t *>(packed_.values)[value_ / 2];
        const int nibble = value_ % 2 ? byte >> 4 : byte & 15;
        value_++;
        return nibble;
    }

    // The nibbles of half a block into `codes`, one in a byte, where the layout wants them; returns how many bytes.
    int half_of_nibbles(size_t first_chunk, uint8_t *codes) {
        int used = 0;
        for (size_t chunk = first_chunk; chunk < first_chunk + 2; chunk++) {
            const uint64_t mask = chunk_mask(chunk);
            const int room = weight_.structure == kDense        ? kChunkColumns
                             : weight_.structure == kFixedCount ? weight_.matrix.kept_per_chunk
                                                                : __builtin_popcountll(mask);
            memset(codes + used, 0, room);
            int at = used;
            for (uint64_t rest = mask; rest; rest &= rest - 1) {
                const int bit = __builtin_ctzll(rest), nibble = next_nibble();
                const int code = nibble >= 8 ? nibble - 16 : nibble;
                has_codes_[chunk % kChunks * 2 + bit / 32] |= code != 0;
                sums_.weights += double(code) * scale_at(chunk * 64 + bit);
                codes[weight_.structure == kDense ? used + bit : at++] = uint8_t(nibble);
            }
            used += room;
        }
        return used;
    }

    uint8_t *write_nibbles(uint8_t *out, size_t block) {
        uint8_t low[kBlockColumns / 2], high[kBlockColumns / 2];
        const int low_count = half_of_nibbles(block * kChunks, low);
        const int high_count = half_of_nibbles(block * kChunks + 2, high);
        const int count = std::max(low_count, high_count);
        for (int i = 0; i < count; i++) {
            out[i] = uint8_t((i < low_count ? low[i] : 0) | (i < high_count ? high[i] : 0) << 4);
        }
        return out + count;
    }

    uint8_t *write_values(uint8_t *out, size_t block) {
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
                for (int i = 0; i < kept; i++) {
                    const int code = static_cast<const int8_t *>(packed_.values)[value_ + i];
                    has_codes_[chunk % kChunks * 2] |= code != 0;
                    codes += code;
                }
                sums_.weights += double(codes) * scale_at(chunk * 64);
            }
            value_ += kept;
        }
        return out;
    }

    const slimdeploy_packed &packed_;
    const slimdeploy_weight &weight_;
    const int64_t row_;
    uint64_t value_;
    RowSums sums_;
    bool has_codes_[kBlockColumns / 32] = {};  // of the block, for 32 columns; int8, in groups of 128, for 64
};

// Matrix::starts and Matrix::corrections of a row. With activations of x + offset, sums that start at `start` for every
// 4 columns hold the product and offset * weights + start * (group / 4) * group_scales beside it, which is about zero
// for the start that is taken.
void set_start(const RowSums &sums, slimdeploy_weight &weight) {
    const int offset = weight.kernels->offset, group = layout_group(weight.kind);
    const double mean = sums.group_scales > 0 ? sums.weights / (group * sums.group_scales) : 0;
    const auto start = int32_t(std::lround(-4.0 * offset * mean));
    weight.starts.push_back(start);
    weight.corrections.push_back(float(offset * sums.weights + start * (group / 4) * sums.group_scales));
}

// An upper bound of a row's bytes: every value kept, and nibbles without a partner.
size_t most_bytes_of_row(const slimdeploy_weight &weight) {
    const size_t values = weight.kind == kBf16 || weight.kind == kFp16 ? 2 * kBlockColumns : kBlockColumns;
    return weight.matrix.blocks * (16 + kMaskBytes + values);
}

}  // namespace

ValueKind value_kind(int32_t value_type, int32_t group) {
    switch (value_type) {
        case SLIMDEPLOY_BF16:
            return kBf16;
        case SLIMDEPLOY_FP16:
            return kFp16;
        case SLIMDEPLOY_INT8:
            return kInt8;
        default:
            return group == 32 ? kInt4Group32 : kInt4Group128;
    }
}

bool keeps_fixed_count(int32_t kept_per_block, int32_t block) {
    return block > 0 && kChunkColumns % block == 0 && 2 * kept_per_block <= block;
}

std::unique_ptr<slimdeploy_weight> make_weight(const slimdeploy_packed &packed, const KernelTable &kernels,
                                               int32_t layout) {
    auto weight = std::make_unique<slimdeploy_weight>();
    weight->kernels = &kernels;
    weight->kind = value_kind(packed.value_type, packed.group);
    weight->value_type = packed.value_type;
    weight->kept = int64_t(packed.value_count);
    const bool fixed = keeps_fixed_count(packed.kept_per_block, packed.block);
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
    weight->starts.reserve(matrix.rows);
    weight->corrections.reserve(matrix.rows);
    uint8_t *const start = weight->buffer->data(), *out = start;
    uint64_t value = 0;
    for (int64_t n = 0; n < packed.rows; n++) {
        RowWriter writer(packed, *weight, n, value);
        weight->row_offset.push_back(uint64_t(out - start));
        out = writer.write(out);
        set_start(writer.sums(), *weight);
        value = writer.next_value();
    }
    weight->row_offset.push_back(uint64_t(out - start));
    weight->buffer->shrink(size_t(out - start) + kReadAhead);
    matrix.data = start;
    matrix.row_offset = weight->row_offset.data();
    matrix.starts = weight->starts.data();
    matrix.corrections = weight->corrections.data();
    return weight;
}

}  // namespace slimdeploy

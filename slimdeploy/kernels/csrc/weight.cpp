#include "weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <thread>

#include "numbers.h"
#include "threads.h"

namespace slimdeploy {
namespace {

// Columns that share a scale in the kernels' layout.
int layout_group(ValueKind kind) { return kind == kInt4Group32 ? 32 : 128; }

// Sums over a row: its weights, and the scales of its groups as kernels have them.
struct RowSums {
    double weights = 0, group_scales = 0;
};

// Reads the values of a panel's rows, each row's one after the other, and writes them in the order of layout.h.
class PanelWriter {
   public:
    // first_value: of the panel's first row.
    PanelWriter(const slimdeploy_packed &packed, slimdeploy_weight &weight, int64_t first_row, uint64_t first_value)
        : packed_(packed),
          weight_(weight),
          first_row_(first_row),
          rows_(int(std::min<int64_t>(kPanelRows, packed.rows - first_row))),
          words_(weight.kind == kBf16 || weight.kind == kFp16) {
        for (int r = 0; r < kPanelRows; r++) next_[r] = read_[r];  // of rows that there are not too
        for (int r = 0; r < rows_; r++) {
            value_[r] = first_value;
            first_value += kept_of_row(r);
        }
        end_value_ = first_value;
    }

    // Appends the panel's blocks to `out`, and returns where they end.
    uint8_t *write(uint8_t *out) {
        const size_t group = words_ ? kPaddedColumns : size_t(layout_group(weight_.kind));
        for (size_t column = 0; column < weight_.matrix.padded_columns; column += group) {
            for (int r = 0; r < rows_; r++) read_group(r, column, group);
            uint8_t *const scales = out;
            if (!words_) out += 2 * kPanelRows;
            for (size_t block = column; block < column + group; block += kBlockColumns) out = write_block(out, block);
            if (!words_) write_scales(scales, column);
        }
        return out;
    }

    // The first one of the next panel.
    uint64_t end_value() const { return end_value_; }
    // Of what has been written; of no use for bf16 and fp16.
    const RowSums (&sums() const)[kPanelRows] { return sums_; }

   private:
    static constexpr int kMostUnitColumns = 4;

    bool is_int4() const { return weight_.value_type == SLIMDEPLOY_INT4; }
    size_t mask_words() const { return divide_up(packed_.columns, 64); }

    uint64_t mask_word(int r, size_t word) const {
        if (packed_.mask) {
            uint64_t mask;
            memcpy(&mask, packed_.mask + ((first_row_ + r) * mask_words() + word) * 8, 8);
            return mask;
        }
        const size_t left = packed_.columns - word * 64;
        return left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
    }

    uint64_t kept_of_row(int r) const {
        if (!packed_.mask) return uint64_t(packed_.columns);
        uint64_t kept = 0;
        for (size_t word = 0; word < mask_words(); word++) kept += bits_in(mask_word(r, word));
        return kept;
    }

    // The 16 bits of a row's mask from a column on, which is a multiple of 16.
    uint32_t mask_of_block(int r, size_t column) const {
        if (r >= rows_ || column / 64 >= mask_words()) return 0;
        return uint32_t(mask_word(r, column / 64) >> column % 64) & 0xFFFF;
    }

    float scale_at(int r, size_t column) const {
        const int64_t row = first_row_ + r;
        if (!packed_.group) return float_of_bf16(packed_.scales[row]);
        const size_t per_row = divide_up(packed_.columns, packed_.group);
        return float_of_bf16(packed_.scales[row * per_row + std::min(column / packed_.group, per_row - 1)]);
    }

    // After the group's values. A group without codes may have any scale in a file; what sums of integers start at
    // would be multiplied with it, so it becomes 0.
    void write_scales(uint8_t *out, size_t column) {
        for (int r = 0; r < kPanelRows; r++) {
            const float of_code = has_codes_[r] ? scale_at(r, column) : 0;
            // Nibbles are decoded as 16 q; dividing by a power of two is exact.
            const float scale = of_code / (is_int4() ? 16 : 1);
            const auto bf16 = uint16_t(bits_of_float(scale) >> 16);
            memcpy(out + 2 * r, &bf16, 2);
            sums_[r].weights += double(codes_[r]) * of_code;
            sums_[r].group_scales += scale;
        }
    }

    // A row's values of some columns, as they are stored: nibbles one in a byte.
    void read_group(int r, size_t column, size_t columns) {
        int count = 0;
        for (size_t block = column; block < column + columns; block += kBlockColumns) {
            count += int(bits_in(mask_of_block(r, block)));
        }
        uint16_t *const read = next_[r] = read_[r];
        const uint64_t at = value_[r];
        value_[r] += uint64_t(count);
        if (words_) {
            if (count) memcpy(read, static_cast<const uint16_t *>(packed_.values) + at, size_t(count) * 2);
            return;
        }
        const auto *codes = static_cast<const int8_t *>(packed_.values);
        int sum = 0, any = 0;
        for (int i = 0; i < count; i++) {
            int code;
            if (is_int4()) {
                const uint64_t place = at + uint64_t(i);
                const int pair = uint8_t(codes[place / 2]), nibble = place % 2 ? pair & 0xF0 : pair << 4;
                code = int8_t(uint8_t(nibble)) >> 4;
            } else {
                code = codes[at + uint64_t(i)];
            }
            sum += code;
            any |= code;
            read[i] = uint16_t(code & (is_int4() ? 15 : 255));
        }
        codes_[r] = sum;
        has_codes_[r] = any != 0;
    }

    // The mask of a chunk and its values, those that are kept or, in dense layouts, all; returns how many. Room for a
    // unit more is written to.
    template <int kUnitColumns>
    int take_chunk(const uint32_t (&masks)[kPanelRows], int chunk, uint64_t &mask, uint16_t *values) {
        static constexpr uint8_t kBits[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
        uint16_t *out = values;
        mask = 0;
        for (int column = chunk * 4, bit = 0; bit < kChunkWeights; column += kUnitColumns) {
            for (int r = 0; r < kPanelRows; r++, bit += kUnitColumns) {
                const uint32_t kept = masks[r] >> column & ((1u << kUnitColumns) - 1);
                mask |= uint64_t(kept) << bit;
                if (weight_.structure == kDense) {
                    for (int c = 0; c < kUnitColumns; c++) {
                        const uint16_t keeps = kept >> c & 1;
                        *out++ = uint16_t(*next_[r] * keeps);
                        next_[r] += keeps;
                    }
                } else {
                    memcpy(out, next_[r], kUnitColumns * sizeof *out);
                    out += kBits[kept];
                    next_[r] += kBits[kept];
                }
            }
        }
        return int(out - values);
    }
    int take_chunk(const uint32_t (&masks)[kPanelRows], int chunk, uint64_t &mask, uint16_t *values) {
        switch (4 / weight_.kernels->activation_bytes[weight_.kind]) {  // columns of a unit
            case 1:
                return take_chunk<1>(masks, chunk, mask, values);
            case 2:
                return take_chunk<2>(masks, chunk, mask, values);
            default:
                return take_chunk<4>(masks, chunk, mask, values);
        }
    }

    uint8_t *write_block(uint8_t *out, size_t column) {
        uint32_t masks_of_rows[kPanelRows];
        for (int r = 0; r < kPanelRows; r++) masks_of_rows[r] = mask_of_block(r, column);
        uint64_t masks[kChunks];
        uint16_t values[kChunks * kChunkWeights + kMostUnitColumns];
        int count = 0, half = 0;
        for (int c = 0; c < kChunks; c++) {
            if (c == kChunks / 2) half = count;
            count += take_chunk(masks_of_rows, c, masks[c], values + count);
        }
        if (weight_.structure != kDense) {
            memcpy(out, masks, sizeof masks);
            out += sizeof masks;
        }
        if (is_int4()) return write_nibbles(out, values, half, values + half, count - half);
        if (words_) memcpy(out, values, size_t(count) * 2);
        for (int i = 0; i < count && !words_; i++) out[i] = uint8_t(values[i]);
        return out + count * (words_ ? 2 : 1);
    }

    static uint8_t *write_nibbles(uint8_t *out, const uint16_t *low, int low_count, const uint16_t *high,
                                  int high_count) {
        const int count = std::max(low_count, high_count);
        for (int i = 0; i < count; i++) {
            out[i] = uint8_t((i < low_count ? low[i] : 0) | (i < high_count ? high[i] : 0) << 4);
        }
        return out + count;
    }

    const slimdeploy_packed &packed_;
    const slimdeploy_weight &weight_;
    const int64_t first_row_;
    const int rows_;
    const bool words_;
    uint64_t value_[kPanelRows] = {}, end_value_;
    RowSums sums_[kPanelRows];
    // Of the group that is being written: values, those that are not yet written, and what is known of the codes.
    uint16_t read_[kPanelRows][kPaddedColumns + kMostUnitColumns] = {};
    uint16_t *next_[kPanelRows] = {};
    int codes_[kPanelRows] = {};  // their sum
    bool has_codes_[kPanelRows] = {};
};

// Matrix::starts and Matrix::corrections of a row. With activations of x + offset, sums that start at `start` for every
// group hold the product and offset * weights + start * group_scales beside it, which is about zero for the start that
// is taken.
void set_start(const RowSums &sums, slimdeploy_weight &weight, size_t row) {
    const int offset = weight.kernels->offset;
    const double mean = sums.group_scales > 0 ? sums.weights / sums.group_scales : 0;
    const auto start = int32_t(std::lround(-offset * mean));
    weight.starts[row] = start;
    weight.corrections[row] = float(offset * sums.weights + start * sums.group_scales);
}

// An upper bound of the bytes that the first panels take; what they take, but for nibbles, which share a byte.
size_t most_bytes(const slimdeploy_weight &weight, size_t panels, uint64_t values) {
    const bool words = weight.kind == kBf16 || weight.kind == kFp16;
    const size_t columns = weight.matrix.padded_columns;
    const size_t scales = words ? 0 : 2 * kPanelRows * columns / size_t(layout_group(weight.kind));
    const size_t masks = weight.structure == kDense ? 0 : columns / kBlockColumns * kMaskBytes;
    if (weight.structure == kDense) values = panels * kPanelRows * columns;
    return panels * (scales + masks) + size_t(values) * (words ? 2 : 1);
}

// Panels that one thread writes, from a place on that is theirs however many bytes they take.
struct Share {
    size_t first_panel, last_panel;
    uint64_t first_value;
    uint8_t *begin, *end;
};

struct Shares {
    const slimdeploy_packed &packed;
    slimdeploy_weight &weight;
    std::vector<Share> all;
};

uint64_t values_of_rows(const slimdeploy_packed &packed, size_t rows) {
    if (!packed.mask) return rows * uint64_t(packed.columns);
    uint64_t kept = 0;
    for (size_t word = 0; word < rows * divide_up(packed.columns, 64); word++) {
        uint64_t mask;
        memcpy(&mask, packed.mask + word * 8, 8);
        kept += bits_in(mask);
    }
    return kept;
}

Shares share_out(const slimdeploy_packed &packed, slimdeploy_weight &weight, size_t panels) {
    const bool is_large = packed.rows * packed.columns >= kWorthMeasuring;
    const size_t threads = is_large ? std::max(std::thread::hardware_concurrency(), 1u) : 1;
    const size_t count = std::min(threads, panels);
    Shares shares{packed, weight, {}};
    for (size_t i = 0; i < count; i++) {
        const size_t first = panels * i / count, last = panels * (i + 1) / count;
        const uint64_t values = values_of_rows(packed, first * kPanelRows);
        uint8_t *const begin = weight.buffer->data() + most_bytes(weight, first, values);
        shares.all.push_back({first, last, values, begin, begin});
    }
    return shares;
}

// Offsets of its panels count from its own beginning.
void write_share(void *argument, size_t number) {
    Shares &shares = *static_cast<Shares *>(argument);
    Share &share = shares.all[number];
    uint64_t value = share.first_value;
    for (size_t panel = share.first_panel; panel < share.last_panel; panel++) {
        PanelWriter writer(shares.packed, shares.weight, int64_t(panel * kPanelRows), value);
        shares.weight.panel_offset[panel] = uint64_t(share.end - share.begin);
        share.end = writer.write(share.end);
        size_t row = panel * kPanelRows;
        for (const RowSums &sums : writer.sums()) set_start(sums, shares.weight, row++);
        value = writer.end_value();
    }
}

// Moves shares up behind each other, and returns how many bytes they are.
size_t close_up(const Shares &shares) {
    uint8_t *const start = shares.weight.buffer->data(), *out = start;
    for (const Share &share : shares.all) {
        const size_t bytes = size_t(share.end - share.begin);
        if (out != share.begin) memmove(out, share.begin, bytes);
        for (size_t panel = share.first_panel; panel < share.last_panel; panel++) {
            shares.weight.panel_offset[panel] += uint64_t(out - start);
        }
        out += bytes;
    }
    shares.weight.panel_offset.back() = uint64_t(out - start);
    return size_t(out - start);
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

std::unique_ptr<slimdeploy_weight> make_weight(const slimdeploy_packed &packed, const KernelTable &kernels,
                                               int32_t layout) {
    auto weight = std::make_unique<slimdeploy_weight>();
    weight->kernels = &kernels;
    weight->kind = value_kind(packed.value_type, packed.group);
    weight->value_type = packed.value_type;
    weight->kept = int64_t(packed.value_count);
    weight->structure = !packed.mask || layout == SLIMDEPLOY_DENSE ? kDense : kSparse;
    if (packed.mask && layout == SLIMDEPLOY_AUTOMATIC && packed.rows * packed.columns >= kWorthMeasuring) {
        const double kept = double(packed.value_count) / (double(packed.rows) * double(packed.columns));
        weight->structure = choose_layout(kernels, weight->kind, kept).structure;
    }
    Matrix &matrix = weight->matrix;
    matrix.rows = size_t(packed.rows);
    matrix.columns = size_t(packed.columns);
    matrix.padded_columns = divide_up(matrix.columns, kPaddedColumns) * kPaddedColumns;

    const size_t panels = divide_up(matrix.rows, kPanelRows);
    weight->buffer = std::make_unique<Buffer>(most_bytes(*weight, panels, packed.value_count) + kReadAhead);
    weight->panel_offset.resize(panels + 1);
    // Kernels read those of all panels that they decode together.
    weight->starts.resize((panels + kernels.cached_panels) * kPanelRows);
    weight->corrections.resize(weight->starts.size());
    Shares shares = share_out(packed, *weight, panels);
    run_on_own_threads(shares.all.size(), shares.all.size(), write_share, &shares);
    weight->buffer->shrink(close_up(shares) + kReadAhead);
    matrix.data = weight->buffer->data();
    matrix.panel_offset = weight->panel_offset.data();
    matrix.starts = weight->starts.data();
    matrix.corrections = weight->corrections.data();
    return weight;
}

}  // namespace slimdeploy

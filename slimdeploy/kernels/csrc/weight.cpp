#include "weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
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

// Of 64 columns of a row. What the weight does not have is not kept.
uint64_t mask_word(const slimdeploy_packed &packed, size_t row, size_t word) {
    const size_t words = divide_up(packed.columns, 64);
    if (row >= size_t(packed.rows) || word >= words) return 0;
    if (packed.mask) {
        uint64_t mask;
        memcpy(&mask, packed.mask + (row * words + word) * 8, 8);
        return mask;
    }
    const size_t left = packed.columns - word * 64;
    return left >= 64 ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
}

// Up to 256 bytes as signed numbers of which `sign` is the highest bit. Behind them are 7 zeros.
struct Codes {
    int sum;
    bool any;  // that is not 0

    Codes(const uint8_t *bytes, size_t count, int sign) {
        constexpr uint64_t kEveryByte = 0x0101010101010101u, kEverySecond = 0x00FF00FF00FF00FFu;
        uint64_t sums = 0, bits = 0;
        size_t i = 0;
        for (; i < count; i += 8) {
            uint64_t word;
            memcpy(&word, bytes + i, 8);
            bits |= word;
            word ^= uint64_t(sign) * kEveryByte;  // each is `sign` too large now, and none is negative
            sums += (word & kEverySecond) + (word >> 8 & kEverySecond);
        }
        sum = -sign * int(i);
        for (int lane = 0; lane < 64; lane += 16) sum += int(sums >> lane & 0xFFFF);
        any = bits != 0;
    }
};

// Reads the values of a panel's rows, each row's one after the other, and writes them in the order of layout.h.
//
// Value: a value while it is on its way: a byte for codes, nibbles too. kUnitColumns: of a unit.
template <class Value, int kUnitColumns>
class PanelWriter {
   public:
    // first_values: of each row.
    PanelWriter(const slimdeploy_packed &packed, const slimdeploy_weight &weight, size_t first_row,
                const uint64_t *first_values)
        : packed_(packed), weight_(weight), first_row_(first_row) {
        std::copy_n(first_values, kPanelRows, value_);
    }

    void write(uint8_t *out) {
        const size_t group = kCodes ? size_t(layout_group(weight_.kind)) : kPaddedColumns;
        for (size_t column = 0; column < weight_.matrix.padded_columns; column += group) {
            uint8_t *const scales = out;
            if (kCodes) out += 2 * kPanelRows;
            for (int r = 0; r < kPanelRows; r++) {
                read_group(r, column, group);
                if (kCodes) write_scale(scales + 2 * r, r, column);
            }
            for (size_t block = 0; block < group / kBlockColumns; block++) {
                out = weight_.structure == kDense ? write_block<true>(out, block) : write_block<false>(out, block);
            }
        }
    }

    // Of what has been written; of no use for bf16 and fp16.
    const RowSums (&sums() const)[kPanelRows] { return sums_; }

   private:
    static constexpr bool kCodes = sizeof(Value) == 1;
    static constexpr uint32_t kWhole = (1u << kUnitColumns) - 1;  // mask of a unit
    static constexpr int kHalf = kBlockColumns * kPanelRows / 2;
    static constexpr int kStep = 16;          // nibbles are unpacked in steps of so many bytes
    static constexpr int kSlack = 2 * kStep;  // behind values

    bool is_int4() const { return weight_.value_type == SLIMDEPLOY_INT4; }

    float scale_at(size_t row, size_t column) const {
        if (!packed_.group) return float_of_bf16(packed_.scales[row]);
        const size_t per_row = divide_up(packed_.columns, packed_.group);
        return float_of_bf16(packed_.scales[row * per_row + std::min(column / packed_.group, per_row - 1)]);
    }

    // A group without codes may have any scale in a file; what sums of integers start at would be multiplied with it,
    // so it becomes 0.
    void write_scale(uint8_t *out, int r, size_t column) {
        const Codes codes(reinterpret_cast<const uint8_t *>(values_[r]), count_[r], is_int4() ? 8 : 128);
        const float of_code = codes.any ? scale_at(first_row_ + r, column) : 0;
        // Nibbles are decoded as 16 q; dividing by a power of two is exact.
        const float scale = of_code / (is_int4() ? 16 : 1);
        const auto bf16 = uint16_t(bits_of_float(scale) >> 16);
        memcpy(out, &bf16, 2);
        sums_[r].weights += double(codes.sum) * of_code;
        sums_[r].group_scales += scale;
    }

    // A row's masks and values of some columns. Behind the values are zeros.
    void read_group(int r, size_t column, size_t columns) {
        size_t count = 0;
        for (size_t at = 0; at < columns; at += 64) {
            uint64_t mask = mask_word(packed_, first_row_ + r, (column + at) / 64) >> (column + at) % 64;
            if (columns < 64) mask &= (uint64_t(1) << columns) - 1;
            count += bits_in(mask);
            for (size_t block = at; block < std::min(at + 64, columns); block += kBlockColumns, mask >>= kBlockColumns) {
                masks_[block / kBlockColumns][r] = uint16_t(mask);
            }
        }
        next_[r] = values_[r];
        count_[r] = count;
        if (kCodes && is_int4()) {
            const size_t before = read_nibbles(reinterpret_cast<uint8_t *>(values_[r]), value_[r], count);
            next_[r] += before;
            count_[r] += before;
        } else if (count) {
            memcpy(values_[r], static_cast<const Value *>(packed_.values) + value_[r], count * sizeof(Value));
        }
        memset(values_[r] + count_[r], 0, 8 * sizeof(Value));
        value_[r] += count;
    }

    // One in a byte; returns how many bytes stand before the first.
    size_t read_nibbles(uint8_t *out, uint64_t first, size_t count) const {
        const size_t before = first % 2, pairs = (before + count + 1) / 2;
        uint8_t read[kPaddedColumns / 2 + kStep] = {};
        if (count) memcpy(read, static_cast<const uint8_t *>(packed_.values) + first / 2, pairs);
        for (size_t start = 0; start < pairs; start += kStep) {
            for (size_t i = start; i < start + kStep; i++) {
                out[2 * i] = read[i] & 15;
                out[2 * i + 1] = read[i] >> 4;
            }
        }
        if (before) out[0] = 0;  // it belongs to another group
        return before;
    }

    // masks: of each row's columns of a block.
    static uint64_t mask_of_chunk(const uint16_t (&masks)[kPanelRows], int chunk) {
        uint64_t mask = 0;
        for (int r = 0; r < kPanelRows; r++) {
            for (int c = 0; c < 4; c += kUnitColumns) {
                const uint64_t kept = masks[r] >> (chunk * 4 + c) & kWhole;
                mask |= kept << (c * kPanelRows + r * kUnitColumns);
            }
        }
        return mask;
    }

    // kAll: the layout is dense.
    template <bool kAll>
    uint8_t *write_block(uint8_t *out, size_t block) {
        static constexpr uint8_t kBits[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
        uint64_t masks[kChunks];
        for (int c = 0; c < kChunks; c++) masks[c] = mask_of_chunk(masks_[block], c);
        if (!kAll) {
            memcpy(out, masks, sizeof masks);
            out += sizeof masks;
        }
        Value halves[2][kHalf + kUnitColumns];
        size_t counts[2];
        for (int half = 0; half < 2; half++) {
            Value *end = halves[half];
            for (int c = half * kChunks / 2; c < (half + 1) * kChunks / 2; c++) {
                uint64_t mask = masks[c];
                for (int unit = 0; unit < kChunkWeights / kUnitColumns; unit++, mask >>= kUnitColumns) {
                    const uint32_t kept = mask & kWhole;
                    const Value *&next = next_[unit % kPanelRows];
                    memcpy(end, next, kUnitColumns * sizeof(Value));
                    if (kAll && kept != kWhole) spread(next, kept, end);
                    end += kAll ? kUnitColumns : kBits[kept];
                    next += kBits[kept];
                }
            }
            counts[half] = size_t(end - halves[half]);
        }
        if (kCodes && is_int4()) return write_nibbles(out, halves, counts);
        for (int half = 0; half < 2; half++) {
            memcpy(out, halves[half], counts[half] * sizeof(Value));
            out += counts[half] * sizeof(Value);
        }
        return out;
    }

    // The next values to where the mask has them, and zeros between them.
    static void spread(const Value *next, uint32_t kept, Value *out) {
        for (int c = 0; c < kUnitColumns; c++) {
            const uint32_t keeps = kept >> c & 1;
            out[c] = Value(*next * keeps);
            next += keeps;
        }
    }

    // The shorter half is filled up with zeros.
    static uint8_t *write_nibbles(uint8_t *out, Value (&halves)[2][kHalf + kUnitColumns], const size_t (&counts)[2]) {
        for (int half = 0; half < 2; half++) std::fill(halves[half] + counts[half], halves[half] + kHalf, Value(0));
        uint8_t pairs[kHalf];
        for (int i = 0; i < kHalf; i++) pairs[i] = uint8_t(halves[0][i] | halves[1][i] << 4);
        const size_t count = std::max(counts[0], counts[1]);
        memcpy(out, pairs, count);
        return out + count;
    }

    const slimdeploy_packed &packed_;
    const slimdeploy_weight &weight_;
    const size_t first_row_;
    uint64_t value_[kPanelRows];
    RowSums sums_[kPanelRows];
    // Of the group that is being written: masks by block; values, how many they are, and those that are not yet written.
    uint16_t masks_[kPaddedColumns / kBlockColumns][kPanelRows];
    Value values_[kPanelRows][kPaddedColumns + kSlack];
    size_t count_[kPanelRows];
    const Value *next_[kPanelRows];
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

// Threads have as many panels each, one after the other: two that write to one huge page would both clear it.
struct Panels {
    const slimdeploy_packed &packed;
    slimdeploy_weight &weight;
    size_t count, shares;
    std::vector<uint64_t> first_values;  // of each of their rows

    size_t first_of_share(size_t share) const { return count * share / shares; }
};

// Counts the values of a panel's rows in the file, and the bytes that it takes in the kernels' layout.
void measure(Panels &panels, size_t panel, std::vector<uint64_t> &half_blocks) {
    const slimdeploy_weight &weight = panels.weight;
    const bool words = weight.kind == kBf16 || weight.kind == kFp16, int4 = weight.value_type == SLIMDEPLOY_INT4;
    const bool dense = weight.structure == kDense;
    const size_t columns = weight.matrix.padded_columns;
    // How many weights are kept in every 8 columns of the panel, which are half a block: one in a byte.
    std::fill(half_blocks.begin(), half_blocks.end(), 0);
    uint64_t kept = 0;
    for (size_t row = panel * kPanelRows; row < (panel + 1) * kPanelRows; row++) {
        uint64_t of_row = 0;
        for (size_t word = 0; word < half_blocks.size(); word++) {
            const uint64_t bits = bits_in_bytes(mask_word(panels.packed, row, word));
            half_blocks[word] += bits;
            of_row += sum_of_bytes(bits);
        }
        panels.first_values[row + 1] = of_row;
        kept += of_row;
    }
    uint64_t pairs = 0;  // of nibbles
    for (uint64_t counts : half_blocks) {
        for (; counts; counts >>= 16) pairs += std::max(counts & 0xFF, counts >> 8 & 0xFF);
    }
    if (dense) kept = columns * kPanelRows, pairs = kept / 2;
    uint64_t bytes = int4 ? pairs : kept * (words ? 2 : 1);
    if (!dense) bytes += columns / kBlockColumns * kMaskBytes;
    if (!words) bytes += 2 * kPanelRows * columns / size_t(layout_group(weight.kind));
    panels.weight.panel_offset[panel + 1] = bytes;
}

void measure_share(void *argument, size_t share) {
    Panels &panels = *static_cast<Panels *>(argument);
    std::vector<uint64_t> half_blocks(divide_up(panels.packed.columns, 64));
    for (size_t panel = panels.first_of_share(share); panel < panels.first_of_share(share + 1); panel++) {
        measure(panels, panel, half_blocks);
    }
}

template <class Value, int kUnitColumns>
void write_share_of(const Panels &panels, size_t share) {
    slimdeploy_weight &weight = panels.weight;
    for (size_t panel = panels.first_of_share(share); panel < panels.first_of_share(share + 1); panel++) {
        size_t row = panel * kPanelRows;
        PanelWriter<Value, kUnitColumns> writer(panels.packed, weight, row, &panels.first_values[row]);
        writer.write(weight.buffer->data() + weight.panel_offset[panel]);
        for (const RowSums &sums : writer.sums()) set_start(sums, weight, row++);
    }
}

void write_share(void *argument, size_t share) {
    const Panels &panels = *static_cast<const Panels *>(argument);
    switch (panels.weight.kernels->activation_bytes[panels.weight.kind]) {
        case 1:
            return write_share_of<uint8_t, 4>(panels, share);
        case 2:
            return write_share_of<uint16_t, 2>(panels, share);
        default:
            return write_share_of<uint16_t, 1>(panels, share);
    }
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

    const size_t count = divide_up(matrix.rows, kPanelRows);
    const bool is_large = packed.rows * packed.columns >= kWorthMeasuring;
    const size_t threads = is_large ? std::max(std::thread::hardware_concurrency(), 1u) : 1;
    Panels panels{packed, *weight, count, std::min(threads, count), std::vector<uint64_t>(count * kPanelRows + 1)};
    std::vector<uint64_t> &offsets = weight->panel_offset;
    offsets.resize(count + 1);
    run_on_own_threads(panels.shares, panels.shares, measure_share, &panels);
    std::partial_sum(offsets.begin(), offsets.end(), offsets.begin());
    std::partial_sum(panels.first_values.begin(), panels.first_values.end(), panels.first_values.begin());
    weight->buffer = std::make_unique<Buffer>(offsets.back() + kReadAhead);
    // Kernels read those of all panels that they decode together.
    weight->starts.resize((count + kernels.cached_panels) * kPanelRows);
    weight->corrections.resize(weight->starts.size());
    run_on_own_threads(panels.shares, panels.shares, write_share, &panels);
    matrix.data = weight->buffer->data();
    matrix.panel_offset = weight->panel_offset.data();
    matrix.starts = weight->starts.data();
    matrix.corrections = weight->corrections.data();
    return weight;
}

}  // namespace slimdeploy

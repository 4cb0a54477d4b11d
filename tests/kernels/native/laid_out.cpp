#include "laid_out.h"

#include <algorithm>
#include <cstring>

#include "numbers.h"

using namespace slimdeploy;

namespace {

constexpr int kPruned = -1;

// Every weight as it is stored, or kPruned; padding too.
class Plain {
   public:
    Plain(const slimdeploy_packed &packed, const slimdeploy_weight &weight)
        : packed_(packed),
          weight_(weight),
          columns_(weight.matrix.padded_columns),
          stored_(divide_up(packed.rows, kPanelRows) * kPanelRows * columns_, kPruned) {
        const size_t stride = 8 * divide_up(packed.columns, 64);
        size_t next = 0;
        for (size_t row = 0; row < size_t(packed.rows); row++) {
            for (size_t column = 0; column < size_t(packed.columns); column++) {
                const uint8_t *const mask = packed.mask ? packed.mask + row * stride + column / 8 : nullptr;
                if (!mask || *mask >> column % 8 & 1) stored_[row * columns_ + column] = value(next++);
            }
        }
    }

    void write_panel(size_t first_row, std::vector<uint8_t> &out) const {
        for (size_t column = 0; column < columns_; column += kBlockColumns) {
            if (!is_words() && column % group() == 0) write_scales(first_row, column, out);
            write_block(first_row, column, out);
        }
    }

   private:
    bool is_words() const { return packed_.value_type == SLIMDEPLOY_BF16 || packed_.value_type == SLIMDEPLOY_FP16; }
    bool is_int4() const { return packed_.value_type == SLIMDEPLOY_INT4; }
    size_t group() const { return packed_.group == 32 ? 32 : 128; }

    int value(size_t i) const {
        const auto *bytes = static_cast<const uint8_t *>(packed_.values);
        if (is_words()) return static_cast<const uint16_t *>(packed_.values)[i];
        return is_int4() ? bytes[i / 2] >> (i % 2 * 4) & 15 : bytes[i];
    }

    static void write_word(uint16_t word, std::vector<uint8_t> &out) {
        out.push_back(uint8_t(word));
        out.push_back(uint8_t(word >> 8));
    }

    void write_scales(size_t first_row, size_t column, std::vector<uint8_t> &out) const {
        for (size_t row = first_row; row < first_row + kPanelRows; row++) {
            const int *const begin = &stored_[row * columns_ + column];
            float scale = 0;
            if (std::any_of(begin, begin + group(), [](int value) { return value > 0; })) {
                const size_t per_row = packed_.scale_count / size_t(packed_.rows);
                scale = float_of_bf16(packed_.scales[row * per_row + (packed_.group ? column / group() : 0)]);
            }
            write_word(uint16_t(bits_of_float(is_int4() ? scale / 16 : scale) >> 16), out);
        }
    }

    void write_block(size_t first_row, size_t column, std::vector<uint8_t> &out) const {
        const int unit = 4 / weight_.kernels->activation_bytes[weight_.kind];
        std::vector<int> halves[2];
        for (int chunk = 0; chunk < kChunks; chunk++) {
            uint64_t mask = 0;
            for (int i = 0; i < kChunkWeights; i++) {
                const size_t row = first_row + size_t(i / unit % kPanelRows);
                const int in_chunk = i / unit / kPanelRows * unit + i % unit;
                const int stored = stored_[row * columns_ + column + size_t(chunk * 4 + in_chunk)];
                const bool kept = stored != kPruned;
                mask |= uint64_t(kept) << i;
                if (kept || weight_.structure == kDense) halves[chunk / 2].push_back(kept ? stored : 0);
            }
            for (int byte = 0; byte < 8 && weight_.structure == kSparse; byte++) {
                out.push_back(uint8_t(mask >> (8 * byte)));
            }
        }
        if (is_int4()) {
            for (std::vector<int> &half : halves) half.resize(std::max(halves[0].size(), halves[1].size()));
            for (size_t i = 0; i < halves[0].size(); i++) out.push_back(uint8_t(halves[0][i] | halves[1][i] << 4));
            return;
        }
        for (const std::vector<int> &half : halves) {
            for (const int value : half) {
                if (is_words()) {
                    write_word(uint16_t(value), out);
                } else {
                    out.push_back(uint8_t(value));
                }
            }
        }
    }

    const slimdeploy_packed &packed_;
    const slimdeploy_weight &weight_;
    const size_t columns_;
    std::vector<int> stored_;
};

}  // namespace

bool is_laid_out(const slimdeploy_packed &packed, const slimdeploy_weight &weight) {
    const Plain plain(packed, weight);
    std::vector<uint8_t> expected;
    for (size_t panel = 0; panel + 1 < weight.panel_offset.size(); panel++) {
        if (weight.panel_offset[panel] != expected.size()) return false;
        plain.write_panel(panel * kPanelRows, expected);
    }
    return weight.panel_offset.back() == expected.size() &&
           memcmp(weight.matrix.data, expected.data(), expected.size()) == 0;
}

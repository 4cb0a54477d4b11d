// Plain C++ for any CPU, which compilers turn into whatever vectors the baseline has. The plainest set of operations
// that linear.h asks for.

// There are no vector registers to fill: unrolling would only take the compiler a minute.
#define SLIMDEPLOY_UNROLL

#include "linear.h"
#include "tables.h"

namespace slimdeploy {
namespace {

struct Portable {
    static constexpr int kLanes = 4, kOffset = 0, kFusedSizes = 4;
    static constexpr int kMostFused = 8, kPanelVectors = 4, kPanelTile = 4;
    static constexpr size_t kPanelCache = size_t(128) << 10;
    struct Chunk {
        int8_t q[kChunkWeights];
    };
    struct Words {
        uint16_t w[32];
    };
    struct Ints {
        int32_t lane[kLanes];
    };
    struct Units {
        uint32_t lane[kLanes];
    };
    struct Floats {
        float lane[kLanes];
    };

    static int8_t low(uint8_t byte) { return int8_t(byte << 4); }
    static int8_t high(uint8_t byte) { return int8_t(byte & 0xF0); }
    static int8_t whole(uint8_t byte) { return int8_t(byte); }

    template <int8_t (*kDecode)(uint8_t)>
    static SLIMDEPLOY_INLINE Chunk load_as(const uint8_t *p) {
        Chunk chunk;
        for (int i = 0; i < kChunkWeights; i++) chunk.q[i] = kDecode(p[i]);
        return chunk;
    }
    template <int8_t (*kDecode)(uint8_t)>
    static SLIMDEPLOY_INLINE Chunk expand_as(uint64_t mask, const uint8_t *p) {
        Chunk chunk{};
        for (; mask; mask &= mask - 1) chunk.q[__builtin_ctzll(mask)] = kDecode(*p++);
        return chunk;
    }
    static Chunk load(const uint8_t *p) { return load_as<whole>(p); }
    static Chunk load_low(const uint8_t *p) { return load_as<low>(p); }
    static Chunk load_high(const uint8_t *p) { return load_as<high>(p); }
    static Chunk expand(uint64_t mask, const uint8_t *p) { return expand_as<whole>(mask, p); }
    static Chunk expand_low(uint64_t mask, const uint8_t *p) { return expand_as<low>(mask, p); }
    static Chunk expand_high(uint64_t mask, const uint8_t *p) { return expand_as<high>(mask, p); }
    static Words load16(const uint8_t *p) {
        Words words;
        memcpy(words.w, p, sizeof words.w);
        return words;
    }
    static Words expand16(uint32_t mask, const uint8_t *p) {
        Words words{};
        for (; mask; mask &= mask - 1, p += 2) memcpy(&words.w[__builtin_ctz(mask)], p, 2);
        return words;
    }
    static Units units(const Chunk &chunk, int v) {
        Units units;
        memcpy(units.lane, chunk.q + v * sizeof units, sizeof units);
        return units;
    }

    static Ints load_ints(const int32_t *p) { return {{p[0], p[1], p[2], p[3]}}; }
    template <class Vector>
    static Vector add(Vector a, const Vector &b) {
        for (int l = 0; l < kLanes; l++) a.lane[l] += b.lane[l];
        return a;
    }

    static Floats zero() { return {}; }
    static Floats multiply_add(Floats sum, Ints ints, Floats scale) {
        for (int l = 0; l < kLanes; l++) sum.lane[l] += float(ints.lane[l]) * scale.lane[l];
        return sum;
    }
    static Floats load_bf16(const uint8_t *p) {
        Floats floats;
        for (int l = 0; l < kLanes; l++) {
            uint16_t bits;
            memcpy(&bits, p + 2 * l, sizeof bits);
            floats.lane[l] = float_of_bf16(bits);
        }
        return floats;
    }
    static Floats load_floats(const float *p) { return {{p[0], p[1], p[2], p[3]}}; }
    static void store_floats(float *p, Floats value) { memcpy(p, value.lane, sizeof value.lane); }

    static Units load_units(const uint32_t *p) {
        Units units;
        memcpy(units.lane, p, sizeof units.lane);
        return units;
    }
    static void store_units(uint32_t *p, const Units &units) { memcpy(p, units.lane, sizeof units.lane); }
    static Units broadcast_unit(const uint8_t *p) {
        uint32_t unit;
        memcpy(&unit, p, sizeof unit);
        return {{unit, unit, unit, unit}};
    }
    static Ints dot_units(Ints sum, Units x, Units weights) {
        for (int l = 0; l < kLanes; l++) {
            for (int byte = 0; byte < 32; byte += 8) {
                sum.lane[l] += int32_t(int8_t(x.lane[l] >> byte)) * int8_t(weights.lane[l] >> byte);
            }
        }
        return sum;
    }

    static float round_int8(const float *x, size_t columns, size_t padded, void *out) {
        uint32_t most = 0;
        for (size_t k = 0; k < columns; k++) {
            const uint32_t magnitude = bits_of_float(x[k]) & 0x7FFFFFFFu;
            most = magnitude > most ? magnitude : most;
        }
        const Int8Rounding rounding(most);
        int8_t *codes = static_cast<int8_t *>(out);
        memset(codes, 0, padded);
        if (rounding.inverse == 0.0f) return rounding.scale;
        for (size_t k = 0; k < columns; k++) codes[k] = int8_t(__builtin_rintf(x[k] * rounding.inverse));
        return rounding.scale;
    }

    template <float (*kWiden)(uint16_t), RoundKernel kRound>
    struct ByFloats {
        using Activation = float;
        static constexpr RoundKernel round = kRound;
        static Units units(const Words &words, int i, int v) {
            Units units;
            for (int l = 0; l < kLanes; l++) {
                units.lane[l] = bits_of_float(kWiden(words.w[i * kPanelRows + v * kLanes + l]));
            }
            return units;
        }
        static Floats dot_units(Floats sum, Units x, Units weights) {
            for (int l = 0; l < kLanes; l++) sum.lane[l] += float_of_bits(x.lane[l]) * float_of_bits(weights.lane[l]);
            return sum;
        }
    };
    using Fp16 = ByFloats<float_of_fp16, copy_floats>;
    using Bf16 = ByFloats<float_of_bf16, round_to_bf16>;
};

}  // namespace
}  // namespace slimdeploy

constexpr slimdeploy::KernelTable slimdeploy::portable_kernels =
    slimdeploy::make_table<slimdeploy::Portable>("portable");

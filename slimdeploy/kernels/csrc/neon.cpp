// Arm NEON with the dot product extension (Armv8.2): operations for linear.h. 4 lanes; activations are stored as int8;
// bf16 and fp16 weights are multiplied as floats.

#include <arm_neon.h>

#include "expand.h"
#include "linear.h"
#include "tables.h"

namespace slimdeploy {
namespace {

struct Neon {
    static constexpr int kLanes = 4, kOffset = 0, kFusedSizes = 3;
    static constexpr int kMostFused = 8, kPanelVectors = 4, kPanelTile = 4;
    static constexpr size_t kPanelCache = size_t(256) << 10;
    struct Chunk {
        int8x16_t part[4];  // 4 rows each
    };
    struct Words {
        uint16x8_t part[4];  // 8 rows each, two parts for every column
    };
    using Ints = int32x4_t;
    using Units = uint32x4_t;
    using Floats = float32x4_t;

    struct Whole {
        static SLIMDEPLOY_INLINE int8x16_t decode(uint8x16_t v) { return vreinterpretq_s8_u8(v); }
    };
    // 16 q from the low or from the high nibbles.
    struct Low {
        static SLIMDEPLOY_INLINE int8x16_t decode(uint8x16_t v) { return vreinterpretq_s8_u8(vshlq_n_u8(v, 4)); }
    };
    struct High {
        static SLIMDEPLOY_INLINE int8x16_t decode(uint8x16_t v) {
            return vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(0xF0)));
        }
    };

    // Byte i: how many bits of the mask are set in its bytes up to i.
    static SLIMDEPLOY_INLINE uint64_t running_counts(uint64_t mask) {
        const uint8x8_t counts = vcnt_u8(vcreate_u8(mask));
        return vget_lane_u64(vreinterpret_u64_u8(counts), 0) * 0x0101010101010101;
    }
    template <class Form>
    static SLIMDEPLOY_INLINE Chunk expand_as(uint64_t mask, const uint8_t *p) {
        const uint64_t counts = running_counts(mask);
        Chunk chunk;
        SLIMDEPLOY_UNROLL
        for (int i = 0; i < 4; i++) {
            const uint8_t *first = kExpand.first[mask >> 16 * i & 0xFF];
            const uint8_t *second = kExpand.second[mask >> (16 * i + 8) & 0xFF];
            const uint8_t *values = i ? p + (counts >> (16 * i - 8) & 0xFF) : p;
            chunk.part[i] = Form::decode(vqtbl1q_u8(vld1q_u8(values), vaddq_u8(vld1q_u8(first), vld1q_u8(second))));
        }
        return chunk;
    }
    template <class Form>
    static SLIMDEPLOY_INLINE Chunk load_as(const uint8_t *p) {
        Chunk chunk;
        SLIMDEPLOY_UNROLL
        for (int i = 0; i < 4; i++) chunk.part[i] = Form::decode(vld1q_u8(p + 16 * i));
        return chunk;
    }
    static SLIMDEPLOY_INLINE Chunk expand(uint64_t mask, const uint8_t *p) { return expand_as<Whole>(mask, p); }
    static SLIMDEPLOY_INLINE Chunk expand_low(uint64_t mask, const uint8_t *p) { return expand_as<Low>(mask, p); }
    static SLIMDEPLOY_INLINE Chunk expand_high(uint64_t mask, const uint8_t *p) { return expand_as<High>(mask, p); }
    static SLIMDEPLOY_INLINE Chunk load(const uint8_t *p) { return load_as<Whole>(p); }
    static SLIMDEPLOY_INLINE Chunk load_low(const uint8_t *p) { return load_as<Low>(p); }
    static SLIMDEPLOY_INLINE Chunk load_high(const uint8_t *p) { return load_as<High>(p); }
    static SLIMDEPLOY_INLINE Words load16(const uint8_t *p) {
        Words words;
        SLIMDEPLOY_UNROLL
        for (int i = 0; i < 4; i++) words.part[i] = vreinterpretq_u16_u8(vld1q_u8(p + 16 * i));
        return words;
    }
    static SLIMDEPLOY_INLINE Words expand16(uint32_t mask, const uint8_t *p) {
        const uint64_t counts = running_counts(mask);
        Words words;
        SLIMDEPLOY_UNROLL
        for (int i = 0; i < 4; i++) {
            const uint8_t *values = i ? p + 2 * (counts >> (8 * i - 8) & 0xFF) : p;
            const uint8x16_t places = vld1q_u8(kExpand.words[mask >> 8 * i & 0xFF]);
            words.part[i] = vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(values), places));
        }
        return words;
    }
    static SLIMDEPLOY_INLINE Units units(const Chunk &chunk, int v) { return vreinterpretq_u32_s8(chunk.part[v]); }

    static SLIMDEPLOY_INLINE Ints load_ints(const int32_t *p) { return vld1q_s32(p); }
    static SLIMDEPLOY_INLINE Ints add(Ints a, Ints b) { return vaddq_s32(a, b); }
    static SLIMDEPLOY_INLINE Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }

    static SLIMDEPLOY_INLINE Floats zero() { return vdupq_n_f32(0); }
    static SLIMDEPLOY_INLINE Floats multiply_add(Floats sum, Ints ints, Floats scale) {
        return vfmaq_f32(sum, vcvtq_f32_s32(ints), scale);
    }
    // bf16 is the upper half of a float.
    static SLIMDEPLOY_INLINE Floats widen_bf16(uint16x4_t words) {
        return vreinterpretq_f32_u32(vshll_n_u16(words, 16));
    }
    static SLIMDEPLOY_INLINE Floats load_bf16(const uint8_t *p) { return widen_bf16(vreinterpret_u16_u8(vld1_u8(p))); }
    static SLIMDEPLOY_INLINE Floats load_floats(const float *p) { return vld1q_f32(p); }
    static SLIMDEPLOY_INLINE void store_floats(float *p, Floats value) { vst1q_f32(p, value); }

    static SLIMDEPLOY_INLINE Units load_units(const uint32_t *p) { return vld1q_u32(p); }
    static SLIMDEPLOY_INLINE void store_units(uint32_t *p, Units units) { vst1q_u32(p, units); }
    static SLIMDEPLOY_INLINE Units broadcast_unit(const uint8_t *p) {
        uint32_t unit;
        memcpy(&unit, p, sizeof unit);
        return vdupq_n_u32(unit);
    }
    static SLIMDEPLOY_INLINE Ints dot_units(Ints sum, Units x, Units weights) {
        return vdotq_s32(sum, vreinterpretq_s8_u32(x), vreinterpretq_s8_u32(weights));
    }

    static SLIMDEPLOY_INLINE float32x4_t load_some(const float *x, size_t left) {
        if (left >= 4) return vld1q_f32(x);
        float some[4] = {};
        memcpy(some, x, left * sizeof(float));
        return vld1q_f32(some);
    }
    // Largest magnitude by bit pattern, so that infinity and NaN come out on top.
    static float round_int8(const float *x, size_t columns, size_t padded, void *out) {
        uint32x4_t most = vdupq_n_u32(0);
        for (size_t k = 0; k < columns; k += 4) {
            const uint32x4_t bits = vreinterpretq_u32_f32(load_some(x + k, columns - k));
            most = vmaxq_u32(most, vandq_u32(bits, vdupq_n_u32(0x7FFFFFFF)));
        }
        const Int8Rounding rounding(vmaxvq_u32(most));
        int8_t *bytes = static_cast<int8_t *>(out);
        for (size_t k = 0; k < padded; k += 8) {
            int16x4_t half[2];
            for (size_t i = 0; i < 2; i++) {
                const size_t column = k + 4 * i;
                const float32x4_t values = load_some(x + column, column < columns ? columns - column : 0);
                half[i] = vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(values, rounding.inverse)));
            }
            vst1_s8(bytes + k, vmovn_s16(vcombine_s16(half[0], half[1])));
        }
        return rounding.scale;
    }

    template <class Widen, RoundKernel kRound>
    struct ByFloats {
        using Activation = float;
        static constexpr RoundKernel round = kRound;
        static SLIMDEPLOY_INLINE Units units(const Words &words, int i, int v) {
            const uint16x8_t part = words.part[2 * i + v / 2];
            return vreinterpretq_u32_f32(v % 2 ? Widen::high(part) : Widen::low(part));
        }
        static SLIMDEPLOY_INLINE Floats dot_units(Floats sum, Units x, Units weights) {
            return vfmaq_f32(sum, vreinterpretq_f32_u32(x), vreinterpretq_f32_u32(weights));
        }
    };
    struct WidenFp16 {
        static SLIMDEPLOY_INLINE Floats low(uint16x8_t words) {
            return vcvt_f32_f16(vget_low_f16(vreinterpretq_f16_u16(words)));
        }
        static SLIMDEPLOY_INLINE Floats high(uint16x8_t words) {
            return vcvt_high_f32_f16(vreinterpretq_f16_u16(words));
        }
    };
    struct WidenBf16 {
        static SLIMDEPLOY_INLINE Floats low(uint16x8_t words) { return widen_bf16(vget_low_u16(words)); }
        static SLIMDEPLOY_INLINE Floats high(uint16x8_t words) { return widen_bf16(vget_high_u16(words)); }
    };
    using Fp16 = ByFloats<WidenFp16, copy_floats>;
    using Bf16 = ByFloats<WidenBf16, round_to_bf16>;
};

}  // namespace
}  // namespace slimdeploy

constexpr slimdeploy::KernelTable slimdeploy::neon_kernels = slimdeploy::make_table<slimdeploy::Neon>("neon");

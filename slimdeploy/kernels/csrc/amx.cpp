// AVX-512 with tile products (AMX) for prefill: int8, int4 and bf16 weights, and attention. fp16 weights and few rows
// of activations go as with AVX-512.
//
// The tests compile this file against tests/kernels/native/amx_emulation.h, which does in plain C++ what the manual
// says of each tile instruction.

#include "amx_attention.h"
#include "amx_tiles.h"
#include "avx512_bf16.h"
#include "tables.h"

namespace slimdeploy {
namespace {

struct Amx : Avx512Bf16 {
    static constexpr int kMostFused = 16;
    static constexpr int kPanelTile = 8;                    // of fp16; divides kTileRows
    static constexpr size_t kPanelCache = size_t(1) << 20;  // of 2 MB at the second level
};

constexpr int kRows = kCachedRows<Amx>;
constexpr size_t kRowBytes = kRows * 4;  // of sums and of units

static_assert(kRows == 2 * kTileRows, "a panel is two tiles wide");
static_assert(kTileRows % Amx::kPanelTile == 0, "activations are padded to whole tiles for all kinds of weights");

// A tile for `Kind`, whose `multiply` takes one or both halves of its rows of activations.
template <class ValueKind, int kStepBytes>
struct AmxTiles {
    using Kind = ValueKind;
    using Weights = Cached<Amx, Kind>;
    using Setup = Tiles<kStepBytes>;
    static constexpr int kTile = 2 * kTileRows, kStep = kStepBytes;
};

template <class Multiply, class Weights>
SLIMDEPLOY_INLINE void multiply_rows(const Weights &weights, const int32_t *starts, size_t columns, const uint8_t *x,
                                     size_t stride, size_t count, __m512 (&sum)[2 * kTileRows][2]) {
    Multiply::Setup::see_memory();
    if (count > size_t(kTileRows)) {
        Multiply::template multiply<true>(weights, starts, columns, x, stride, sum);
    } else {
        Multiply::template multiply<false>(weights, starts, columns, x, stride, sum);
    }
}

// Sums of int32 over a group of columns, each scaled and added to sums of floats.
template <class Stream>
    struct IntTiles : AmxTiles < IntKind<Amx, Stream>,
    Stream::kGroup<kTileBytes ? Stream::kGroup : kTileBytes> {
    using Base = AmxTiles < IntKind<Amx, Stream>, Stream::kGroup<kTileBytes ? Stream::kGroup : kTileBytes>;
    using Base::kTile, Base::kStep;
    using typename Base::Weights, typename Base::Setup;

    static SLIMDEPLOY_INLINE void tile(const Weights &weights, const int32_t *starts, size_t columns, const uint8_t *x,
                                       size_t stride, size_t count, __m512 (&sum)[kTile][2]) {
        multiply_rows<IntTiles>(weights, starts, columns, x, stride, count, sum);
    }
    template <bool kBoth>
    static SLIMDEPLOY_INLINE void multiply(const Weights &weights, const int32_t *starts, size_t columns,
                                           const uint8_t *x, size_t stride, __m512 (&sum)[kTile][2]) {
        alignas(64) int32_t products[kTile][kRows];
        for (int m = 0; m < kTile; m++) sum[m][0] = sum[m][1] = Amx::zero();
        const uint32_t *units = weights.units;
        const float *scales = weights.scales;
        for (size_t column = 0; column < columns; column += Stream::kGroup, scales += kRows) {
            Setup::zero();
            SLIMDEPLOY_UNROLL
            for (int step = 0; step < Stream::kGroup; step += kStep, x += kStep, units += kStep / 4 * kRows) {
                Setup::template load<kBoth>(x, stride, units, kRowBytes);
                Setup::template multiply_bytes<kBoth>();
            }
            Setup::template store_sums<kBoth>(products, kRowBytes);
            add_scaled<kBoth ? kTile : kTileRows>(products, starts, scales, sum);
        }
    }

   private:
    template <int kCount>
    static SLIMDEPLOY_INLINE void add_scaled(const int32_t (&products)[kTile][kRows], const int32_t *starts,
                                             const float *scales, __m512 (&sum)[kTile][2]) {
        const __m512 scale[2] = {Amx::load_floats(scales), Amx::load_floats(scales + kTileRows)};
        const __m512i start[2] = {Amx::load_ints(starts), Amx::load_ints(starts + kTileRows)};
        // All at once there would be more addresses than registers.
        _Pragma("GCC unroll 4") for (int m = 0; m < kCount; m++) {
            SLIMDEPLOY_UNROLL
            for (int half = 0; half < 2; half++) {
                const __m512i product = _mm512_load_si512(products[m] + half * kTileRows);
                sum[m][half] = Amx::multiply_add(sum[m][half], _mm512_add_epi32(product, start[half]), scale[half]);
            }
        }
    }
};

template <class Stream>
struct Bf16Tiles : AmxTiles<WordKind<Amx, Stream, Amx::Bf16>, kTileBytes> {
    using Base = AmxTiles<WordKind<Amx, Stream, Amx::Bf16>, kTileBytes>;
    using Base::kTile, Base::kStep;
    using typename Base::Weights, typename Base::Setup;

    static SLIMDEPLOY_INLINE void tile(const Weights &weights, const int32_t *starts, size_t columns, const uint8_t *x,
                                       size_t stride, size_t count, __m512 (&sum)[kTile][2]) {
        multiply_rows<Bf16Tiles>(weights, starts, columns, x, stride, count, sum);
    }
    template <bool kBoth>
    static SLIMDEPLOY_INLINE void multiply(const Weights &weights, const int32_t *, size_t columns, const uint8_t *x,
                                           size_t stride, __m512 (&sum)[kTile][2]) {
        const uint32_t *units = weights.units;
        Setup::zero();
        for (size_t i = 0; i < columns * 2 / kStep; i++, x += kStep, units += kStep / 4 * kRows) {
            Setup::template load<kBoth>(x, stride, units, kRowBytes);
            Setup::template multiply_bf16<kBoth>();
        }
        Setup::template store_sums<kBoth>(sum, kRowBytes);
    }
};

template <Structure kStructure>
constexpr void use_tiles(KernelTable &table) {
    fill_cached<Amx, IntTiles<Int8Stream<Amx, kStructure>>>(table, kInt8, kStructure);
    fill_cached<Amx, IntTiles<Int4Stream<Amx, kStructure, 128>>>(table, kInt4Group128, kStructure);
    fill_cached<Amx, IntTiles<Int4Stream<Amx, kStructure, 32>>>(table, kInt4Group32, kStructure);
    fill_cached<Amx, Bf16Tiles<WordStream<Amx, kStructure>>>(table, kBf16, kStructure);
}

constexpr KernelTable make_amx_table() {
    KernelTable table = make_table<Amx>("amx");
    use_tiles<kSparse>(table);
    use_tiles<kDense>(table);
    table.attention = attend_by_tiles;
    table.tile_rows = kTileRows;
    return table;
}

}  // namespace
}  // namespace slimdeploy

constexpr slimdeploy::KernelTable slimdeploy::amx_kernels = slimdeploy::make_amx_table();

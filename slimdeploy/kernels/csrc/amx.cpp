// AVX-512 with tile products (AMX) for prefill: int8, int4 and bf16 weights. fp16 weights and few rows of activations
// go as with AVX-512.
//
// This file has not run on a CPU that has AMX. The tests compile it against tests/kernels/native/amx_emulation.h, which
// does in plain C++ what the manual says of each tile instruction.

#include "avx512_bf16.h"
#include "tables.h"

#if defined(SLIMDEPLOY_EMULATED_TILES)
#include "amx_emulation.h"
#endif

namespace slimdeploy {
namespace {

struct Amx : Avx512Bf16 {
    static constexpr int kMostFused = 16;
    static constexpr int kPanelTile = 8;                    // of fp16; divides kTileRows
    static constexpr size_t kPanelCache = size_t(1) << 20;  // of 2 MB at the second level
};

constexpr int kTileRows = 16, kTileBytes = 64, kRows = kCachedRows<Amx>;

static_assert(kRows == 2 * kTileRows, "a panel is two tiles wide");
static_assert(kTileRows % Amx::kPanelTile == 0, "activations are padded to whole tiles for all kinds of weights");

// Tiles 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights: 2 x 2 products for 4 loads. kStep: bytes of activations
// that a tile holds in each row.
template <int kStep>
class Tiles {
   public:
    Tiles() {
        for (int tile = 0; tile < 8; tile++) {
            const bool activations = tile == 4 || tile == 5, weights = tile >= 6;
            shape_.row_bytes[tile] = uint16_t(activations ? kStep : kTileBytes);
            shape_.rows[tile] = uint8_t(weights ? kStep / 4 : kTileRows);
        }
        see_memory();
        _tile_loadconfig(&shape_);
    }
    ~Tiles() { _tile_release(); }
    Tiles(const Tiles &) = delete;
    Tiles &operator=(const Tiles &) = delete;

    // Tile instructions do not tell the compiler which memory they read: without this it may leave out stores to it.
    static SLIMDEPLOY_INLINE void see_memory() { __asm__ volatile("" ::: "memory"); }

    static SLIMDEPLOY_INLINE void zero() {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }

    template <bool kBoth>
    static SLIMDEPLOY_INLINE void load(const uint8_t *x, size_t stride, const uint32_t *units) {
        _tile_loadd(6, units, kRows * 4);
        _tile_loadd(7, units + kTileRows, kRows * 4);
        _tile_loadd(4, x, stride);
        if constexpr (kBoth) _tile_loadd(5, x + kTileRows * stride, stride);
    }

    // To rows of kRows sums.
    template <bool kBoth>
    static SLIMDEPLOY_INLINE void store(void *sums) {
        uint32_t *p = static_cast<uint32_t *>(sums);
        _tile_stored(0, p, kRows * 4);
        _tile_stored(1, p + kTileRows, kRows * 4);
        if constexpr (kBoth) {
            _tile_stored(2, p + kTileRows * kRows, kRows * 4);
            _tile_stored(3, p + kTileRows * kRows + kTileRows, kRows * 4);
        }
    }

   private:
    // As the instruction reads it.
    struct alignas(64) Shape {
        uint8_t palette = 1, first_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } shape_;
    static_assert(sizeof(Shape) == 64, "the instruction reads 64 bytes");
};

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
        constexpr int kCount = kBoth ? kTile : kTileRows;
        alignas(64) int32_t products[kCount][kRows];
        for (int m = 0; m < kTile; m++) sum[m][0] = sum[m][1] = Amx::zero();
        const uint32_t *units = weights.units;
        const float *scales = weights.scales;
        for (size_t column = 0; column < columns; column += Stream::kGroup, scales += kRows) {
            Setup::zero();
            for (int step = 0; step < Stream::kGroup; step += kStep, x += kStep, units += kStep / 4 * kRows) {
                Setup::template load<kBoth>(x, stride, units);
                _tile_dpbusd(0, 4, 6);
                _tile_dpbusd(1, 4, 7);
                if constexpr (kBoth) {
                    _tile_dpbusd(2, 5, 6);
                    _tile_dpbusd(3, 5, 7);
                }
            }
            Setup::template store<kBoth>(products);
            SLIMDEPLOY_UNROLL
            for (int half = 0; half < 2; half++) {
                const __m512 scale = Amx::load_floats(scales + half * kTileRows);
                const __m512i start = Amx::load_ints(starts + half * kTileRows);
                for (int m = 0; m < kCount; m++) {
                    const __m512i product = _mm512_load_si512(products[m] + half * kTileRows);
                    sum[m][half] = Amx::multiply_add(sum[m][half], _mm512_add_epi32(product, start), scale);
                }
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
            Setup::template load<kBoth>(x, stride, units);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if constexpr (kBoth) {
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        Setup::template store<kBoth>(sum);
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
    table.tile_rows = kTileRows;
    return table;
}

}  // namespace
}  // namespace slimdeploy

constexpr slimdeploy::KernelTable slimdeploy::amx_kernels = slimdeploy::make_amx_table();

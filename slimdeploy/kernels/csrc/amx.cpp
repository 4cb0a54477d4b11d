// AVX-512 with tile products (AMX) for prefill: int8, int4 and bf16 weights. fp16 weights and up to 8 rows of
// activations go as with AVX-512.
//
// This file has not run on a CPU that has AMX. The tests compile it against tests/kernels/native/amx_emulation.h, which
// does in plain C++ what the manual says of each tile instruction.

#include "avx512_bf16.h"
#include "avx512_gathered.h"
#include "tables.h"

#if defined(SLIMDEPLOY_EMULATED_TILES)
#include "amx_emulation.h"
#endif

namespace slimdeploy {
namespace {

struct Amx : Avx512Bf16 {
    static constexpr int kPanelTile = 8;  // of fp16; divides kTileRows
};

constexpr int kTileRows = 16, kTileBytes = 64;
constexpr int kPanelRows = Panel<Amx>::kRows;
// Weights of so many panels are decoded before they are multiplied: together they fill about half of the second-level
// cache, and activations, which may not fit there, are read once for all of them.
constexpr size_t kPanelsAtOnce = 4;

static_assert(kPanelRows == 2 * kTileRows, "a panel is two tiles wide");
static_assert(kTileRows % Amx::kPanelTile == 0, "activations are padded to whole tiles for all kinds of weights");

// Tiles 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights: 2 x 2 products for 4 loads.
class Tiles {
   public:
    // step_bytes: of activations that a tile holds in each row.
    explicit Tiles(int step_bytes) {
        for (int tile = 0; tile < 8; tile++) {
            const bool activations = tile == 4 || tile == 5, weights = tile >= 6;
            shape_.row_bytes[tile] = uint16_t(activations ? step_bytes : kTileBytes);
            shape_.rows[tile] = uint8_t(weights ? step_bytes / 4 : kTileRows);
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
        _tile_loadd(6, units, kPanelRows * 4);
        _tile_loadd(7, units + kTileRows, kPanelRows * 4);
        _tile_loadd(4, x, stride);
        if constexpr (kBoth) _tile_loadd(5, x + kTileRows * stride, stride);
    }

    // To rows of kPanelRows sums.
    template <bool kBoth>
    static SLIMDEPLOY_INLINE void store(void *sums) {
        uint32_t *p = static_cast<uint32_t *>(sums);
        _tile_stored(0, p, kPanelRows * 4);
        _tile_stored(1, p + kTileRows, kPanelRows * 4);
        if constexpr (kBoth) {
            _tile_stored(2, p + kTileRows * kPanelRows, kPanelRows * 4);
            _tile_stored(3, p + kTileRows * kPanelRows + kTileRows, kPanelRows * 4);
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

// Sums of int32 over a group of columns, each scaled and added to sums of floats.
template <class Stream>
struct IntTiles : IntPanel<Amx, Stream> {
    using Base = IntPanel<Amx, Stream>;
    static constexpr int kStep = Base::kGroup < kTileBytes ? Base::kGroup : kTileBytes;

    template <bool kBoth>
    static SLIMDEPLOY_INLINE void multiply(const Panel<Amx> &panel, size_t blocks, const uint8_t *x, size_t stride,
                                           __m512 (&sum)[2 * kTileRows][2]) {
        constexpr int kRows = kBoth ? 2 * kTileRows : kTileRows;
        alignas(64) int32_t products[kRows][kPanelRows];
        for (auto &row : sum) row[0] = row[1] = Amx::zero();
        const uint32_t *units = panel.units;
        const float *scales = panel.scales;
        for (size_t g = 0; g < blocks * (kBlockColumns / Base::kGroup); g++, scales += kPanelRows) {
            Tiles::zero();
            for (int step = 0; step < Base::kGroup; step += kStep, x += kStep, units += kStep / 4 * kPanelRows) {
                Tiles::load<kBoth>(x, stride, units);
                _tile_dpbusd(0, 4, 6);
                _tile_dpbusd(1, 4, 7);
                if constexpr (kBoth) {
                    _tile_dpbusd(2, 5, 6);
                    _tile_dpbusd(3, 5, 7);
                }
            }
            Tiles::store<kBoth>(products);
            SLIMDEPLOY_UNROLL
            for (int half = 0; half < 2; half++) {
                const __m512 scale = Amx::load_floats(scales + half * kTileRows);
                const __m512i start = Amx::load_ints(panel.starts + half * kTileRows);
                for (int m = 0; m < kRows; m++) {
                    const __m512i product = _mm512_load_si512(products[m] + half * kTileRows);
                    sum[m][half] = Amx::multiply_add(sum[m][half], _mm512_add_epi32(product, start), scale);
                }
            }
        }
    }
};

template <class Stream>
struct Bf16Tiles : WordPanel<Amx, Stream, Amx::Bf16> {
    static constexpr int kStep = kTileBytes;

    template <bool kBoth>
    static SLIMDEPLOY_INLINE void multiply(const Panel<Amx> &panel, size_t blocks, const uint8_t *x, size_t stride,
                                           __m512 (&sum)[2 * kTileRows][2]) {
        const uint32_t *units = panel.units;
        Tiles::zero();
        for (size_t i = 0; i < blocks * (2 * kBlockColumns / kStep); i++, x += kStep, units += kStep / 4 * kPanelRows) {
            Tiles::load<kBoth>(x, stride, units);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if constexpr (kBoth) {
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        Tiles::store<kBoth>(sum);
    }
};

int panel_rows(size_t left) { return left < size_t(kPanelRows) ? int(left) : kPanelRows; }

template <class Kind>
void tile_panels(const Matrix &w, const Activations &a, float *y, size_t begin, size_t end, void *scratch) {
    Panel<Amx> *panel = static_cast<Panel<Amx> *>(scratch);
    const Tiles tiles(Kind::kStep);
    for (size_t p = begin; p < end; p += kPanelsAtOnce) {
        const size_t panels = end - p < kPanelsAtOnce ? end - p : kPanelsAtOnce;
        const size_t n0 = p * kPanelRows, left = w.rows - n0;
        const size_t rows = left < panels * kPanelRows ? left : panels * kPanelRows;
        typename Kind::Row stream[kPanelsAtOnce * kPanelRows];
        for (size_t r = 0; r < rows; r += kPanelRows) {
            begin_panel<Amx, Kind>(w, n0 + r, panel_rows(rows - r), stream + r, panel[r / kPanelRows]);
        }
        const uint8_t *x = static_cast<const uint8_t *>(a.values);
        for (size_t slab = 0; slab < w.blocks; slab += kSlabBlocks) {
            const size_t blocks = w.blocks - slab < size_t(kSlabBlocks) ? w.blocks - slab : kSlabBlocks;
            for (size_t r = 0; r < rows; r += kPanelRows) {
                decode_panel<Amx, Kind>(stream + r, panel_rows(rows - r), blocks, panel[r / kPanelRows]);
            }
            Tiles::see_memory();
            for (size_t m0 = 0; m0 < a.count; m0 += 2 * kTileRows) {
                for (size_t i = 0; i < panels; i++) {
                    __m512 sum[2 * kTileRows][2];
                    if (a.count - m0 > size_t(kTileRows)) {
                        Kind::template multiply<true>(panel[i], blocks, x + m0 * a.stride, a.stride, sum);
                    } else {
                        Kind::template multiply<false>(panel[i], blocks, x + m0 * a.stride, a.stride, sum);
                    }
                    const bool last = slab + blocks == w.blocks;
                    write_tile<Amx, 2 * kTileRows>(w, a, y, m0, n0 + i * kPanelRows, Kind::kIntegers, slab == 0, last,
                                                   sum);
                }
            }
            x += blocks * Kind::kBlockUnits * 4;
        }
    }
}

template <Structure kStructure>
constexpr void use_tiles(KernelTable &table) {
    table.panel[kInt8][kStructure] = tile_panels<IntTiles<Int8Stream<Amx, kStructure>>>;
    table.panel[kInt4Group128][kStructure] = tile_panels<IntTiles<Int4Stream<Amx, kStructure, 128>>>;
    table.panel[kInt4Group32][kStructure] = tile_panels<IntTiles<Int4Stream<Amx, kStructure, 32>>>;
    table.panel[kBf16][kStructure] = tile_panels<Bf16Tiles<WordStream<Amx, kStructure>>>;
}

constexpr KernelTable make_amx_table() {
    KernelTable table = make_avx512_table<Amx>("amx");
    use_tiles<kUnstructured>(table);
    use_tiles<kFixedCount>(table);
    use_tiles<kDense>(table);
    table.tile_rows = kTileRows;
    table.panel_bytes = kPanelsAtOnce * sizeof(Panel<Amx>);
    return table;
}

}  // namespace
}  // namespace slimdeploy

constexpr slimdeploy::KernelTable slimdeploy::amx_kernels = slimdeploy::make_amx_table();

// AMX's registers: eight tiles of 16 rows of 64 bytes. Tiles 0 to 3 are sums, 4 and 5 rows of activations, 6 and 7
// columns of weights: 2 x 2 products for 4 loads.

#ifndef SLIMDEPLOY_AMX_TILES_H
#define SLIMDEPLOY_AMX_TILES_H

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "streams.h"

#if defined(SLIMDEPLOY_EMULATED_TILES)
#include "amx_emulation.h"
#endif

namespace slimdeploy {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64;

// kStep: bytes of activations that a tile holds in each row. kBoth: tile 5 and sums 2 and 3 too. Strides in bytes.
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

    // weights: rows of two tiles side by side.
    template <bool kBoth>
    static SLIMDEPLOY_INLINE void load(const void *x, size_t stride, const uint32_t *weights, size_t weights_stride) {
        _tile_loadd(6, weights, weights_stride);
        _tile_loadd(7, weights + kTileRows, weights_stride);
        _tile_loadd(4, x, stride);
        if constexpr (kBoth) _tile_loadd(5, static_cast<const uint8_t *>(x) + kTileRows * stride, stride);
    }

    template <bool kBoth>
    static SLIMDEPLOY_INLINE void multiply_bytes() {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        if constexpr (kBoth) {
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
    }
    template <bool kBoth>
    static SLIMDEPLOY_INLINE void multiply_bf16() {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (kBoth) {
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }

    // Sums: rows of 2 x 16, from memory and to it.
    template <bool kBoth>
    static SLIMDEPLOY_INLINE void load_sums(const float *sums, size_t stride) {
        _tile_loadd(0, sums, stride);
        _tile_loadd(1, sums + kTileRows, stride);
        if constexpr (kBoth) {
            _tile_loadd(2, sums + kTileRows * stride / sizeof(float), stride);
            _tile_loadd(3, sums + kTileRows * stride / sizeof(float) + kTileRows, stride);
        }
    }
    template <bool kBoth>
    static SLIMDEPLOY_INLINE void store_sums(void *sums, size_t stride) {
        uint8_t *p = static_cast<uint8_t *>(sums);
        _tile_stored(0, p, stride);
        _tile_stored(1, p + kTileBytes, stride);
        if constexpr (kBoth) {
            _tile_stored(2, p + kTileRows * stride, stride);
            _tile_stored(3, p + kTileRows * stride + kTileBytes, stride);
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

}  // namespace
}  // namespace slimdeploy

#endif

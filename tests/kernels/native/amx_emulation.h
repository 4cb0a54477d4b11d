// The tile instructions that amx.cpp uses, in plain C++, as the "Intel 64 and IA-32 Architectures Software
// Developer's Manual" describes them (LDTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED, TDPBUSD, TDPBF16PS).
// What would raise an exception on a CPU ends the program. It stands in for a CPU with AMX; it cannot show how one
// behaves.

#ifndef SLIMDEPLOY_AMX_EMULATION_H
#define SLIMDEPLOY_AMX_EMULATION_H

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace slimdeploy {
namespace {
namespace amx_emulation {

// The arithmetic runs on copies inside the registers below, so sanitizers have nothing to find in it and cost much.
#define SLIMDEPLOY_FAST __attribute__((optimize("O3"), no_sanitize("address", "undefined")))

constexpr int kTiles = 8, kMostRows = 16, kMostBytes = 64;

struct Registers {
    bool configured = false;
    int rows[kTiles] = {}, row_bytes[kTiles] = {};
    alignas(64) uint8_t data[kTiles][kMostRows][kMostBytes] = {};
};
thread_local Registers registers;

inline void require(bool condition, const char *what) {
    if (condition) return;
    fprintf(stderr, "AMX emulation: %s\n", what);
    abort();
}

inline void load_configuration(const void *memory) {
    uint8_t bytes[64];
    memcpy(bytes, memory, sizeof bytes);
    require(bytes[0] == 1, "the palette is not 1");
    require(bytes[1] == 0, "a load would start behind the first row");
    for (int i = 2; i < 16; i++) require(bytes[i] == 0, "a reserved byte is set");
    registers = Registers();
    for (int tile = 0; tile < 16; tile++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, bytes + 16 + 2 * tile, sizeof row_bytes);
        const uint8_t rows = bytes[48 + tile];
        if (tile >= kTiles) {
            require(!row_bytes && !rows, "palette 1 has 8 tiles");
            continue;
        }
        require(row_bytes <= kMostBytes && rows <= kMostRows, "a tile is too large");
        require((row_bytes == 0) == (rows == 0), "a tile has rows of no bytes, or no rows");
        registers.rows[tile] = rows;
        registers.row_bytes[tile] = row_bytes;
    }
    registers.configured = true;
}

inline void release() { registers = Registers(); }

inline void check(int tile) {
    require(registers.configured, "tiles are used without a configuration");
    require(registers.rows[tile] > 0, "a tile is used that the configuration leaves out");
}

inline void zero(int tile) {
    check(tile);
    memset(registers.data[tile], 0, sizeof registers.data[tile]);
}

// Rows and bytes that the configuration leaves out become zero.
inline void load(int tile, const void *base, long stride) {
    zero(tile);
    for (int row = 0; row < registers.rows[tile]; row++) {
        memcpy(registers.data[tile][row], static_cast<const uint8_t *>(base) + row * stride, registers.row_bytes[tile]);
    }
}

inline void store(int tile, void *base, long stride) {
    check(tile);
    for (int row = 0; row < registers.rows[tile]; row++) {
        memcpy(static_cast<uint8_t *>(base) + row * stride, registers.data[tile][row], registers.row_bytes[tile]);
    }
}

inline void check_product(int sum, int a, int b) {
    check(sum);
    check(a);
    check(b);
    require(sum != a && sum != b && a != b, "a product with the same tile twice");
    require(registers.rows[sum] == registers.rows[a], "sums and activations differ in rows");
    require(registers.row_bytes[sum] == registers.row_bytes[b], "sums and weights differ in columns");
    require(registers.row_bytes[a] == 4 * registers.rows[b], "activations and weights differ in depth");
}

// Unsigned bytes of a times signed bytes of b, four at a time, into int32.
SLIMDEPLOY_FAST inline void multiply_bytes(int sum, int a, int b) {
    check_product(sum, a, b);
    for (int m = 0; m < registers.rows[sum]; m++) {
        int32_t *out = reinterpret_cast<int32_t *>(registers.data[sum][m]);
        for (int k = 0; k < registers.rows[b]; k++) {
            const uint8_t *x = registers.data[a][m] + 4 * k;
            const int8_t *w = reinterpret_cast<const int8_t *>(registers.data[b][k]);
            for (int n = 0; n < registers.row_bytes[sum] / 4; n++) {
                for (int i = 0; i < 4; i++) out[n] += int32_t(x[i]) * w[4 * n + i];
            }
        }
    }
}

// Numbers below the normal range count as zero, going in and coming out.
SLIMDEPLOY_FAST inline float flushed(float value) {
    return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}

SLIMDEPLOY_FAST inline float bf16(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    const uint32_t bits = uint32_t(half) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return flushed(value);
}

// Pairs of bf16: the first of every pair have a sum of their own, and so have the second; both are added to the float
// at the end.
SLIMDEPLOY_FAST inline void multiply_bf16(int sum, int a, int b) {
    check_product(sum, a, b);
    for (int m = 0; m < registers.rows[sum]; m++) {
        float parts[2][kMostRows] = {};
        for (int k = 0; k < registers.rows[b]; k++) {
            for (int n = 0; n < registers.row_bytes[sum] / 4; n++) {
                for (int i = 0; i < 2; i++) {
                    const float x = bf16(registers.data[a][m] + 4 * k + 2 * i);
                    const float w = bf16(registers.data[b][k] + 4 * n + 2 * i);
                    parts[i][n] = flushed(parts[i][n] + x * w);
                }
            }
        }
        float *out = reinterpret_cast<float *>(registers.data[sum][m]);
        for (int n = 0; n < registers.row_bytes[sum] / 4; n++) {
            out[n] = flushed(out[n] + flushed(parts[0][n] + parts[1][n]));
        }
    }
}

}  // namespace amx_emulation
}  // namespace
}  // namespace slimdeploy

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define _tile_loadconfig(memory) amx_emulation::load_configuration(memory)
#define _tile_release() amx_emulation::release()
#define _tile_zero(tile) amx_emulation::zero(tile)
#define _tile_loadd(tile, base, stride) amx_emulation::load(tile, base, long(stride))
#define _tile_stored(tile, base, stride) amx_emulation::store(tile, base, long(stride))
#define _tile_dpbusd(sum, a, b) amx_emulation::multiply_bytes(sum, a, b)
#define _tile_dpbf16ps(sum, a, b) amx_emulation::multiply_bf16(sum, a, b)

#endif

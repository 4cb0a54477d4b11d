// Tables that spread kept values by a mask with a shuffle of 16 bytes, for CPUs that cannot expand by a mask. A byte of
// the mask stands for 8 columns; an index with its highest bit set gives zero (x86: by that bit, Arm: out of range).
//
// 16 columns of bytes: first[low byte] + second[high byte]. 8 columns of 16-bit words: words[byte].

#ifndef SLIMDEPLOY_EXPAND_H
#define SLIMDEPLOY_EXPAND_H

#include <cstdint>

namespace slimdeploy {
namespace {

struct ExpandTables {
    alignas(64) uint8_t first[256][16];   // 8 indices, then 8 times how many values they took
    alignas(64) uint8_t second[256][16];  // 8 zeros, then 8 indices
    alignas(64) uint8_t words[256][16];   // 8 pairs of indices
};

constexpr ExpandTables make_expand_tables() {
    ExpandTables tables{};
    for (int mask = 0; mask < 256; mask++) {
        uint8_t kept = 0;
        for (int i = 0; i < 8; i++) {
            const bool keeps = mask >> i & 1;
            const uint8_t index = keeps ? kept : 0x80;
            tables.first[mask][i] = tables.second[mask][8 + i] = index;
            tables.words[mask][2 * i] = keeps ? uint8_t(2 * kept) : 0x80;
            tables.words[mask][2 * i + 1] = keeps ? uint8_t(2 * kept + 1) : 0x80;
            kept = uint8_t(kept + keeps);
        }
        for (int i = 8; i < 16; i++) tables.first[mask][i] = kept;
    }
    return tables;
}

constexpr ExpandTables kExpand = make_expand_tables();

}  // namespace
}  // namespace slimdeploy

#endif

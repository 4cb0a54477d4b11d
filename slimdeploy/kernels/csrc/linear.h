// y = x W^T over the layout of layout.h, written once for all instruction sets.
//
// `Isa` supplies vectors and a few operations on them (see portable.cpp for the plainest one):
//
//     kLanes, kOffset          32-bit lanes of a vector; what is added to int8 activations when they are stored
//     Chunk, Bytes             64 int8 weights; 64 activations, or a pointer to them where registers are few
//     Ints, Floats, Units      a vector of int32, of float, of 32 bits that hold 4 bytes, 2 words or a float
//     Words                    32 weights of 16 bits
//     Few                      expand, expand_low and expand_high for masks of at most 32 bits
//
//     expand, expand_low, expand_high (mask, values)   64 weights spread by a mask, from int8, low or high nibbles
//     load, load_low, load_high (values)               64 weights that are all there
//     expand16, load16                                 the same for Words
//     load_bytes (activations)                         Bytes
//     dot (ints, bytes, chunk)                         adds 64 products, in any lanes
//     dot_by_32 (floats, start, bytes, chunk, scales)  the same with a scale for each half; sums of integers begin at
//     start load_scales                                      two scales, each in all lanes multiply_add (floats, ints,
//     scale), total        floats + ints * scale; the sum of all lanes zero, broadcast_ints, load_ints, load_floats,
//     store_floats round_int8                                       a RoundKernel Bf16, Fp16               arithmetic
//     with Words: Activation, round, dot (floats, activations, words), store and
//                              dot_units for panels
//
//     kPanelVectors, kPanelTile, kPanelCache   rows of a panel, in vectors; rows of activations of a tile; bytes of
//     cache
//                                              for decoded panels
//     store (units, chunk), load_units, broadcast_unit, dot_units (ints, activations, weights)
//
// Everything is in an unnamed namespace: see layout.h.

#ifndef SLIMDEPLOY_LINEAR_H
#define SLIMDEPLOY_LINEAR_H

#include "attention.h"
#include "fused.h"
#include "panels.h"
#include "rounding.h"

namespace slimdeploy {
namespace {

// The table is a constant: code that ran when the library is loaded, before anyone asked what the CPU has, would be
// compiled for this instruction set.

template <class Product>
constexpr void fill_fused(FusedKernel (&kernels)[kFusedSizes]) {
    kernels[kOneByTwo] = fused<Product, 2, 1>;
    kernels[kOneByFour] = fused<Product, 4, 1>;
    kernels[kTwo] = fused<Product, 2, 2>;
    kernels[kFour] = fused<Product, 2, 4>;
    kernels[kEight] = fused<Product, 1, 8>;
}

template <class Isa, class Kind>
constexpr void fill_panels(KernelTable &table, ValueKind kind, Structure structure) {
    const size_t bytes = panels_at_once<Isa, Kind>() * sizeof(typename Kind::Panel);
    table.panel[kind][structure] = panels<Isa, Kind>;
    table.panel_bytes = bytes > table.panel_bytes ? bytes : table.panel_bytes;
}

template <class Isa, Structure kStructure>
constexpr void fill_structure(KernelTable &table) {
    using Int8 = Int8Stream<Isa, kStructure>;
    using Int4 = Int4Stream<Isa, kStructure, 128>;
    using Int4By32 = Int4Stream<Isa, kStructure, 32>;
    using Words = WordStream<Isa, kStructure>;
    fill_fused<IntProduct<Isa, Int8>>(table.fused[kInt8][kStructure]);
    fill_fused<IntProduct<Isa, Int4>>(table.fused[kInt4Group128][kStructure]);
    fill_fused<IntProduct<Isa, Int4By32>>(table.fused[kInt4Group32][kStructure]);
    fill_fused<WordProduct<Isa, Words, typename Isa::Bf16>>(table.fused[kBf16][kStructure]);
    fill_fused<WordProduct<Isa, Words, typename Isa::Fp16>>(table.fused[kFp16][kStructure]);
    fill_panels<Isa, IntPanel<Isa, Int8>>(table, kInt8, kStructure);
    fill_panels<Isa, IntPanel<Isa, Int4>>(table, kInt4Group128, kStructure);
    fill_panels<Isa, IntPanel<Isa, Int4By32>>(table, kInt4Group32, kStructure);
    fill_panels<Isa, WordPanel<Isa, Words, typename Isa::Bf16>>(table, kBf16, kStructure);
    fill_panels<Isa, WordPanel<Isa, Words, typename Isa::Fp16>>(table, kFp16, kStructure);
}

template <class Isa>
constexpr KernelTable make_table(const char *name) {
    KernelTable table{};
    table.name = name;
    fill_structure<Isa, kUnstructured>(table);
    fill_structure<Isa, kFixedCount>(table);
    fill_structure<Isa, kDense>(table);
    for (int kind = 0; kind < kValueKinds; kind++) {
        table.round[kind] = Isa::round_int8;
        table.activation_bytes[kind] = 1;
    }
    table.attention = attend<Isa>;
    table.offset = Isa::kOffset;
    table.round[kBf16] = Isa::Bf16::round;
    table.activation_bytes[kBf16] = sizeof(typename Isa::Bf16::Activation);
    table.round[kFp16] = Isa::Fp16::round;
    table.activation_bytes[kFp16] = sizeof(typename Isa::Fp16::Activation);
    table.panel_rows = kPanelRows<Isa>;
    table.tile_rows = Isa::kPanelTile;
    return table;
}

}  // namespace
}  // namespace slimdeploy

#endif

// y = x W^T over the layout of layout.h, written once for all instruction sets.
//
// `Isa` supplies vectors and a few operations on them (see portable.cpp for the plainest one):
//
//     kLanes, kOffset          32-bit lanes of a vector; what is added to int8 activations when they are stored
//     Chunk, Words             64 int8 weights; 32 weights of 16 bits
//     Ints, Floats, Units      a vector of int32, of float, of 32 bits that hold 4 bytes, 2 words or a float
//
//     expand, expand_low, expand_high (mask, values)   a Chunk spread by a mask, from int8, low or high nibbles
//     load, load_low, load_high (values)               one that is all there
//     expand16, load16                                 the same for Words
//     units (chunk, v)                                 its part of the rows of vector v
//     load_units, store_units, broadcast_unit, load_ints, zero, load_floats, store_floats, load_bf16
//     dot_units (ints, activations, weights), add, multiply_add (floats, ints, scale)
//     round_int8               a RoundKernel
//     Bf16, Fp16               arithmetic with Words: Activation, round, units (words, i, v), the i-th unit of a row,
//                              and dot_units (floats, activations, weights)
//
//     kFusedSizes, kMostFused  see KernelTable
//     kPanelVectors, kPanelTile   rows of the weight, in vectors, and of activations that a tile has
//     kPanelCache                 bytes of cache for decoded panels
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

template <class Isa, class Kind, int kSize = 0>
constexpr void fill_fused(FusedKernel (&kernels)[kFusedSizes]) {
    if constexpr (kSize < Isa::kFusedSizes) {
        kernels[kSize] = fused<Isa, Kind, kFusedRows[kSize]>;
        fill_fused<Isa, Kind, kSize + 1>(kernels);
    }
}

template <class Isa, class Tiles>
constexpr void fill_cached(KernelTable &table, ValueKind kind, Structure structure) {
    using Kind = typename Tiles::Kind;
    const size_t bytes = cached_at_once<Isa, Kind>() * sizeof(Cached<Isa, Kind>);
    table.cached[kind][structure] = cached_panels<Isa, Tiles>;
    table.scratch_bytes = bytes > table.scratch_bytes ? bytes : table.scratch_bytes;
}

template <class Isa, class Kind>
constexpr void fill_kind(KernelTable &table, ValueKind kind, Structure structure) {
    fill_fused<Isa, Kind>(table.fused[kind][structure]);
    fill_cached<Isa, VectorTiles<Isa, Kind>>(table, kind, structure);
}

template <class Isa, Structure kStructure>
constexpr void fill_structure(KernelTable &table) {
    using Words = WordStream<Isa, kStructure>;
    fill_kind<Isa, IntKind<Isa, Int8Stream<Isa, kStructure>>>(table, kInt8, kStructure);
    fill_kind<Isa, IntKind<Isa, Int4Stream<Isa, kStructure, 128>>>(table, kInt4Group128, kStructure);
    fill_kind<Isa, IntKind<Isa, Int4Stream<Isa, kStructure, 32>>>(table, kInt4Group32, kStructure);
    fill_kind<Isa, WordKind<Isa, Words, typename Isa::Bf16>>(table, kBf16, kStructure);
    fill_kind<Isa, WordKind<Isa, Words, typename Isa::Fp16>>(table, kFp16, kStructure);
}

template <class Isa>
constexpr KernelTable make_table(const char *name) {
    KernelTable table{};
    table.name = name;
    fill_structure<Isa, kSparse>(table);
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
    table.fused_sizes = Isa::kFusedSizes;
    table.most_fused = Isa::kMostFused;
    table.cached_panels = kCachedRows<Isa> / kPanelRows;
    table.tile_rows = Isa::kPanelTile;
    return table;
}

}  // namespace
}  // namespace slimdeploy

#endif

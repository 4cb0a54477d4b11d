// The tables of kernels, one for each instruction set.

#ifndef SLIMDEPLOY_TABLES_H
#define SLIMDEPLOY_TABLES_H

#include "layout.h"

namespace slimdeploy {

extern const KernelTable amx_kernels, avx512_bf16_kernels, avx512_kernels, avx2_vnni_kernels, avx2_kernels,
    neon_kernels, portable_kernels;

}  // namespace slimdeploy

#endif

#include "avx512_bf16.h"

#include "tables.h"

constexpr slimdeploy::KernelTable slimdeploy::avx512_bf16_kernels =
    slimdeploy::make_table<slimdeploy::Avx512Bf16>("avx512_bf16");

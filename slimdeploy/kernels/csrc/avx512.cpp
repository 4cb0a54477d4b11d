#include "avx512.h"

#include "tables.h"

constexpr slimdeploy::KernelTable slimdeploy::avx512_kernels = slimdeploy::make_table<slimdeploy::Avx512>("avx512");

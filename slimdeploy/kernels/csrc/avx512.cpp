#include "avx512_gathered.h"
#include "tables.h"

constexpr slimdeploy::KernelTable slimdeploy::avx512_kernels =
    slimdeploy::make_avx512_table<slimdeploy::Avx512>("avx512");

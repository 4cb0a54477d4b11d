// Stands in for dispatch.cpp in the driver: AMX and AVX2 with VNNI are offered where a CPU can run their stand-ins
// (amx_emulation.h, and the AVX-512 form of the VNNI instruction), which need AVX-512 alone.

#include <cstring>
#include <string>

#include "tables.h"
#include "weight.h"

namespace slimdeploy {
namespace {

struct Candidate {
    const KernelTable *kernels;
    bool supported;
};

#if defined(__x86_64__)
const bool kAvx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
const bool kAvx512 = __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512vnni");
const bool kAvx512Bf16 = kAvx512 && __builtin_cpu_supports("avx512bf16");
#endif

const Candidate kCandidates[] = {
#if defined(__x86_64__)
    {&amx_kernels, kAvx512Bf16},   {&avx512_bf16_kernels, kAvx512Bf16}, {&avx512_kernels, kAvx512},
    {&avx2_vnni_kernels, kAvx512}, {&avx2_kernels, kAvx2},
#elif defined(__aarch64__)
    {&neon_kernels, true},
#endif
    {&portable_kernels, true},
};

}  // namespace

const KernelTable &find_kernels(const char *name) {
    for (const Candidate &candidate : kCandidates) {
        if (candidate.supported && (!name || !strcmp(name, candidate.kernels->name))) return *candidate.kernels;
    }
    throw InvalidInput(std::string("there are no kernels for '") + name + "' here");
}

}  // namespace slimdeploy

extern "C" const char *slimdeploy_instruction_set(int32_t index, int32_t *supported) {
    constexpr int32_t count = sizeof slimdeploy::kCandidates / sizeof slimdeploy::kCandidates[0];
    if (index < 0 || index >= count) return nullptr;
    *supported = slimdeploy::kCandidates[index].supported;
    return slimdeploy::kCandidates[index].kernels->name;
}

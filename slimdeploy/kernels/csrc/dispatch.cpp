// Which instruction sets this build and this CPU have.

#include <cstring>
#include <string>

#include "tables.h"
#include "weight.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(SLIMDEPLOY_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace slimdeploy {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("avx512vnni");
}
bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// Leaf 7, of which __builtin_cpu_supports does not know every bit in all compilers that we support.
struct Leaf7 {
    uint32_t edx = 0, eax1 = 0;
    Leaf7() {
        uint32_t a, b, c, d;
        __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
        edx = d;
        if (a >= 1) {
            __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(1));
            eax1 = a;
        }
    }
};
bool has_avx2_vnni() { return has_avx2() && (Leaf7().eax1 >> 4 & 1); }

#if defined(SLIMDEPLOY_HAS_AMX)
// The kernel hands out tile registers on request only (Linux, arch_prctl(2): ARCH_REQ_XCOMP_PERM for XTILEDATA).
bool has_amx() {
    const uint32_t edx = Leaf7().edx;
    const bool tiles = (edx >> 24 & 1) && (edx >> 25 & 1) && (edx >> 22 & 1);  // TILE, INT8, BF16
    return tiles && has_avx512_bf16() && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
#endif
#endif

#if defined(SLIMDEPLOY_HAS_NEON)
bool has_neon_dot_product() { return getauxval(AT_HWCAP) & (1ul << 20); }  // HWCAP_ASIMDDP
#endif

bool always() { return true; }

struct Candidate {
    const KernelTable *kernels;
    bool (*supported)();
};

const Candidate kCandidates[] = {
#if defined(SLIMDEPLOY_HAS_AMX)
    {&amx_kernels, has_amx},
#endif
#if defined(SLIMDEPLOY_HAS_AVX512_BF16)
    {&avx512_bf16_kernels, has_avx512_bf16},
#endif
#if defined(SLIMDEPLOY_HAS_AVX512)
    {&avx512_kernels, has_avx512},
#endif
#if defined(SLIMDEPLOY_HAS_AVX2_VNNI)
    {&avx2_vnni_kernels, has_avx2_vnni},
#endif
#if defined(SLIMDEPLOY_HAS_AVX2)
    {&avx2_kernels, has_avx2},
#endif
#if defined(SLIMDEPLOY_HAS_NEON)
    {&neon_kernels, has_neon_dot_product},
#endif
    {&portable_kernels, always},
};

}  // namespace

const KernelTable &find_kernels(const char *name) {
    for (const Candidate &candidate : kCandidates) {
        if (name && strcmp(name, candidate.kernels->name)) continue;
        if (candidate.supported()) return *candidate.kernels;
        if (name) throw InvalidInput(std::string("this CPU has no instruction set '") + name + "'");
    }
    throw InvalidInput(std::string("there are no kernels for '") + name + "' in this build");
}

}  // namespace slimdeploy

extern "C" const char *slimdeploy_instruction_set(int32_t index, int32_t *supported) {
    constexpr int32_t count = sizeof slimdeploy::kCandidates / sizeof slimdeploy::kCandidates[0];
    if (index < 0 || index >= count) return nullptr;
    *supported = slimdeploy::kCandidates[index].supported();
    return slimdeploy::kCandidates[index].kernels->name;
}

// AVX2 with VNNI products of bytes (AVX-VNNI, which CPUs without AVX-512 have): activations are stored as uint8 with an
// offset of 128.

#include "avx2.h"
#include "tables.h"

namespace slimdeploy {
namespace {

struct VnniProducts {
    static constexpr int kOffset = 128;

    // Not by its intrinsic: see avx512.h.
    static SLIMDEPLOY_INLINE __m256i add(__m256i sum, __m256i x, __m256i weights) {
#if defined(SLIMDEPLOY_VNNI_OF_AVX512)
        // The same operation as AVX-512 encodes it, so that tests can run this file on a CPU that has only that.
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(weights));
#else
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(weights));
#endif
        return sum;
    }
};

}  // namespace
}  // namespace slimdeploy

constexpr slimdeploy::KernelTable slimdeploy::avx2_vnni_kernels =
    slimdeploy::make_table<slimdeploy::Avx2<slimdeploy::VnniProducts>>("avx2_vnni");

// AVX2 with VNNI products of bytes (AVX-VNNI, which CPUs without AVX-512 have): activations are stored as uint8 with an
// offset of 128.

#include "avx2.h"
#include "tables.h"

namespace slimdeploy {
namespace {

struct VnniProducts {
    static constexpr int kOffset = 128;

    static SLIMDEPLOY_INLINE __m256i add(__m256i sum, __m256i x, __m256i weights) {
#if defined(SLIMDEPLOY_VNNI_OF_AVX512)
        // The same operation as AVX-512 encodes it, so that tests can run this file on a CPU that has only that.
        return _mm256_dpbusd_epi32(sum, x, weights);
#else
        return _mm256_dpbusd_avx_epi32(sum, x, weights);
#endif
    }
};

}  // namespace
}  // namespace slimdeploy

constexpr slimdeploy::KernelTable slimdeploy::avx2_vnni_kernels =
    slimdeploy::make_table<slimdeploy::Avx2<slimdeploy::VnniProducts>>("avx2_vnni");

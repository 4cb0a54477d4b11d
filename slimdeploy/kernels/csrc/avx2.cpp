// AVX2 without VNNI: activations are stored as int8, and products of signed bytes go through |w| and x with w's sign.

#include "avx2.h"

#include "tables.h"

namespace slimdeploy {
namespace {

struct SignedProducts {
    static constexpr int kOffset = 0;

    // A pair of products is at most 2 * 128 * 127, which 16 bits hold.
    static SLIMDEPLOY_INLINE __m256i add(__m256i sum, __m256i x, __m256i weights) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
};

}  // namespace
}  // namespace slimdeploy

constexpr slimdeploy::KernelTable slimdeploy::avx2_kernels =
    slimdeploy::make_table<slimdeploy::Avx2<slimdeploy::SignedProducts>>("avx2");

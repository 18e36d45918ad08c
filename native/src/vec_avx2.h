// Vectors of 8 floats. Every operation here is one IEEE operation per lane, the same as in vec_avx512.h.
#pragma once
#include <immintrin.h>

#include "table_bytes.h"

namespace shoal::SHOAL_ISA {

constexpr int W = 8;
using F = __m256;
using I = __m256i;

inline F load(const float* p) {
    return _mm256_loadu_ps(p);
}
inline void store(float* p, F v) {
    _mm256_storeu_ps(p, v);
}
inline F all(float x) {
    return _mm256_set1_ps(x);
}
inline F zero() {
    return _mm256_setzero_ps();
}
inline F fma(F a, F b, F c) {
    return _mm256_fmadd_ps(a, b, c);
}
inline F add(F a, F b) {
    return _mm256_add_ps(a, b);
}
inline F sub(F a, F b) {
    return _mm256_sub_ps(a, b);
}
inline F mul(F a, F b) {
    return _mm256_mul_ps(a, b);
}
inline F div(F a, F b) {
    return _mm256_div_ps(a, b);
}
inline F max(F a, F b) {
    return _mm256_max_ps(a, b);
}
inline F min(F a, F b) {
    return _mm256_min_ps(a, b);
}
inline F nearest(F a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline F abs(F a) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
// a where x < y, else b
inline F if_less(F x, F y, F a, F b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
}
// v where first <= lane number < last, else other
inline F inside(F v, F other, int first, int last) {
    const I lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const I from = _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(first - 1));
    const I to = _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane);
    return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(_mm256_and_si256(from, to)));
}
template <int H>
inline F swapped(F v) {  // lane i has what lane i ^ H had
    if constexpr (H == 4) return _mm256_permute2f128_ps(v, v, 1);
    return _mm256_permute_ps(v, H == 1 ? 0xb1 : 0x4e);
}
// 2ⁿ for whole n from −126 to 127
inline F power_of_two(F n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline F half_to_float(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void float_to_half(uint16_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F bf16_to_float(const uint16_t* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline F int8_to_float(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline I words(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline F uint8_to_float(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
// The low halves of W bytes, and the high ones.
inline void nibbles_to_float(const uint8_t* p, float* low, float* high) {
    const __m128i both = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), mask = _mm_set1_epi8(15);
    store(low, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_and_si128(both, mask))));
    store(high, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(both, 4), mask))));
}
inline F rounded_to_half(F v) {
    return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
template <int N>
inline I right(I w) {
    return _mm256_srli_epi32(w, N);
}
template <int N>
inline I left(I w) {
    return _mm256_slli_epi32(w, N);
}
inline I both(I a, I b) {
    return _mm256_and_si256(a, b);
}
inline I or_masked(I a, I b, I mask) {  // a | (b & mask)
    return _mm256_or_si256(a, _mm256_and_si256(b, mask));
}
inline I minus(I a, I b) {
    return _mm256_sub_epi32(a, b);
}
inline F to_float(I v) {
    return _mm256_cvtepi32_ps(v);
}
template <int J>
inline I byte_of(I w) {
    return J == 3 ? _mm256_srli_epi32(w, 24) : _mm256_and_si256(right<8 * J>(w), _mm256_set1_epi32(255));
}
// Sixteen numbers, by the low four bits of a word: slower here than arithmetic, where that will do.
constexpr bool kLooksUp = false;
class LookUp {
public:
    explicit LookUp(const float* numbers)
        : low_(numbers ? load(numbers) : zero()), high_(numbers ? load(numbers + W) : zero()) {}
    F operator()(I words) const {
        const F bit = _mm256_castsi256_ps(_mm256_slli_epi32(words, 28));
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low_, words), _mm256_permutevar8x32_ps(high_, words), bit);
    }

private:
    F low_, high_;
};
inline F low_half(I w) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
inline F high_half(I w) {
    return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline float largest(F v) {
    const __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 b = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}
inline float total_of(F v) {  // in no stated order: for what is exact
    const __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 b = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

// Integers: exact, so that their order is free. `add_products` adds four products of bytes of w (unsigned) and x
// (signed).
inline I no_sum() {
    return _mm256_setzero_si256();
}
inline I all_words(int32_t x) {
    return _mm256_set1_epi32(x);
}
inline F minus_to_float(I v, int32_t x) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(v, _mm256_set1_epi32(x)));
}
inline I add_products(I sum, I w, I x) {  // w at most 127: pairs fit 16 bits
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
inline I add_wide_products(I sum, I w, I x) {
    const I less = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    return add_products(sum, _mm256_abs_epi8(less), _mm256_sign_epi8(x, less));
}
constexpr int32_t kWideZero = 128;  // what `add_wide_products` takes off each byte of w
// Sixteen whole numbers from −128 to 127 by the low four bits of a byte, with 128 added.
class Bytes {
public:
    explicit Bytes(const float* numbers) : bytes_(_mm256_broadcastsi128_si256(bytes_of(numbers))) {}
    I operator()(I codes) const { return _mm256_shuffle_epi8(bytes_, codes); }

private:
    I bytes_;
};
inline void store_int8(int8_t* p, F v) {
    const __m256i words = _mm256_cvtps_epi32(v);
    const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(shorts, shorts));
}

// The sum of 16 floats as a tree of halves: i + 8, i + 4, i + 2, i + 1.
inline float sum16(const F* v) {
    const F b = add(v[0], v[1]);
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
// The sum of 64 floats as a tree of halves: i + 32, i + 16, … i + 1.
inline float sum64(const F* v) {
    const F low = add(add(v[0], v[4]), add(v[2], v[6])), high = add(add(v[1], v[5]), add(v[3], v[7]));
    const F b = add(low, high);
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
inline float max64(const F* v) {
    return largest(max(max(max(v[0], v[4]), max(v[2], v[6])), max(max(v[1], v[5]), max(v[3], v[7]))));
}

}  // namespace shoal::SHOAL_ISA

// Vectors of 16 floats. Every operation here is one IEEE operation per lane, the same as in vec_avx2.h.
#pragma once
#include <immintrin.h>

#include "table_bytes.h"

namespace shoal::SHOAL_ISA {

constexpr int W = 16;
using F = __m512;
using I = __m512i;

inline F load(const float* p) {
    return _mm512_loadu_ps(p);
}
inline void store(float* p, F v) {
    _mm512_storeu_ps(p, v);
}
inline F all(float x) {
    return _mm512_set1_ps(x);
}
inline F zero() {
    return _mm512_setzero_ps();
}
inline F fma(F a, F b, F c) {
    return _mm512_fmadd_ps(a, b, c);
}
inline F add(F a, F b) {
    return _mm512_add_ps(a, b);
}
inline F sub(F a, F b) {
    return _mm512_sub_ps(a, b);
}
inline F mul(F a, F b) {
    return _mm512_mul_ps(a, b);
}
inline F div(F a, F b) {
    return _mm512_div_ps(a, b);
}
inline F max(F a, F b) {
    return _mm512_max_ps(a, b);
}
inline F min(F a, F b) {
    return _mm512_min_ps(a, b);
}
inline F nearest(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline F abs(F a) {
    return _mm512_abs_ps(a);
}
// a where x < y, else b
inline F if_less(F x, F y, F a, F b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
}
// v where first <= lane number < last, else other
inline F inside(F v, F other, int first, int last) {
    const unsigned below = last >= W ? 0xffffu : last <= 0 ? 0u : (1u << last) - 1;
    const unsigned under = first <= 0 ? 0u : first >= W ? 0xffffu : (1u << first) - 1;
    return _mm512_mask_blend_ps(static_cast<__mmask16>(below & ~under), other, v);
}
template <int H>
inline F swapped(F v) {  // lane i has what lane i ^ H had
    if constexpr (H >= 4) return _mm512_shuffle_f32x4(v, v, H == 4 ? 0xb1 : 0x4e);
    return _mm512_permute_ps(v, H == 1 ? 0xb1 : 0x4e);
}
// 2ⁿ for whole n from −126 to 127
inline F power_of_two(F n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline F half_to_float(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void float_to_half(uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F bf16_to_float(const uint16_t* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline F int8_to_float(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline I words(const void* p) {
    return _mm512_loadu_si512(p);
}
inline F uint8_to_float(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// The low halves of W bytes, and the high ones.
inline void nibbles_to_float(const uint8_t* p, float* low, float* high) {
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), mask = _mm_set1_epi8(15);
    store(low, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(both, mask))));
    store(high, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_and_si128(_mm_srli_epi16(both, 4), mask))));
}
inline F rounded_to_half(F v) {
    return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
template <int N>
inline I right(I w) {
    return _mm512_srli_epi32(w, N);
}
template <int N>
inline I left(I w) {
    return _mm512_slli_epi32(w, N);
}
inline I both(I a, I b) {
    return _mm512_and_si512(a, b);
}
inline I or_masked(I a, I b, I mask) {  // a | (b & mask)
    return _mm512_ternarylogic_epi32(a, b, mask, 0xf8);
}
inline I minus(I a, I b) {
    return _mm512_sub_epi32(a, b);
}
inline F to_float(I v) {
    return _mm512_cvtepi32_ps(v);
}
template <int J>
inline I byte_of(I w) {
    return J == 3 ? _mm512_srli_epi32(w, 24) : _mm512_and_si512(right<8 * J>(w), _mm512_set1_epi32(255));
}
// Sixteen numbers, by the low four bits of a word: as fast as anything else that makes floats of few bits.
constexpr bool kLooksUp = true;
class LookUp {
public:
    explicit LookUp(const float* numbers) : numbers_(numbers ? load(numbers) : zero()) {}
    F operator()(I words) const { return _mm512_permutexvar_ps(words, numbers_); }

private:
    F numbers_;
};
inline F low_half(I w) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
inline F high_half(I w) {
    return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline float largest(F v) {
    return _mm512_reduce_max_ps(v);
}
inline float total_of(F v) {
    return _mm512_reduce_add_ps(v);
}  // in no stated order: for what is exact

// Integers: exact, so that their order is free. `add_products` adds four products of bytes of w (unsigned) and x
// (signed).
inline I no_sum() {
    return _mm512_setzero_si512();
}
inline I all_words(int32_t x) {
    return _mm512_set1_epi32(x);
}
inline F minus_to_float(I v, int32_t x) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(v, _mm512_set1_epi32(x)));
}
inline I add_products(I sum, I w, I x) {
    return _mm512_dpbusd_epi32(sum, w, x);
}
inline I add_wide_products(I sum, I w, I x) {
    return _mm512_dpbusd_epi32(sum, w, x);
}
constexpr int32_t kWideZero = 0;  // what `add_wide_products` takes off each byte of w
// Sixteen whole numbers from −128 to 127 by the low four bits of a byte, with 128 added.
class Bytes {
public:
    explicit Bytes(const float* numbers) : bytes_(_mm512_broadcast_i32x4(bytes_of(numbers))) {}
    I operator()(I codes) const { return _mm512_shuffle_epi8(bytes_, codes); }

private:
    I bytes_;
};
inline void store_int8(int8_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}

// The sum of 16 floats as a tree of halves: i + 8, i + 4, i + 2, i + 1.
inline float sum16(const F* v) {
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(v[0]), _mm512_extractf32x8_ps(v[0], 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
// The sum of 64 floats as a tree of halves: i + 32, i + 16, … i + 1.
inline float sum64(const F* v) {
    const F a = add(add(v[0], v[2]), add(v[1], v[3]));
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
inline float max64(const F* v) {
    return _mm512_reduce_max_ps(max(max(v[0], v[2]), max(v[1], v[3])));
}

}  // namespace shoal::SHOAL_ISA

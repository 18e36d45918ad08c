// A table of sixteen numbers as bytes, which both widths of vectors look up. Included once per instruction set.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace shoal::SHOAL_ISA {

// Sixteen numbers from −128 to 127 as bytes, with 128 added; zeros where there are none.
inline __m128i bytes_of(const float* numbers) {
    alignas(16) uint8_t bytes[16] = {};
    for (int i = 0; numbers && i < 16; ++i) bytes[i] = static_cast<uint8_t>(static_cast<int>(numbers[i]) + 128);
    return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}
constexpr int32_t kTableZero = 128;

}  // namespace shoal::SHOAL_ISA

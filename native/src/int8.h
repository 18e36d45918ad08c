// Products of quantized weights with inputs rounded to 8 bits, per row and group. Integer sums are exact, and a row's
// scales are its own: rows stay exact. Included once per instruction set.
#pragma once

namespace shoal::SHOAL_ISA {

// 4-bit words: inputs k, k+2, k+4, k+6 lie in the low halves of a word's bytes and k+1 … k+7 in the high ones.
struct Codes4 {
    using L = Q4;
    static constexpr int kWords = 2;  // words of inputs for one word of weights
    static constexpr int32_t kZero = 8;
    static __m128i order(__m128i codes) {  // even inputs of each eight first
        return _mm_shuffle_epi8(codes, _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    }
    static I add(I sum, I w, const int32_t* x) {
        return add_products(add_products(sum, low_codes(w), all_words(x[0])), high_codes(w), all_words(x[1]));
    }
};
struct Codes8 {
    using L = Q8;
    static constexpr int kWords = 1;
    static constexpr int32_t kZero = kWideZero;
    static __m128i order(__m128i codes) { return codes; }
    static I add(I sum, I w, const int32_t* x) { return add_wide_products(sum, w, all_words(x[0])); }
};

// Rows of one group as codes, each with its scale and the sum of its codes.
struct IntegerRows {
    int8_t* codes;    // [m][group]
    float* scales;    // [m]
    int32_t* totals;  // [m]
};

// One row of a group, whose inputs are followed by zeros up to a whole vector. code = rint(x · (1 / scale)), scale =
// max|x| / 127.
template <class C>
inline void round_row(const float* x, int count, int8_t* codes, float* scale, int32_t* total) {
    F most = zero(), spoiled = zero(), sum = zero();
    for (int i = 0; i < count; i += W) {
        most = max(most, abs(load(x + i)));
        spoiled = fma(load(x + i), zero(), spoiled);  // NaN if anything is not finite, which the maximum may miss
    }
    *scale = largest(most) / 127.0f + total_of(spoiled);
    const F inverse = all(*scale > 0.0f ? 1.0f / *scale : 0.0f);
    for (int i = 0; i < count; i += W) {
        const F code = nearest(mul(load(x + i), inverse));
        store_int8(codes + i, code);
        sum = add(sum, code);  // whole numbers below 2²⁴: exact
    }
    *total = *scale == *scale ? static_cast<int32_t>(total_of(sum)) : 0;
    for (int i = 0; i < count; i += 16) {
        __m128i* here = reinterpret_cast<__m128i*>(codes + i);
        _mm_storeu_si128(here, C::order(_mm_loadu_si128(here)));
    }
}

template <class C, int R, int N>
[[gnu::always_inline]] inline void add_codes(const int8_t* x, size_t ldx, const uint32_t* b, int steps,
                                             I (&sums)[R][N]) {
    for (int s = 0; s < steps; ++s, b += kPanel) {
        for (int v = 0; v < N; ++v) {
            const I w = words(b + v * W);
            for (int r = 0; r < R; ++r) {
                int32_t inputs[C::kWords];
                std::memcpy(inputs, x + r * ldx + s * 4 * C::kWords, sizeof(inputs));
                sums[r][v] = C::add(sums[r][v], w, inputs);
            }
        }
        _mm_prefetch(reinterpret_cast<const char*>(b) + kAhead, hint_of<R>());
    }
}

// out [m][64] = Σ scale[g] · (row scale · Σ code · code)
template <class C>
inline void integer_panel(const ShoalLinear& linear, int panel, const float* x, size_t ldx, int m, float* out,
                          float* buffer) {
    const int rows = linear.rows(), groups = linear.groups(), group = linear.group;
    IntegerRows in{nullptr, buffer, reinterpret_cast<int32_t*>(buffer + m)};
    in.codes = reinterpret_cast<int8_t*>(buffer + 2 * m);
    announce<typename C::L>(linear, panel + kSoon);
    for (int g = 0; g < groups; ++g) {
        const int k = g * group, count = rows - k < group ? rows - k : group;
        for (int r = 0; r < m; ++r)
            round_row<C>(x + r * ldx + k, count, in.codes + r * group, in.scales + r, in.totals + r);
        const uint32_t* b = panel_words<typename C::L>(linear, panel, k);
        const uint16_t* scales = linear.scales + (static_cast<size_t>(panel) * groups + g) * kPanel;
        row_tiles<4>(m, [&]<int R>(int first) {
            constexpr int N = W == 16 ? 4 : R <= 2 ? 4 : 2;
            for (int v = 0; v < NV; v += N) {
                I sums[R][N];
                for (int r = 0; r < R; ++r)
                    for (int i = 0; i < N; ++i) sums[r][i] = no_sum();
                add_codes<C, R, N>(in.codes + first * group, group, b + v * W, count / C::L::kStep, sums);
                for (int r = 0; r < R; ++r)
                    for (int i = 0; i < N; ++i) {
                        float* here = out + static_cast<size_t>(first + r) * kPanel + (v + i) * W;
                        const F sum =
                            mul(all(in.scales[first + r]), minus_to_float(sums[r][i], C::kZero * in.totals[first + r]));
                        store(here, fma(half_to_float(scales + (v + i) * W), sum, g ? load(here) : zero()));
                    }
            }
        });
    }
}

}  // namespace shoal::SHOAL_ISA

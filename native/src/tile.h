// The one inner loop: acc[r][·] += x[r][k] · b[k][·], one multiply-add per k in ascending order. A lane is one output
// of one row, so that its bits depend on nothing but that row and that column. Included once per instruction set.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

#define SHOAL_INLINE __attribute__((always_inline))  // of a lambda: sums stay in registers

namespace shoal::SHOAL_ISA {

// What a step of the loop loads for 'columns' of b, and how the rows k, k + 1, … that lie in it become floats.
struct F32 {
    static constexpr int kStep = 1;
    using Word = F;
    static Word word(const uint32_t* p) { return load(reinterpret_cast<const float*>(p)); }
    template <int J>
    static F get(Word w) {
        return w;
    }
};
struct Bf16 {
    static constexpr int kStep = 2;
    using Word = I;
    static Word word(const uint32_t* p) { return words(p); }
    template <int J>
    static F get(Word w) {
        return J ? high_half(w) : low_half(w);
    }
};
template <int R, int N>
struct Sums {
    F at[R][N];
    void clear() {
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < N; ++v) at[r][v] = zero();
    }
    void load_from(const float* p, size_t ld) {
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < N; ++v) at[r][v] = load(p + r * ld + v * W);
    }
    void store_to(float* p, size_t ld) const {
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < N; ++v) store(p + r * ld + v * W, at[r][v]);
    }
};

template <class L, int R, int N, int J>
[[gnu::always_inline]] inline void add_row(const float* x, size_t ldx, const typename L::Word (&w)[N],
                                           Sums<R, N>& sums) {
    F b[N];
    for (int v = 0; v < N; ++v) b[v] = L::template get<J>(w[v]);
    for (int r = 0; r < R; ++r) {
        const F a = all(x[r * ldx + J]);
        for (int v = 0; v < N; ++v) sums.at[r][v] = fma(a, b[v], sums.at[r][v]);
    }
}

// What few rows read is read once in a step, and should not throw the program that runs next out of the caches, where
// the processor can do that as fast. More than two may be one of several tiles, which read the same again.
template <int R>
constexpr _mm_hint hint_of() {
    return kNonTemporal && R <= 2 ? _MM_HINT_NTA : _MM_HINT_T0;
}

// `steps` steps of L::kStep rows; `b` is the first word of the columns, `ldb` the words of a step.
template <class L, int R, int N>
[[gnu::always_inline]] inline void accumulate(const float* x, size_t ldx, const uint32_t* b, size_t ldb, int steps,
                                              Sums<R, N>& sums) {
    for (int s = 0; s < steps; ++s) {
        typename L::Word w[N];
        for (int v = 0; v < N; ++v) w[v] = L::word(b + v * W);
        for (int line = 0; line < N * W; line += 16)  // weights and pages come from memory once: ask for them early
            _mm_prefetch(reinterpret_cast<const char*>(b + line) + kAhead, hint_of<R>());
        [&]<int... J>(std::integer_sequence<int, J...>) {
            (add_row<L, R, N, J>(x, ldx, w, sums), ...);
        }(std::make_integer_sequence<int, L::kStep>{});
        x += L::kStep;
        b += ldb;
    }
}

// Columns, in vectors, that R rows are computed for at once: as many sums as there are registers for.
template <class L, int R>
constexpr int span_of() {
    if (W == 16) return 4;
    return R == 1 ? 8 : R == 2 ? 4 : 2;
}

// Calls body.template operator()<R>(first row) for tiles of at most MOST rows, as even as they can be: a tile of two
// rows loads as many weights as one of six.
template <int MOST, class Body>
[[gnu::always_inline]] inline void row_tiles(int m, Body body) {
    for (int r = 0, tiles = (m + MOST - 1) / MOST; tiles > 0; --tiles) {
        const int rows = (m - r + tiles - 1) / tiles;
        [&]<int... R>(std::integer_sequence<int, R...>) {
            ((rows == R + 1 ? (body.template operator()<R + 1>(r), void()) : void()), ...);
        }(std::make_integer_sequence<int, MOST>{});
        r += rows;
    }
}

}  // namespace shoal::SHOAL_ISA

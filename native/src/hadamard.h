// Heads times an orthogonal Hadamard matrix, in fast steps. Included once per instruction set.
#pragma once

namespace shoal::SHOAL_ISA {

// In each pair of lanes i and i + H: a, b become a + b, a − b.
template <int H>
inline F step_within(F v) {
    static constexpr float kSigns[2] = {1.0f, -1.0f};
    float signs[W];
    for (int i = 0; i < W; ++i) signs[i] = kSigns[i / H % 2];
    return fma(v, load(signs), swapped<H>(v));  // one rounding, of a sum: a product with ±1 is exact
}

// The steps of pairs that are less than a vector apart, H and all below.
template <int H>
inline F steps_within(F v) {
    if constexpr (H == 0)
        return v;
    else
        return steps_within<H / 2>(step_within<H>(v));
}

// Pairs that are n / 2 apart, n / 4 and so on to 1: a, b become a + b, a − b. Then all of it times 1 / √n. A number is the same
// tree of sums whatever the width of vectors. n is a power of two.
inline void hadamard(float* x, int n) {
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(n)));
    int half = n / 2;
    if (n < W) {
        for (; half > 0; half /= 2)
            for (int i = 0; i < n; ++i) {
                if (i & half) continue;
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        for (int i = 0; i < n; ++i) x[i] *= scale;
        return;
    }
    for (; half >= W; half /= 2)
        for (int i = 0; i < n; i += 2 * half)
            for (int j = i; j < i + half; j += W) {
                const F a = load(x + j), b = load(x + j + half);
                store(x + j, add(a, b));
                store(x + j + half, sub(a, b));
            }
    for (int i = 0; i < n; i += W) store(x + i, mul(steps_within<W / 2>(load(x + i)), all(scale)));
}

// Each `turning` numbers of a head [head_dim] after each other.
inline void turn(float* head, int head_dim, int turning) {
    if (turning == 1) return;
    for (int i = 0; i < head_dim; i += turning) hadamard(head + i, turning);
}

}  // namespace shoal::SHOAL_ISA

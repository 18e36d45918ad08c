// Elementwise functions and sums in a fixed order. Included once per instruction set, after its vectors.
#pragma once
#include <cmath>

namespace shoal::SHOAL_ISA {

constexpr int NV = kPanel / W;  // vectors of a panel

// Reads `count` floats, a multiple of 4 · 64, as four streams side by side; what it returns keeps the compiler from
// skipping it.
inline float read(const float* data, size_t count) {
    constexpr size_t kStreams = 4;
    const size_t each = count / kStreams;
    F sums[kStreams] = {zero(), zero(), zero(), zero()};
    for (size_t i = 0; i < each; i += kPanel)
        for (size_t s = 0; s < kStreams; ++s)
            for (int v = 0; v < NV; ++v) sums[s] = max(sums[s], load(data + s * each + i + v * W));
    return total_of(max(max(sums[0], sums[1]), max(sums[2], sums[3])));
}

// eˣ to about one unit in the last place; 0 below −87.3, e⁸⁸ above 88, NaN for NaN (Cephes' polynomial).
inline F exp(F x) {
    const F low = all(-87.3f);
    const F y = max(low, min(all(88.0f), x));  // in this order NaN stays
    const F n = nearest(mul(y, all(1.44269504088896341f)));
    const F r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), y));
    F p = fma(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), all(1.0f));
    return if_less(x, low, zero(), mul(p, power_of_two(n)));
}

inline F sigmoid(F x) {
    return div(all(1.0f), add(all(1.0f), exp(sub(zero(), x))));
}

inline F tanh(F x) {
    return sub(all(1.0f), div(all(2.0f), add(all(1.0f), exp(add(x, x)))));
}

// x · σ(x), and GELU's tanh form, which is x · σ(2u) with u = √(2/π) · (x + 0.044715 x³).
inline F activate(F x, int32_t activation) {
    if (activation == kSilu) return mul(x, sigmoid(x));
    const F u = mul(mul(x, all(0.7978845608028654f)), fma(mul(x, x), all(0.044715f), all(1.0f)));
    return mul(x, sigmoid(add(u, u)));
}

// Σ x² over `n` floats: 64 sums, one for each position modulo 64, and then the tree.
inline float sum_of_squares(const float* x, int n) {
    F sums[NV];
    for (int v = 0; v < NV; ++v) sums[v] = zero();
    int i = 0;
    for (; i + kPanel <= n; i += kPanel)
        for (int v = 0; v < NV; ++v) {
            const F value = load(x + i + v * W);
            sums[v] = fma(value, value, sums[v]);
        }
    if (i < n) {
        float rest[kPanel] = {};
        for (int j = 0; i + j < n; ++j) rest[j] = x[i + j];
        for (int v = 0; v < NV; ++v) {
            const F value = load(rest + v * W);
            sums[v] = fma(value, value, sums[v]);
        }
    }
    return sum64(sums);
}

// x / √(mean(x²) + ε) · w, with zeros up to `width` (arXiv:1910.07467). In place is fine.
inline void rms_norm(const float* x, const float* weight, float eps, int n, float* out, int width) {
    const float scale = 1.0f / std::sqrt(sum_of_squares(x, n) / static_cast<float>(n) + eps);
    int i = 0;
    for (; i + W <= n; i += W) store(out + i, mul(mul(load(x + i), all(scale)), load(weight + i)));
    for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
    for (; i < width; ++i) out[i] = 0.0f;
}

// Dimension i is turned with i + rotary/2, by the angles' cosines and sines [rotary / 2]; the others stay.
inline void rotate(float* head, const float* cos, const float* sin, int rotary) {
    const int half = rotary / 2;
    for (int i = 0; i < half; ++i) {
        const float first = head[i], second = head[i + half];
        head[i] = first * cos[i] - second * sin[i];
        head[i + half] = second * cos[i] + first * sin[i];
    }
}

}  // namespace shoal::SHOAL_ISA

// One panel of a linear layer for some rows, inputs in fp32. Included once per instruction set.
#pragma once

namespace shoal::SHOAL_ISA {

// The first word of a panel's input row k.
template <class L>
inline const uint32_t* panel_words(const ShoalLinear& linear, int panel, int k) {
    const size_t row = static_cast<size_t>(panel) * (linear.rows() / L::kStep) + k / L::kStep;
    return static_cast<const uint32_t*>(linear.data) + row * kPanel;
}

// out [m][64] = x · the panel's rows k … k + count. Weights become floats in registers, anew for every tile of rows: they
// come out of the second-level cache then, and unpacking them once into memory took longer for any number of rows.
template <class L>
inline void block_rows(const float* x, size_t ldx, int m, const uint32_t* b, int count, float* out) {
    row_tiles<6>(m, [&]<int R>(int r) {
        constexpr int N = span_of<L, R>();
        for (int v = 0; v < NV; v += N) {
            Sums<R, N> sums;
            sums.clear();
            accumulate<L, R, N>(x + r * ldx, ldx, b + v * W, kPanel, count / L::kStep, sums);
            sums.store_to(out + static_cast<size_t>(r) * kPanel + v * W, kPanel);
        }
    });
}

// Asks for the beginning of a panel that some thread will take soon: a stream begins slowly where nothing is on its way
// yet.
template <class L>
inline void announce(const ShoalLinear& linear, int panel) {
    if (panel >= linear.panels()) return;
    const char* at = reinterpret_cast<const char*>(panel_words<L>(linear, panel, 0));
    for (int byte = 0; byte < kAhead; byte += 64) _mm_prefetch(at + byte, _MM_HINT_T1);
}

// out [m][64] = x · panel, weights without groups
template <class L>
inline void plain_panel(const ShoalLinear& linear, int panel, const float* x, size_t ldx, int m, float* out) {
    announce<L>(linear, panel + kSoon);
    block_rows<L>(x, ldx, m, panel_words<L>(linear, panel, 0), linear.rows(), out);
}

// The same with groups: out = Σ scale[g] · (Σ x · code), the inner sums from zero for each group.
template <class L>
inline void grouped_panel(const ShoalLinear& linear, int panel, const float* x, size_t ldx, int m, float* out,
                          float* inner) {
    const int rows = linear.rows(), groups = linear.groups();
    announce<L>(linear, panel + kSoon);
    for (int g = 0; g < groups; ++g) {
        const int k = g * linear.group, count = rows - k < linear.group ? rows - k : linear.group;
        block_rows<L>(x + k, ldx, m, panel_words<L>(linear, panel, k), count, inner);
        const uint16_t* scales = linear.scales + (static_cast<size_t>(panel) * groups + g) * kPanel;
        F scale[NV];
        for (int v = 0; v < NV; ++v) scale[v] = half_to_float(scales + v * W);
        for (int r = 0; r < m; ++r)
            for (int v = 0; v < NV; ++v) {
                float* here = out + static_cast<size_t>(r) * kPanel + v * W;
                store(here,
                      fma(scale[v], load(inner + static_cast<size_t>(r) * kPanel + v * W), g ? load(here) : zero()));
            }
    }
}

}  // namespace shoal::SHOAL_ISA

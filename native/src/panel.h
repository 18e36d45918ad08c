// One panel of a linear layer for some rows, inputs in fp32. Included once per instruction set.
#pragma once

namespace shoal::SHOAL_ISA {

constexpr int kDirectRows = 6;   // up to so many rows weights are unpacked in registers, beyond into a buffer
constexpr int kBlockRows = 128;  // input rows (k) that are unpacked at once, of weights without groups

// The first word of a panel's input row k.
template <class L>
inline const uint32_t* panel_words(const ShoalLinear& linear, int panel, int k) {
    const size_t row = static_cast<size_t>(panel) * (linear.rows() / L::kStep) + k / L::kStep;
    return static_cast<const uint32_t*>(linear.data) + row * kPanel;
}

// out [m][64] (+)= x · the panel's rows k … k + count
template <class L, int MOST, bool Streams>
inline void block_rows(const float* x, size_t ldx, int m, const uint32_t* b, int count, float* out, bool add) {
    row_tiles<MOST>(m, [&]<int R>(int r) {
        constexpr int N = span_of<L, R>();
        for (int v = 0; v < NV; v += N) {
            Sums<R, N> sums;
            float* here = out + static_cast<size_t>(r) * kPanel + v * W;
            if (add)
                sums.load_from(here, kPanel);
            else
                sums.clear();
            accumulate<L, R, N, Streams>(x + r * ldx, ldx, b + v * W, kPanel, count / L::kStep, sums);
            sums.store_to(here, kPanel);
        }
    });
}

template <class L>
inline void unpack(const uint32_t* b, int count, float* out) {
    for (int s = 0; s < count / L::kStep; ++s, b += kPanel)
        for (int v = 0; v < NV; ++v) {
            const typename L::Word w = L::word(b + v * W);
            [&]<int... J>(std::integer_sequence<int, J...>) {
                (store(out + static_cast<size_t>(s * L::kStep + J) * kPanel + v * W, L::template get<J>(w)), ...);
            }(std::make_integer_sequence<int, L::kStep>{});
        }
}

// Asks for the beginning of a panel that some thread will take soon: a stream begins slowly where nothing is on its way
// yet.
template <class L>
inline void announce(const ShoalLinear& linear, int panel) {
    if (panel >= linear.panels()) return;
    const char* at = reinterpret_cast<const char*>(panel_words<L>(linear, panel, 0));
    for (int byte = 0; byte < kAhead; byte += 64) _mm_prefetch(at + byte, _MM_HINT_T1);
}

// out [m][64] = x · panel, weights without groups; the sums go on from block to block as if there were none.
template <class L>
inline void plain_panel(const ShoalLinear& linear, int panel, const float* x, size_t ldx, int m, float* out,
                        float* buffer) {
    const int rows = linear.rows();
    if (m <= kDirectRows) {
        announce<L>(linear, panel + kSoon);
        block_rows<L, kDirectRows, true>(x, ldx, m, panel_words<L>(linear, panel, 0), rows, out, false);
        return;
    }
    for (int k = 0; k < rows; k += kBlockRows) {
        const int count = rows - k < kBlockRows ? rows - k : kBlockRows;
        const uint32_t* b = panel_words<L>(linear, panel, k);
        if constexpr (L::kStep > 1) {
            unpack<L>(b, count, buffer);
            b = reinterpret_cast<const uint32_t*>(buffer);
        }
        block_rows<F32, 6, false>(x + k, ldx, m, b, count, out, k > 0);
    }
}

// The same with groups: out = Σ scale[g] · (Σ x · code), the inner sums from zero for each group.
template <class L>
inline void grouped_panel(const ShoalLinear& linear, int panel, const float* x, size_t ldx, int m, float* out,
                          float* buffer) {
    const int rows = linear.rows(), groups = linear.groups();
    float* inner = buffer + static_cast<size_t>(linear.group) * kPanel;
    if (m <= kDirectRows) announce<L>(linear, panel + kSoon);
    for (int g = 0; g < groups; ++g) {
        const int k = g * linear.group, count = rows - k < linear.group ? rows - k : linear.group;
        const uint32_t* b = panel_words<L>(linear, panel, k);
        if (m <= kDirectRows) {
            block_rows<L, 4, true>(x + k, ldx, m, b, count, inner, false);
        } else {
            unpack<L>(b, count, buffer);
            block_rows<F32, 6, false>(x + k, ldx, m, reinterpret_cast<const uint32_t*>(buffer), count, inner, false);
        }
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

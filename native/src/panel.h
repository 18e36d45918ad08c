// One panel of a linear layer for some rows, inputs in fp32. Included once per instruction set.
#pragma once

namespace shoal::SHOAL_ISA {

// The first word of a panel.
template <class L>
inline const uint32_t* panel_words(const ShoalMatrix& matrix, int panel) {
    return static_cast<const uint32_t*>(matrix.data) + static_cast<size_t>(panel) * (matrix.stored / L::kStep) * kPanel;
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
inline void announce(const ShoalMatrix& matrix, int panel) {
    if (panel >= matrix.panels()) return;
    const char* at = reinterpret_cast<const char*>(panel_words<L>(matrix, panel));
    for (int byte = 0; byte < kAhead; byte += 64) _mm_prefetch(at + byte, _MM_HINT_T1);
}

// out [m][64] = x · panel, weights as floats
template <class L>
inline void plain_panel(const ShoalMatrix& matrix, int panel, const PreparedRows& rows, int m, float* out) {
    announce<L>(matrix, panel + kSoon);
    block_rows<L>(rows.x, rows.ldx, m, panel_words<L>(matrix, panel), matrix.stored, out);
}

}  // namespace shoal::SHOAL_ISA

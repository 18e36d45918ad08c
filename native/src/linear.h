// Items of a linear layer: a panel for some rows, and where its result goes. Included once per instruction set.
#pragma once

namespace shoal::SHOAL_ISA {

// Floats of scratch that an item needs for m rows, beside the rows as they are prepared.
inline size_t panel_scratch(int m) {
    return static_cast<size_t>(m) * 2 * kPanel;
}

// out [m][64] = x · panel + bias
inline void panel_product(const ShoalLinear& linear, const Place& place, const PreparedRows& rows, int m, float* out) {
    const ShoalMatrix& matrix = *place.matrix;
    switch (matrix.kind) {
        case kF32:
            plain_panel<F32>(matrix, place.panel, rows, m, out);
            break;
        case kBf16:
            plain_panel<Bf16>(matrix, place.panel, rows, m, out);
            break;
        default:
            packed_panel(matrix, place.panel, rows, m, out);
    }
    if (!linear.bias) return;
    for (int r = 0; r < m; ++r)
        for (int v = 0; v < NV; ++v) {
            float* here = out + static_cast<size_t>(r) * kPanel + v * W;
            store(here, add(load(here), load(linear.bias + place.column + v * W)));
        }
}

// dst [m][ldd], at the panel's columns: = or += the product; never beyond `columns`, nor into the next matrix's.
inline void linear_item(const ShoalLinear& linear, const Place& place, const PreparedRows& rows, int m, float* dst,
                        size_t ldd, int columns, bool add_to, float* scratch) {
    float* out = scratch;
    panel_product(linear, place, rows, m, out);
    const int end = place.last ? columns : place.matrix->first + place.matrix->n, rest = end - place.column;
    const int count = rest < kPanel ? rest : kPanel;
    for (int r = 0; r < m; ++r) {
        float* here = dst + r * ldd + place.column;
        const float* from = out + static_cast<size_t>(r) * kPanel;
        int i = 0;
        for (; i + W <= count; i += W) store(here + i, add_to ? add(load(here + i), load(from + i)) : load(from + i));
        for (; i < count; ++i) here[i] = add_to ? here[i] + from[i] : from[i];
    }
}

// dst [m][ldd], at the panel's columns: act(x · gate) · (x · up); the panel's padding comes out as zeros. Both are one
// matrix.
inline void gated_item(const ShoalLinear& gate, const ShoalLinear& up, int panel, const PreparedRows& gate_rows,
                       const PreparedRows& up_rows, int m, float* dst, size_t ldd, int32_t activation, float* scratch) {
    float* first = scratch;
    float* second = scratch + static_cast<size_t>(m) * kPanel;
    panel_product(gate, gate.place(panel), gate_rows, m, first);
    panel_product(up, up.place(panel), up_rows, m, second);
    for (int r = 0; r < m; ++r)
        for (int v = 0; v < NV; ++v) {
            const size_t at = static_cast<size_t>(r) * kPanel + v * W;
            store(dst + r * ldd + panel * kPanel + v * W,
                  mul(activate(load(first + at), activation), load(second + at)));
        }
}

}  // namespace shoal::SHOAL_ISA

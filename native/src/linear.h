// Items of a linear layer: a panel for some rows, and where its result goes. Included once per instruction set.
#pragma once

namespace shoal::SHOAL_ISA {

// Floats of scratch that `panel_product` and what is built on it need for m rows.
inline size_t panel_scratch(int m, int group) {
    const int sums = kPanel, codes = 2 + (group + 3) / 4;  // of a row, for `grouped_panel` and for `integer_panel`
    return static_cast<size_t>(m) * (2 * kPanel + std::max(sums, codes)) + 16;
}

// out [m][64] = x · panel + bias
inline void panel_product(const ShoalLinear& linear, int panel, const float* x, size_t ldx, int m, float* out,
                          float* buffer) {
    switch (linear.kind) {
        case kF32:
            plain_panel<F32>(linear, panel, x, ldx, m, out);
            break;
        case kBf16:
            plain_panel<Bf16>(linear, panel, x, ldx, m, out);
            break;
        case kQ4:
            if (linear.int8_rows)
                integer_panel<Codes4>(linear, panel, x, ldx, m, out, buffer);
            else
                grouped_panel<Q4>(linear, panel, x, ldx, m, out, buffer);
            break;
        default:
            if (linear.int8_rows)
                integer_panel<Codes8>(linear, panel, x, ldx, m, out, buffer);
            else
                grouped_panel<Q8>(linear, panel, x, ldx, m, out, buffer);
    }
    if (!linear.bias) return;
    for (int r = 0; r < m; ++r)
        for (int v = 0; v < NV; ++v) {
            float* here = out + static_cast<size_t>(r) * kPanel + v * W;
            store(here, add(load(here), load(linear.bias + panel * kPanel + v * W)));
        }
}

// dst [m][ldd], at the panel's columns: = or += the product; never beyond `columns`.
inline void linear_item(const ShoalLinear& linear, int panel, const float* x, size_t ldx, int m, float* dst, size_t ldd,
                        int columns, bool add_to, float* scratch) {
    float* out = scratch;
    panel_product(linear, panel, x, ldx, m, out, scratch + static_cast<size_t>(m) * kPanel);
    const int first = panel * kPanel, count = columns - first < kPanel ? columns - first : kPanel;
    for (int r = 0; r < m; ++r) {
        float* here = dst + r * ldd + first;
        const float* from = out + static_cast<size_t>(r) * kPanel;
        int i = 0;
        for (; i + W <= count; i += W) store(here + i, add_to ? add(load(here + i), load(from + i)) : load(from + i));
        for (; i < count; ++i) here[i] = add_to ? here[i] + from[i] : from[i];
    }
}

// dst [m][ldd], at the panel's columns: act(x · gate) · (x · up); the panel's padding comes out as zeros.
inline void gated_item(const ShoalLinear& gate, const ShoalLinear& up, int panel, const float* x, size_t ldx, int m,
                       float* dst, size_t ldd, int32_t activation, float* scratch) {
    float* first = scratch;
    float* second = scratch + static_cast<size_t>(m) * kPanel;
    float* buffer = second + static_cast<size_t>(m) * kPanel;
    panel_product(gate, panel, x, ldx, m, first, buffer);
    panel_product(up, panel, x, ldx, m, second, buffer);
    for (int r = 0; r < m; ++r)
        for (int v = 0; v < NV; ++v) {
            const size_t at = static_cast<size_t>(r) * kPanel + v * W;
            store(dst + r * ldd + panel * kPanel + v * W,
                  mul(activate(load(first + at), activation), load(second + at)));
        }
}

}  // namespace shoal::SHOAL_ISA

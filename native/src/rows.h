// Rows as a matrix wants them: in the stored order of its inputs, with sums of its groups, and rounded to 8 bits where
// integers are multiplied. Made once for a run of panels. Included once per instruction set.
#pragma once

namespace shoal::SHOAL_ISA {

// Stored inputs for which a row's codes share a scale: those of a group, or a part of a large one.
inline int block_of(const ShoalSection& section) {
    for (const int block : {128, 64})
        if (section.group % block == 0) return block;
    return 32;
}

// Stored inputs whose sum is wanted: those of a group, and with integers no more than of a block.
inline int chunk_of(const ShoalSection& section, bool integers) {
    return section.group < 32 || !integers ? section.group : block_of(section);
}

struct RowSizes {
    int inputs = 0, chunks = 0, blocks = 0;
};
inline RowSizes sizes_of(const ShoalMatrix& matrix, bool integers) {
    RowSizes sizes;
    for (int s = 0; s < matrix.num_sections; ++s) {
        const ShoalSection& section = matrix.sections[s];
        const int inputs = 32 * section.steps, chunk = chunk_of(section, integers), block = block_of(section);
        const int group = section.group < 32 ? 32 : section.group, whole = inputs / group, rest = inputs % group;
        sizes.inputs += inputs;
        sizes.chunks += whole * ((group + chunk - 1) / chunk) + (rest + chunk - 1) / chunk;
        sizes.blocks += whole * ((group + block - 1) / block) + (rest + block - 1) / block;
    }
    return sizes;
}

// Floats of scratch that `prepare_rows` needs for m rows.
inline size_t rows_scratch(const ShoalMatrix& matrix, bool integers, int m) {
    if (matrix.kind != kPacked) return 0;
    const RowSizes sizes = sizes_of(matrix, integers);
    size_t each = sizes.chunks;  // sums, or totals
    if (matrix.order) each += sizes.inputs;
    if (integers) each += sizes.blocks + (sizes.inputs + 3) / 4;
    return static_cast<size_t>(m) * each + 64;
}

// Σ over `count` floats, a multiple of 16: a sum for each position modulo 16, then a tree of halves.
inline float sum_of(const float* x, int count) {
    F sums[16 / W];
    for (int v = 0; v < 16 / W; ++v) sums[v] = load(x + v * W);
    for (int i = 16; i < count; i += 16)
        for (int v = 0; v < 16 / W; ++v) sums[v] = add(sums[v], load(x + i + v * W));
    return sum16(sums);
}

// code = rint(x · (1 / scale)), scale = max|x| / 127; NaN where anything is not finite.
inline float round_block(const float* x, int count, int8_t* codes) {
    F most = zero(), spoiled = zero();
    for (int i = 0; i < count; i += W) {
        most = max(most, abs(load(x + i)));
        spoiled = fma(load(x + i), zero(), spoiled);  // NaN if anything is not finite, which the maximum may miss
    }
    const float scale = largest(most) / 127.0f + total_of(spoiled);
    const F inverse = all(scale > 0.0f ? 1.0f / scale : 0.0f);
    for (int i = 0; i < count; i += W) store_int8(codes + i, nearest(mul(load(x + i), inverse)));
    return scale;
}

inline int32_t total_of_codes(const int8_t* codes, int count) {
    int32_t total = 0;
    for (int i = 0; i < count; ++i) total += codes[i];
    return total;
}

// Walks along a row in chunks and blocks. `integers`: the row's codes, else its sums.
inline void prepare_row(const ShoalMatrix& matrix, bool integers, const float* x, float* sums, int8_t* codes,
                        float* scales, int32_t* totals) {
    int chunk = 0, block = 0;
    for (int s = 0; s < matrix.num_sections; ++s) {
        const ShoalSection& section = matrix.sections[s];
        const int inputs = 32 * section.steps, group = section.group < 32 ? 32 : section.group;
        const int most = integers ? block_of(section) : group, each = chunk_of(section, integers);
        for (int at = 0; at < inputs;) {
            const int in_group = group - at % group, left_over = inputs - at;
            int count = most < in_group ? most : in_group;
            count = count < left_over ? count : left_over;
            if (integers) scales[block++] = round_block(x + at, count, codes + at);
            for (int from = 0; from < count; from += each, ++chunk) {
                const int some = each < count - from ? each : count - from;
                if (integers)
                    totals[chunk] = scales[block - 1] == scales[block - 1] ? total_of_codes(codes + at + from, some) : 0;
                else
                    sums[chunk] = sum_of(x + at + from, some);
            }
            at += count;
        }
        x += inputs;
        codes += integers ? inputs : 0;
    }
}

// x [m][ldx] for one matrix of a linear layer, with `rows_scratch` floats of memory that it keeps.
inline PreparedRows prepare_rows(const ShoalMatrix& matrix, bool integers, int k, const float* x, size_t ldx, int m,
                                 float* memory) {
    PreparedRows rows{};
    rows.of = &matrix;
    rows.x = x;
    rows.ldx = ldx;
    if (matrix.kind != kPacked) return rows;
    const RowSizes sizes = sizes_of(matrix, integers);
    const auto take = [&](size_t count) {
        float* here = memory;
        memory += count;
        return here;
    };
    if (matrix.order) {
        float* ordered = take(static_cast<size_t>(m) * sizes.inputs);
        for (int r = 0; r < m; ++r)
            for (int i = 0; i < sizes.inputs; ++i) {
                const uint32_t from = static_cast<uint32_t>(matrix.order[i]);
                ordered[static_cast<size_t>(r) * sizes.inputs + i] = from < static_cast<uint32_t>(k) ? x[r * ldx + from] : 0.0f;
            }
        rows.x = ordered;
        rows.ldx = sizes.inputs;
    }
    rows.chunks = sizes.chunks;
    rows.blocks = sizes.blocks;
    rows.ldc = sizes.inputs;
    float* scales = integers ? take(static_cast<size_t>(m) * sizes.blocks) : nullptr;
    float* sums = take(static_cast<size_t>(m) * sizes.chunks);
    int8_t* codes = integers ? reinterpret_cast<int8_t*>(take((static_cast<size_t>(m) * sizes.inputs + 3) / 4)) : nullptr;
    int32_t* totals = reinterpret_cast<int32_t*>(sums);
    for (int r = 0; r < m; ++r)
        prepare_row(matrix, integers, rows.x + r * rows.ldx, sums + static_cast<size_t>(r) * sizes.chunks,
                    codes + static_cast<size_t>(r) * sizes.inputs, scales + static_cast<size_t>(r) * sizes.blocks,
                    totals + static_cast<size_t>(r) * sizes.chunks);
    rows.sums = integers ? nullptr : sums;
    rows.codes = codes;
    rows.scales = scales;
    rows.totals = integers ? totals : nullptr;
    return rows;
}

}  // namespace shoal::SHOAL_ISA

// What each instruction set offers to the code that is compiled once.
#pragma once
#include <cstddef>

#include "abi.h"

namespace shoal {

// Rows as one matrix of a linear layer wants them (rows.h).
struct PreparedRows {
    const ShoalMatrix* of;  // null: nothing is prepared
    const float* x;         // [m][ldx] in the stored order of inputs
    size_t ldx;
    size_t chunks, blocks, ldc;
    const float* sums;      // [m][chunks], with floats
    const int8_t* codes;    // [m][ldc], with integers
    const float* scales;    // [m][blocks]
    const int32_t* totals;  // [m][chunks]
};

struct Kernels {
    int32_t isa;  // 2: AVX2, 5: AVX-512
    float (*read)(const float* data, size_t count);
    size_t (*panel_scratch)(int m);
    size_t (*rows_scratch)(const ShoalMatrix&, bool integers, int m);
    size_t (*attention_scratch)(const ShoalShape&, const ShoalCache&, int rows);
    void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* out, int width);
    PreparedRows (*prepare_rows)(const ShoalMatrix&, bool integers, int k, const float* x, size_t ldx, int m,
                                 float* memory);
    void (*linear_item)(const ShoalLinear&, const Place&, const PreparedRows&, int m, float* dst, size_t ldd, int columns,
                        bool add, float* scratch);
    void (*gated_item)(const ShoalLinear& gate, const ShoalLinear& up, int panel, const PreparedRows& gate_rows,
                       const PreparedRows& up_rows, int m, float* dst, size_t ldd, int32_t activation, float* scratch);
    void (*write_item)(const ShoalShape&, const ShoalBlock&, const ShoalCache&, const ShoalPart&, const int32_t* table,
                       int kv_head, int first, int last, const float* qkv, size_t ld, const ShoalAngles&);
    void (*attention_item)(const ShoalShape&, const ShoalBlock&, const ShoalCache&, const ShoalPart&,
                           const int32_t* table, int kv_head, int first, int last, const float* qkv, size_t ld,
                           const ShoalAngles&, float* out, size_t ldo, float* scratch);
};

// `NonTemporal`: they read past the caches what they read once. The bits are the same.
extern const Kernels kAvx2, kAvx2NonTemporal, kAvx512, kAvx512NonTemporal;

// The best that this processor runs, or `limit` (2: AVX2, 5: AVX-512) if that is less; null where there is none.
// `non_temporal`: 0 or 1, or −1 for what suits the processor.
const Kernels* choose_kernels(int limit, int non_temporal = -1);

}  // namespace shoal

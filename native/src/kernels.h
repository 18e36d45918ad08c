// What each instruction set offers to the code that is compiled once.
#pragma once
#include <cstddef>

#include "abi.h"

namespace shoal {

struct Kernels {
    int32_t isa;  // 2: AVX2, 5: AVX-512
    float (*read)(const float* data, size_t count);
    size_t (*panel_scratch)(int m, int group);
    size_t (*attention_scratch)(const ShoalShape&, const ShoalCache&, int rows);
    void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* out, int width);
    void (*linear_item)(const ShoalLinear&, int panel, const float* x, size_t ldx, int m, float* dst, size_t ldd,
                        int columns, bool add, float* scratch);
    void (*gated_item)(const ShoalLinear& gate, const ShoalLinear& up, int panel, const float* x, size_t ldx, int m,
                       float* dst, size_t ldd, int32_t activation, float* scratch);
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

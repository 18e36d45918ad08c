// What a call may ask for. Each function gives null, or what is wrong, in words that never change.
#pragma once
#include <cstddef>

#include "abi.h"

namespace shoal {

constexpr int32_t kMaxThreads = 1024;
constexpr int32_t kMaxRows = 1 << 20;
constexpr int32_t kMaxWidth = 1 << 24;   // inputs or outputs of a matrix
constexpr int32_t kMaxMatrices = 16;     // of a linear layer
constexpr int32_t kMaxSections = 1 << 12;
constexpr int32_t kMaxHeadDim = 512;     // attention keeps a key of this size on the stack
constexpr int32_t kMaxBlocks = 1 << 16;
constexpr int32_t kMaxPosition = 1 << 30;
constexpr int64_t kMaxItems = (1 << 20) - 1;  // of a phase: the pool counts them in 20 bits

const char* wrong_linear(const ShoalLinear* linear);

const char* wrong_product(const ShoalLinear* linear, const float* norm_weight, float eps, const float* x, int32_t n,
                          const float* out, int64_t ldd);

const char* wrong_reading(const float* data, int64_t count, int32_t items);

const char* wrong_step(const ShoalShape* shape, const ShoalBlock* const* blocks, int32_t num_blocks,
                       const ShoalCache* cache, const ShoalPart* parts, int32_t num_parts, const ShoalAngles* angles,
                       const float* x, int32_t n);

}  // namespace shoal

#define SHOAL_ISA avx2_past
#define SHOAL_TABLE kAvx2Past
#define SHOAL_PAST_CACHES true
#include <cstdint>

#include "vec_avx2.h"

#include "kernels.inl"

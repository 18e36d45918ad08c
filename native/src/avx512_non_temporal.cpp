#define SHOAL_ISA avx512_non_temporal
#define SHOAL_TABLE kAvx512NonTemporal
#define SHOAL_NON_TEMPORAL true
#include <cstdint>

#include "vec_avx512.h"

#include "kernels.inl"

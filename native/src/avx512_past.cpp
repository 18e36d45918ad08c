#define SHOAL_ISA avx512_past
#define SHOAL_TABLE kAvx512Past
#define SHOAL_PAST_CACHES true
#include <cstdint>

#include "vec_avx512.h"

#include "kernels.inl"

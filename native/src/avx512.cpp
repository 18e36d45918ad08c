#define SHOAL_ISA avx512
#define SHOAL_TABLE kAvx512
#define SHOAL_NON_TEMPORAL false
#include <cstdint>

#include "vec_avx512.h"

#include "kernels.inl"

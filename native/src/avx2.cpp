#define SHOAL_ISA avx2
#define SHOAL_TABLE kAvx2
#define SHOAL_NON_TEMPORAL false
#include <cstdint>

#include "vec_avx2.h"

#include "kernels.inl"

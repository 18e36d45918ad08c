#define SHOAL_ISA avx2_non_temporal
#define SHOAL_TABLE kAvx2NonTemporal
#define SHOAL_NON_TEMPORAL true
#include <cstdint>

#include "vec_avx2.h"

#include "kernels.inl"

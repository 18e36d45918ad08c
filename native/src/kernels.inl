// Compiled once per instruction set and way to read ahead: SHOAL_ISA names the namespace, SHOAL_TABLE the table,
// SHOAL_NON_TEMPORAL says whether what is read once is asked for past the caches.
#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace shoal::SHOAL_ISA {
constexpr bool kNonTemporal = SHOAL_NON_TEMPORAL;
constexpr int kAhead = kNonTemporal ? 2048 : 4096;  // bytes that are asked for ahead of a stream of weights
constexpr int kSoon = 2;                           // panels ahead of the present one whose beginnings are asked for
}  // namespace shoal::SHOAL_ISA
#include "arithmetic.h"
#include "tile.h"
#include "panel.h"
#include "rows.h"
#include "packed.h"
#include "linear.h"
#include "cache.h"
#include "hadamard.h"
#include "attention.h"

namespace shoal {
const Kernels SHOAL_TABLE = {
    SHOAL_ISA::W == 16 ? 5 : 2,  SHOAL_ISA::read,           SHOAL_ISA::panel_scratch,  SHOAL_ISA::rows_scratch,
    SHOAL_ISA::attention_scratch, SHOAL_ISA::rms_norm,       SHOAL_ISA::prepare_rows,   SHOAL_ISA::linear_item,
    SHOAL_ISA::gated_item,        SHOAL_ISA::write_item,     SHOAL_ISA::attention_item,
};
}

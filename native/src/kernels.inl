// Compiled once per instruction set: SHOAL_ISA names the namespace, SHOAL_TABLE the table.
#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace shoal::SHOAL_ISA {
constexpr int kAhead = 2048;  // bytes that are asked for ahead of a stream of weights
constexpr int kSoon = 2;      // panels ahead of the present one whose beginnings are asked for
}  // namespace shoal::SHOAL_ISA
#include "arithmetic.h"
#include "tile.h"
#include "panel.h"
#include "int8.h"
#include "linear.h"
#include "cache.h"
#include "attention.h"

namespace shoal {
const Kernels SHOAL_TABLE = {
    SHOAL_ISA::read,        SHOAL_ISA::panel_scratch, SHOAL_ISA::attention_scratch, SHOAL_ISA::rms_norm,
    SHOAL_ISA::linear_item, SHOAL_ISA::gated_item,    SHOAL_ISA::write_item,        SHOAL_ISA::attention_item,
};
}

// The C interface of shoal-kernels: plain structs and pointers, so that one library serves every Python through ctypes.
// Sizes are in elements unless a name says bytes. Every call checks what it is given (check.h), except that memory behind
// a pointer is as long as the sizes say: nobody but the caller can know that.
#pragma once
#include <cstdint>

#if defined(_WIN32)
#define SHOAL_API extern "C" __declspec(dllexport)
#else
#define SHOAL_API extern "C" __attribute__((visibility("default")))
#endif

constexpr int32_t kAbi = 5;  // not of a block's fields, which describe themselves
constexpr int kPanel = 64;       // output columns that lie together
constexpr int kPageTokens = 64;  // tokens of one cache page

enum Kind : int32_t { kF32 = 0, kBf16 = 1, kPacked = 2 };
enum UnitKind : int32_t { kUnitF16 = 0, kUnitBf16 = 1, kUnitF32 = 2 };
enum LevelKind : int32_t { kNone = 0, kUnsigned = 1, kSigned = 2, kNibbles = 3 };  // whole numbers beside a group
enum CacheKind : int32_t { kCacheF32 = 0, kCacheBf16 = 1, kCacheF16 = 2, kCacheInt8 = 3, kCacheInt4 = 4 };
enum Activation : int32_t { kSilu = 0, kGeluTanh = 1 };

// Stored inputs of a packed matrix one after the other, in steps of 32: one width of codes, one size of groups. A weight is
// (code − zero − the output's zero) · scale − minimum; scale and minimum are a unit, or a unit times a whole number.
struct ShoalSection {
    const float* units;  // [groups / unit_groups, rounded up] that all outputs share; null: the stream has them
    const float* table;  // the numbers that the 16 codes of 4 bits stand for, with `zero` 0; null: themselves
    int32_t bits, steps;
    int32_t group;        // stored inputs: 16, or a multiple of 32; the last group may have less
    int32_t unit_groups;  // groups that share a unit
    int32_t unit_kind;    // UnitKind
    int32_t step_kind;    // LevelKind of the whole number of a scale, and of a minimum
    int32_t squared;      // the scale is fp16((whole number + 1)² · unit)
    int32_t minima;       // whether there are minima, whose units and whole numbers follow those of the scales
    int32_t zero_kind;    // LevelKind of the output's zero
    int32_t zero;

    int groups() const { return (32 * steps + group - 1) / group; }
    // Bytes of a panel of 64 outputs: for each group its units (where they change), whole numbers and zeros, all that up to
    // a multiple of 64, and then the codes.
    int64_t level_bytes() const {
        const int64_t level = step_kind == kNone ? 0 : step_kind == kNibbles ? kPanel / 2 : kPanel;
        const int64_t zeros = zero_kind == kNone ? 0 : zero_kind == kNibbles ? kPanel / 2 : kPanel;
        const int64_t both = minima ? 2 : 1, unit = units ? 0 : unit_kind == kUnitF32 ? 4 * kPanel : 2 * kPanel;
        const int64_t changes = (groups() + unit_groups - 1) / unit_groups;
        return (changes * unit * both + groups() * (level * both + zeros) + 63) / 64 * 64;
    }
    int64_t bytes() const { return level_bytes() + int64_t{steps} * bits * kPanel * 4; }
};

// A matrix [n][k] of a linear layer, with its outputs in panels of 64:
//   f32     [panel][stored][64] float, inputs in order with zeros up to a multiple of 8
//   bf16    [panel][stored/2][64] words: input k in the low half, k+1 in the high one
//   packed  [panel] streams of its sections (docs/concepts/packed-form.md)
struct ShoalMatrix {
    const void* data;
    const ShoalSection* sections;  // packed only
    const int32_t* order;          // [stored]: the input that each stored one is, −1 for a zero; null: in order
    int64_t panel_bytes;
    int32_t kind, n, first, stored, num_sections, unused;  // `first`: its first output in the layer

    int panels() const { return (n + kPanel - 1) / kPanel; }
};

// A panel of a linear layer: in which matrix it lies, and its first output in the layer.
struct Place {
    const ShoalMatrix* matrix;
    int panel, column;
    bool last;  // whether it is the layer's last panel
};

// y = x Wᵀ + b. Its matrices lie one under the other.
struct ShoalLinear {
    const ShoalMatrix* matrices;
    const float* bias;  // [n + 64] or null
    int32_t n, k, num_matrices;
    int32_t int8_rows;  // of packed ones: round inputs to 8 bits, and multiply integers

    int panels() const {
        int count = 0;
        for (int m = 0; m < num_matrices; ++m) count += matrices[m].panels();
        return count;
    }
    bool codes() const {
        for (int m = 0; m < num_matrices; ++m)
            if (matrices[m].kind == kPacked) return true;
        return false;
    }
    Place place(int panel) const {
        const ShoalMatrix* matrix = matrices;
        for (; panel >= matrix->panels(); ++matrix) panel -= matrix->panels();
        return {matrix, panel, matrix->first + panel * kPanel,
                matrix + 1 == matrices + num_matrices && panel + 1 == matrix->panels()};
    }
};

// One block: attention and gated MLP, with what the dense families add. The names are those of Shoal's BlockConfig and of
// its weights' roles: Python lays its struct out and fills it by this list (`shoal_block_fields`), and gives the kernels no
// block that differs from Llama in a field that is not here.
//   LINEAR  a matrix
//   VECTOR  null where there is none. Norms [hidden]; query_norm, key_norm [head_dim]; sinks [heads]
//   NUMBER  attn_softcap 0: none
//   INTEGER window: keys that a row sees, itself included, 0: all. activation: see above. angles: which of the two tables
#define SHOAL_BLOCK_FIELDS(LINEAR, VECTOR, NUMBER, INTEGER)                                       \
    LINEAR(qkv) LINEAR(output) LINEAR(gate) LINEAR(up) LINEAR(down)                               \
    VECTOR(attention_norm) VECTOR(mlp_norm) VECTOR(post_attention_norm) VECTOR(post_mlp_norm)     \
    VECTOR(query_norm) VECTOR(key_norm) VECTOR(sinks)                                             \
    NUMBER(norm_eps) NUMBER(attn_softcap) NUMBER(query_scale)                                     \
    INTEGER(window) INTEGER(activation) INTEGER(angles) INTEGER(rotary_dim)

struct ShoalBlock {
#define SHOAL_LINEAR(name) ShoalLinear name;
#define SHOAL_VECTOR(name) const float* name;
#define SHOAL_NUMBER(name) float name;
#define SHOAL_INTEGER(name) int32_t name;
    SHOAL_BLOCK_FIELDS(SHOAL_LINEAR, SHOAL_VECTOR, SHOAL_NUMBER, SHOAL_INTEGER)
#undef SHOAL_LINEAR
#undef SHOAL_VECTOR
#undef SHOAL_NUMBER
#undef SHOAL_INTEGER
};

struct ShoalShape {
    int32_t hidden, heads, kv_heads, head_dim, intermediate;
};

// Keys [pages][kv_heads][width][64], values [pages][kv_heads][64][width]; 4-bit codes: two to a byte, see
// kv/cache_storage.py. Keys are turned by Hadamard matrices of `turning` numbers before they are written, and queries before
// they meet them: a power of two that divides head_dim, 1 for as they are.
struct ShoalCache {
    void *keys, *values;
    float *key_scales, *value_scales;  // [pages][kv_heads][64], quantized caches only
    int32_t kind, width, pages, turning;
};

// A session's rows first … first+rows of a batch, at `position`; table row i holds the pages of block i of the call.
struct ShoalPart {
    const int32_t* table;
    int64_t stride;
    int32_t position, first, rows, unused;
};

struct ShoalAngles {
    const float *cos, *sin;  // [rows][rotary_dim / 2]
};

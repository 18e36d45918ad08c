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

enum Kind : int32_t { kF32 = 0, kBf16 = 1, kQ4 = 2, kQ8 = 3 };
enum CacheKind : int32_t { kCacheF32 = 0, kCacheBf16 = 1, kCacheF16 = 2, kCacheInt8 = 3, kCacheInt4 = 4 };
enum Activation : int32_t { kSilu = 0, kGeluTanh = 1 };

// y = x Wᵀ + b. Columns (outputs) lie in panels of 64, `rows()` input rows one under the other, padded with zeros:
//   f32   [panel][k][64] float
//   bf16  [panel][k/2][64] words: row k in the low half, k+1 in the high one
//   q4    [panel][k/8][64] words: row k+j in bits 4j..4j+3 as two's complement (EXL2's word with its zero taken off)
//   q8    [panel][k/4][64] words: row k+j in byte j as two's complement
// Quantized rows come in groups; `scales` is fp16 [panel][group][64].
struct ShoalLinear {
    const void* data;
    const uint16_t* scales;
    const float* bias;  // [panels * 64] or null
    int32_t kind, n, k, group;
    int32_t int8_rows;  // quantized kinds: round inputs to 8 bits per row and group, and multiply integers
    int32_t unused;

    int panels() const { return (n + kPanel - 1) / kPanel; }
    int rows() const { return (k + 7) / 8 * 8; }
    int groups() const { return (rows() + group - 1) / group; }
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

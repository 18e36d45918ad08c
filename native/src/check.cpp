#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "step.h"

namespace shoal {
namespace {

bool misplaced(const void* at, size_t alignment) {
    return reinterpret_cast<uintptr_t>(at) % alignment != 0;
}

bool missing(const void* at, size_t alignment = alignof(float)) {
    return !at || misplaced(at, alignment);
}

bool within(int64_t value, int64_t least, int64_t most) {
    return value >= least && value <= most;
}

int64_t pieces(int64_t count, int64_t each) {
    return (count + each - 1) / each;
}

// Whether a vector that may be left out is where a vector can be.
bool odd(const float* at) {
    return at && misplaced(at, alignof(float));
}

bool one_of(int32_t value, std::initializer_list<int32_t> values) {
    return std::find(values.begin(), values.end(), value) != values.end();
}

const char* wrong_section(const ShoalSection& section) {
    if (!one_of(section.bits, {2, 3, 4, 5, 6, 8})) return "there are no codes of so many bits";
    if (!within(section.steps, 1, kMaxWidth / 32)) return "the inputs of a section are out of bounds";
    if (section.group != 16 && (!within(section.group, 32, kMaxWidth) || section.group % 32))
        return "the group of a section is out of bounds";
    if (section.unit_groups < 1) return "the groups of a unit are out of bounds";
    if (!within(section.unit_kind, kUnitF16, kUnitF32) || !within(section.step_kind, kNone, kNibbles) ||
        !one_of(section.zero_kind, {kNone, kUnsigned, kNibbles}))
        return "there are no levels of this kind";
    if (!within(section.zero, 0, 255)) return "the zero of a section is out of bounds";
    if (odd(section.units) || odd(section.table)) return "the levels of a section are not where a vector can be";
    if (section.squared && !section.step_kind) return "squared levels need whole numbers";
    if (section.minima && section.units) return "minima need units in the stream";
    if (!section.table) return nullptr;
    if (section.bits != 4 || section.zero) return "a table is for codes of 4 bits from zero on";
    for (int code = 0; code < 16; ++code)
        if (!(section.table[code] >= -128.0f && section.table[code] <= 127.0f)) return "a table is out of bounds";
    return nullptr;
}

const char* wrong_sections(const ShoalMatrix& matrix, int64_t k) {
    if (!within(matrix.num_sections, 1, kMaxSections) || missing(matrix.sections, alignof(ShoalSection)))
        return "the sections of a matrix are missing or too many";
    int64_t stored = 0, bytes = 0;
    for (int32_t s = 0; s < matrix.num_sections; ++s) {
        if (const char* wrong = wrong_section(matrix.sections[s])) return wrong;
        stored += 32 * static_cast<int64_t>(matrix.sections[s].steps);
        bytes += matrix.sections[s].bytes();
    }
    if (matrix.order && misplaced(matrix.order, alignof(int32_t))) return "an order is not where a vector can be";
    // Without an order rows are read as they lie, with zeros up to a whole panel.
    if (matrix.stored != stored || stored < k || stored > (matrix.order ? kMaxWidth : pieces(k, kPanel) * kPanel))
        return "the sections of a matrix are not its inputs";
    return matrix.panel_bytes == bytes ? nullptr : "the panels of a matrix are not as long as its sections";
}

const char* wrong_matrix(const ShoalMatrix& matrix, int64_t k) {
    if (!within(matrix.kind, kF32, kPacked)) return "there is no such kind of matrix";
    if (missing(matrix.data)) return "the weights of a matrix are missing";
    if (matrix.kind == kPacked) return wrong_sections(matrix, k);
    return matrix.stored == pieces(k, 8) * 8 ? nullptr : "a matrix has not the inputs of its layer";
}

const char* wrong_layer(const ShoalLinear& linear, int64_t k, int64_t n) {
    if (const char* wrong = wrong_linear(&linear)) return wrong;
    return linear.k == k && linear.n == n ? nullptr : "a layer of a block has not the size of its place";
}

const char* wrong_shape(const ShoalShape& shape) {
    const bool sizes = within(shape.hidden, 1, kMaxWidth) && within(shape.intermediate, 1, kMaxWidth) &&
                       within(shape.heads, 1, kMaxRows) && within(shape.kv_heads, 1, shape.heads) &&
                       within(shape.head_dim, 1, kMaxHeadDim);
    if (!sizes) return "a size of the shape is out of bounds";
    if (shape.heads % shape.kv_heads) return "the heads are no multiple of the key heads";
    const int64_t width = (static_cast<int64_t>(shape.heads) + 2 * static_cast<int64_t>(shape.kv_heads)) * shape.head_dim;
    return width <= kMaxWidth ? nullptr : "the heads are too many for their size";
}

const char* wrong_block(const ShoalShape& shape, const ShoalBlock& block, const ShoalAngles* angles) {
    const int64_t attended = static_cast<int64_t>(shape.heads) * shape.head_dim;
    const int64_t keys = static_cast<int64_t>(shape.kv_heads) * shape.head_dim;
    const char* wrong = wrong_layer(block.qkv, shape.hidden, attended + 2 * keys);
    if (!wrong) wrong = wrong_layer(block.output, attended, shape.hidden);
    if (!wrong) wrong = wrong_layer(block.gate, shape.hidden, shape.intermediate);
    if (!wrong) wrong = wrong_layer(block.up, shape.hidden, shape.intermediate);
    if (!wrong) wrong = wrong_layer(block.down, shape.intermediate, shape.hidden);
    if (wrong) return wrong;
    if (block.gate.num_matrices != 1 || block.up.num_matrices != 1) return "gate and up are one matrix each";
    for (const float* vector : {block.attention_norm, block.mlp_norm, block.post_attention_norm, block.post_mlp_norm,
                                block.query_norm, block.key_norm, block.sinks})
        if (odd(vector)) return "a vector of a block is not where a vector can be";
    if (!within(block.activation, kSilu, kGeluTanh)) return "there is no such activation";
    if (!within(block.window, 0, kMaxPosition)) return "the window is out of bounds";
    if (!within(block.angles, 0, 1)) return "there is no such table of angles";
    if (!within(block.rotary_dim, 0, shape.head_dim) || block.rotary_dim % 2)
        return "the turned dimensions are out of bounds";
    const ShoalAngles& table = angles[block.angles];
    if (block.rotary_dim && (missing(table.cos) || missing(table.sin))) return "a block's table of angles is missing";
    if (!(block.norm_eps >= 0.0f) || !std::isfinite(block.norm_eps) || !std::isfinite(block.query_scale) ||
        !std::isfinite(block.attn_softcap))
        return "a number of a block is not finite";
    return nullptr;
}

// Panels are dealt out in the same way for all blocks of a step.
bool same_panels(const ShoalBlock& one, const ShoalBlock& other) {
    return one.qkv.panels() == other.qkv.panels() && one.output.panels() == other.output.panels() &&
           one.down.panels() == other.down.panels();
}

const char* wrong_cache(const ShoalShape& shape, const ShoalCache* cache) {
    if (missing(cache, alignof(ShoalCache))) return "the cache is missing";
    if (!within(cache->kind, kCacheF32, kCacheInt4)) return "there is no such kind of cache";
    const size_t code = cache->kind == kCacheF32 ? 4 : cache->kind >= kCacheInt8 ? 1 : 2;
    if (missing(cache->keys, code) || missing(cache->values, code)) return "the pages of the cache are missing";
    if (cache->kind >= kCacheInt8 && (missing(cache->key_scales) || missing(cache->value_scales)))
        return "the scales of the cache are missing";
    if (cache->width % 16 || !within(cache->width, shape.head_dim, kMaxHeadDim))
        return "the width of the cache is not that of its heads";
    if (cache->turning < 1 || (cache->turning & (cache->turning - 1)) || shape.head_dim % cache->turning)
        return "the keys of the cache cannot be turned so";
    return cache->pages >= 1 ? nullptr : "the cache has no pages";
}

// The pages of the blocks that a part reads and writes.
const char* wrong_pages(const ShoalPart& part, const ShoalCache& cache, int32_t num_blocks) {
    const int64_t count = pieces(static_cast<int64_t>(part.position) + part.rows, kPageTokens);
    if (!within(part.stride, count, kMaxPosition)) return "a part has fewer pages than tokens";
    for (int32_t block = 0; block < num_blocks; ++block)
        for (int64_t page = 0; page < count; ++page)
            if (!within(part.table[block * part.stride + page], 0, cache.pages - 1))
                return "a part names a page that the cache does not have";
    return nullptr;
}

const char* wrong_parts(const ShoalCache& cache, const ShoalPart* parts, int32_t num_parts, int32_t num_blocks,
                        int32_t n) {
    if (missing(parts, alignof(ShoalPart)) || !within(num_parts, 1, n)) return "the parts are missing or too many";
    int64_t first = 0;
    for (int32_t p = 0; p < num_parts; ++p) {
        const ShoalPart& part = parts[p];
        if (!within(part.rows, 1, n) || part.first != first) return "the parts are not one after the other";
        if (!within(part.position, 0, kMaxPosition - part.rows)) return "a position is out of bounds";
        if (missing(part.table)) return "a part has no table of pages";
        if (const char* wrong = wrong_pages(part, cache, num_blocks)) return wrong;
        first += part.rows;
    }
    return first == n ? nullptr : "the parts are not all rows";
}

}  // namespace

const char* wrong_linear(const ShoalLinear* linear) {
    if (missing(linear, alignof(ShoalLinear))) return "a linear layer is missing";
    if (!within(linear->n, 1, kMaxWidth) || !within(linear->k, 1, kMaxWidth))
        return "a side of a linear layer is out of bounds";
    if (odd(linear->bias)) return "a bias is not where a vector can be";
    if (!within(linear->num_matrices, 1, kMaxMatrices) || missing(linear->matrices, alignof(ShoalMatrix)))
        return "the matrices of a linear layer are missing or too many";
    int64_t first = 0;
    bool codes = false;
    for (int32_t m = 0; m < linear->num_matrices; ++m) {
        const ShoalMatrix& matrix = linear->matrices[m];
        if (matrix.first != first || !within(matrix.n, 1, linear->n - first))
            return "the matrices of a linear layer are not one under the other";
        if (const char* wrong = wrong_matrix(matrix, linear->k)) return wrong;
        codes = codes || matrix.kind == kPacked;
        first += matrix.n;
    }
    if (first != linear->n) return "the matrices of a linear layer are not all its outputs";
    return linear->int8_rows && !codes ? "8-bit rows need codes" : nullptr;
}

const char* wrong_product(const ShoalLinear* linear, const float* norm_weight, float eps, const float* x, int32_t n,
                          const float* out, int64_t ldd) {
    if (const char* wrong = wrong_linear(linear)) return wrong;
    if (odd(norm_weight)) return "a norm is not where a vector can be";
    if (!(eps >= 0.0f) || !std::isfinite(eps)) return "the norm's epsilon is out of bounds";
    if (!within(n, 1, kMaxRows)) return "the number of rows is out of bounds";
    if (missing(x) || missing(out)) return "the rows or their room are missing";
    if (!within(ldd, pieces(linear->n, kPanel) * kPanel, 2 * static_cast<int64_t>(kMaxWidth))) return "the room is narrower than the product";
    return linear->panels() * pieces(n, kRowBlock) <= kMaxItems ? nullptr : "the product is too large for one call";
}

const char* wrong_reading(const float* data, int64_t count, int32_t items) {
    if (missing(data) || count < 0) return "there is nothing to read";
    return within(items, 1, kMaxItems) ? nullptr : "the number of pieces is out of bounds";
}

const char* wrong_step(const ShoalShape* shape, const ShoalBlock* const* blocks, int32_t num_blocks,
                       const ShoalCache* cache, const ShoalPart* parts, int32_t num_parts, const ShoalAngles* angles,
                       const float* x, int32_t n) {
    if (missing(shape, alignof(ShoalShape)) || missing(angles, alignof(ShoalAngles)))
        return "the shape or the angles are missing";
    if (missing(x) || !within(n, 1, kMaxRows)) return "the rows are missing or out of bounds";
    if (missing(blocks, alignof(void*)) || !within(num_blocks, 1, kMaxBlocks)) return "the blocks are missing";
    const char* wrong = wrong_shape(*shape);
    if (!wrong) wrong = wrong_cache(*shape, cache);
    for (int32_t block = 0; !wrong && block < num_blocks; ++block)
        wrong = missing(blocks[block], alignof(ShoalBlock)) ? "a block is missing"
                                                            : wrong_block(*shape, *blocks[block], angles);
    for (int32_t block = 1; !wrong && block < num_blocks; ++block)
        if (!same_panels(*blocks[0], *blocks[block])) wrong = "the blocks are not divided into the same matrices";
    if (!wrong) wrong = wrong_parts(*cache, parts, num_parts, num_blocks, n);
    if (wrong) return wrong;
    const int64_t most = std::max({blocks[0]->output.panels(), blocks[0]->gate.panels(), blocks[0]->qkv.panels()});
    const int64_t products = most * pieces(n, kRowBlock);
    const int64_t attention = (num_parts + pieces(n, kAttentionRows)) * static_cast<int64_t>(shape->kv_heads);
    return std::max(products, attention) <= kMaxItems ? nullptr : "the step is too large for one call";
}

}  // namespace shoal

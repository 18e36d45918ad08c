// Pages of the KV cache: a token's keys and values into them, and a page as floats. Included once per instruction set.
#pragma once

namespace shoal::SHOAL_ISA {

// The number of the first token slot of a page and key head; times the width, it is the first element.
inline size_t first_slot(const ShoalShape& shape, int32_t page, int kv_head) {
    return (static_cast<size_t>(page) * shape.kv_heads + kv_head) * kPageTokens;
}

inline uint16_t bf16_of(float x) {  // to nearest even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 64);  // NaN stays NaN
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
inline uint16_t half_of(float x) {
    return static_cast<uint16_t>(
        _mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)));
}

// The greatest number, or the least if that is larger without its sign; NaN if there is one, so that it stays visible.
inline float peak_of(const float* x, int n) {
    float least = x[0], greatest = x[0];
    for (int i = 0; i < n; ++i) {
        if (!(x[i] == x[i])) return x[i];
        least = x[i] < least ? x[i] : least;
        greatest = x[i] > greatest ? x[i] : greatest;
    }
    return greatest < -least ? least : greatest;
}

// One vector of a head into a page: element i goes to codes[i · stride].
inline void write_codes(const ShoalCache& cache, void* to, float* scale, const float* x, int n, size_t first,
                        size_t stride, int nibble_at) {
    if (cache.kind == kCacheF32) {
        for (int i = 0; i < n; ++i) static_cast<float*>(to)[first + i * stride] = x[i];
    } else if (cache.kind == kCacheBf16) {
        for (int i = 0; i < n; ++i) static_cast<uint16_t*>(to)[first + i * stride] = bf16_of(x[i]);
    } else if (cache.kind == kCacheF16) {
        for (int i = 0; i < n; ++i) static_cast<uint16_t*>(to)[first + i * stride] = half_of(x[i]);
    } else {
        const float top = cache.kind == kCacheInt8 ? 127.0f : 7.0f;
        *scale = peak_of(x, n) / (-1.0f - top) + 0.0f;  // −0 becomes +0
        for (int i = 0; i < n; ++i) {
            float code = *scale != 0.0f ? std::nearbyint(x[i] / *scale) : 0.0f;
            code = code > top ? top : code >= -1.0f - top ? code : code < -1.0f - top ? -1.0f - top : 0.0f;
            if (cache.kind == kCacheInt8) {
                static_cast<int8_t*>(to)[first + i * stride] = static_cast<int8_t>(code);
                continue;
            }
            const int at = nibble_at < 0 ? (i >= cache.width / 2)
                                         : nibble_at;  // values: the half of the dims; keys: of the tokens
            uint8_t& byte = static_cast<uint8_t*>(to)[first + (nibble_at < 0 ? i % (cache.width / 2) : i) * stride];
            const int value = static_cast<int>(code) + 8;
            byte = static_cast<uint8_t>(at ? (byte & 0x0f) | (value << 4) : (byte & 0xf0) | value);
        }
    }
}

// A head's key and value [head_dim] of one token into the cache.
inline void write_token(const ShoalShape& shape, const ShoalCache& cache, int32_t page, int kv_head, int slot,
                        const float* key, const float* value) {
    const size_t tokens = first_slot(shape, page, kv_head);
    const bool packed = cache.kind == kCacheInt4;
    const size_t page_size = tokens * cache.width / (packed ? 2 : 1);
    float* key_scale = cache.key_scales ? cache.key_scales + tokens + slot : nullptr;
    float* value_scale = cache.value_scales ? cache.value_scales + tokens + slot : nullptr;
    const int half = kPageTokens / 2;
    if (packed) {
        write_codes(cache, cache.keys, key_scale, key, shape.head_dim, page_size + slot % half, half, slot >= half);
        write_codes(cache, cache.values, value_scale, value, shape.head_dim,
                    page_size + static_cast<size_t>(slot) * cache.width / 2, 1, -1);
    } else {
        write_codes(cache, cache.keys, key_scale, key, shape.head_dim, page_size + slot, kPageTokens, 0);
        write_codes(cache, cache.values, value_scale, value, shape.head_dim,
                    page_size + static_cast<size_t>(slot) * cache.width, 1, 0);
    }
}

// A page's codes [rows][columns] of one head as floats; a scale belongs to a column (keys) or to a row (values).
inline const float* page_floats(const ShoalCache& cache, const void* codes, const float* scales, size_t tokens,
                                bool keys, float* buffer) {
    const int columns = keys ? kPageTokens : cache.width, rows = keys ? cache.width : kPageTokens;
    const size_t first = tokens * cache.width, count = static_cast<size_t>(rows) * columns;
    if (cache.kind == kCacheF32) return static_cast<const float*>(codes) + first;
    if (cache.kind == kCacheBf16 || cache.kind == kCacheF16) {
        const uint16_t* from = static_cast<const uint16_t*>(codes) + first;
        for (size_t i = 0; i < count; i += W)
            store(buffer + i, cache.kind == kCacheBf16 ? bf16_to_float(from + i) : half_to_float(from + i));
        return buffer;
    }
    for (int r = 0; r < rows; ++r) {
        float* to = buffer + static_cast<size_t>(r) * columns;
        if (cache.kind == kCacheInt8) {
            const int8_t* from = static_cast<const int8_t*>(codes) + first + static_cast<size_t>(r) * columns;
            for (int c = 0; c < columns; c += W) store(to + c, int8_to_float(from + c));
        } else {
            const uint8_t* from = static_cast<const uint8_t*>(codes) + first / 2 + static_cast<size_t>(r) * columns / 2;
            for (int c = 0; c < columns / 2; ++c) {
                to[c] = static_cast<float>(static_cast<int>(from[c] & 0x0f) - 8);
                to[c + columns / 2] = static_cast<float>(static_cast<int>(from[c] >> 4) - 8);
            }
        }
        const F row_scale = all(keys ? 1.0f : scales[tokens + r]);
        for (int c = 0; c < columns; c += W)
            store(to + c, mul(load(to + c), keys ? load(scales + tokens + c) : row_scale));
    }
    return buffer;
}

}  // namespace shoal::SHOAL_ISA

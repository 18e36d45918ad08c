// Causal attention of a session's rows over its pages, for one key head: pages in order, an online softmax
// (arXiv:2112.05682) whose every operation for a row is fixed by that row's position. Included once per instruction
// set.
#pragma once
#include <limits>

namespace shoal::SHOAL_ISA {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

// The running state of some queries that share a key head.
struct Queries {
    int count;                   // queries
    int group;                   // queries of one row: query i belongs to row i / group
    float* q;                    // [count][width], scaled
    float* product;              // [count][width]
    float* scores;               // [count][64], then weights
    float *most, *total, *fade;  // [count]
};

// Scores of the page's first `tokens` tokens, and of some more: whole vectors.
inline void score_page(const Queries& all_, int head_dim, int width, const float* keys, int tokens) {
    const int vectors = (tokens + W - 1) / W;
    row_tiles<6>(all_.count, [&]<int R>(int r) {
        const auto score = [&]<int N>(int v) {
            Sums<R, N> sums;
            sums.clear();
            accumulate<F32, R, N>(all_.q + static_cast<size_t>(r) * width, width,
                                  reinterpret_cast<const uint32_t*>(keys) + v * W, kPageTokens, head_dim, sums);
            sums.store_to(all_.scores + static_cast<size_t>(r) * kPanel + v * W, kPanel);
            return v + N;
        };
        for (int v = 0; v < vectors;)
            v = vectors - v == 1 ? score.template operator()<1>(v) : score.template operator()<span_of<F32, R>()>(v);
    });
}

// Scores become weights for the tokens [first, last) of the page; the running maximum and sum go on.
inline void weigh(const Queries& q, int i, int first, int last, float softcap) {
    float* scores = q.scores + static_cast<size_t>(i) * kPanel;
    F s[NV];
    for (int v = 0; v < NV; ++v) {
        s[v] = load(scores + v * W);
        if (softcap > 0.0f) s[v] = mul(all(softcap), tanh(div(s[v], all(softcap))));
        s[v] = inside(s[v], all(kNothing), first - v * W, last - v * W);
    }
    const float here = max64(s), most = here > q.most[i] ? here : q.most[i];
    for (int v = 0; v < NV; ++v) {
        s[v] = inside(exp(sub(s[v], all(most))), zero(), first - v * W, last - v * W);
        store(scores + v * W, s[v]);
    }
    float fades[W];
    store(fades, exp(all(q.most[i] - most)));
    q.fade[i] = fades[0];
    q.total[i] = q.total[i] * q.fade[i] + sum64(s);
    q.most[i] = most;
}

// product = product · fade + weights · values for `count` queries that see the same tokens.
inline void add_values(const Queries& q, int from, int count, int width, const float* values, int first, int last) {
    row_tiles<6>(count, [&]<int R>(int r) {
        constexpr int N = span_of<F32, R>();
        const int i = from + r;
        for (int d = 0; d < width; d += N * W) {
            Sums<R, N> sums;
            float* product = q.product + static_cast<size_t>(i) * width + d;
            sums.load_from(product, width);
            for (int t = 0; t < R; ++t)
                for (int v = 0; v < N; ++v) sums.at[t][v] = mul(sums.at[t][v], all(q.fade[i + t]));
            accumulate<F32, R, N>(
                q.scores + static_cast<size_t>(i) * kPanel + first, kPanel,
                reinterpret_cast<const uint32_t*>(values) + static_cast<size_t>(first) * width + d, width, last - first,
                sums);
            sums.store_to(product, width);
        }
    });
}

inline size_t attention_scratch(const ShoalShape& shape, const ShoalCache& cache, int rows) {
    const size_t queries = static_cast<size_t>(rows) * (shape.heads / shape.kv_heads);
    return queries * (2 * cache.width + kPanel + 3) + 2 * static_cast<size_t>(cache.width) * kPageTokens + 64;
}

// Row `row` of `qkv` [·][ld]: a head of it, normed, turned, into `out`.
inline void make_head(const ShoalShape& shape, const ShoalBlock& block, const float* from, const float* norm,
                      const ShoalAngles& angles, int row, float* out) {
    if (norm)
        rms_norm(from, norm, block.norm_eps, shape.head_dim, out, shape.head_dim);
    else
        std::memcpy(out, from, shape.head_dim * sizeof(float));
    const int half = block.rotary_dim / 2;
    rotate(out, angles.cos + static_cast<size_t>(row) * half, angles.sin + static_cast<size_t>(row) * half,
           block.rotary_dim);
}

// Keys and values of rows [first, last) of a part, one key head, from `qkv` into the cache.
inline void write_item(const ShoalShape& shape, const ShoalBlock& block, const ShoalCache& cache, const ShoalPart& part,
                       const int32_t* table, int kv_head, int first, int last, const float* qkv, size_t ld,
                       const ShoalAngles& angles) {
    float key[512];
    for (int r = first; r < last; ++r) {
        const int row = part.first + r, position = part.position + r;
        const float* keys = qkv + row * ld + static_cast<size_t>(shape.heads + kv_head) * shape.head_dim;
        make_head(shape, block, keys, block.key_norm, angles, row, key);
        turn(key, shape.head_dim, cache.turning);
        write_token(shape, cache, table[position / kPageTokens], kv_head, position % kPageTokens, key,
                    keys + static_cast<size_t>(shape.kv_heads) * shape.head_dim);
    }
}

// Attention of rows [first, last) of a part for the query heads of one key head; out [·][ldo] at those heads' columns.
inline void attention_item(const ShoalShape& shape, const ShoalBlock& block, const ShoalCache& cache,
                           const ShoalPart& part, const int32_t* table, int kv_head, int first, int last,
                           const float* qkv, size_t ld, const ShoalAngles& angles, float* out, size_t ldo,
                           float* scratch) {
    const int group = shape.heads / shape.kv_heads, width = cache.width, count = (last - first) * group;
    Queries q{count, group, scratch, nullptr, nullptr, nullptr, nullptr, nullptr};
    q.product = q.q + static_cast<size_t>(count) * width;
    q.scores = q.product + static_cast<size_t>(count) * width;
    float* key_buffer = q.scores + static_cast<size_t>(count) * kPanel;
    float* value_buffer = key_buffer + static_cast<size_t>(width) * kPageTokens;
    q.most = value_buffer + static_cast<size_t>(width) * kPageTokens;
    q.total = q.most + count;
    q.fade = q.total + count;
    for (int i = 0; i < count; ++i) {
        const int row = part.first + first + i / group, head = kv_head * group + i % group;
        float* query = q.q + static_cast<size_t>(i) * width;
        make_head(shape, block, qkv + row * ld + static_cast<size_t>(head) * shape.head_dim, block.query_norm, angles,
                  row, query);
        turn(query, shape.head_dim, cache.turning);
        for (int d = 0; d < shape.head_dim; ++d) query[d] *= block.query_scale;
        std::memset(q.product + static_cast<size_t>(i) * width, 0, width * sizeof(float));
        q.most[i] = block.sinks ? block.sinks[head] : kNothing;  // a sink is a key without a value
        q.total[i] = block.sinks ? 1.0f : 0.0f;
    }
    const int earliest = part.position + first, latest = part.position + last - 1;
    const int begin = block.window > 0 && earliest >= block.window ? (earliest - block.window + 1) / kPageTokens : 0;
    for (int page = begin; page <= latest / kPageTokens; ++page) {
        const size_t tokens = first_slot(shape, table[page], kv_head);
        const float* keys = page_floats(cache, cache.keys, cache.key_scales, tokens, true, key_buffer);
        const float* values = page_floats(cache, cache.values, cache.value_scales, tokens, false, value_buffer);
        score_page(q, shape.head_dim, width, keys, std::min(latest - page * kPageTokens + 1, kPageTokens));
        const auto seen = [&](int r, int& from, int& to) {  // the page's tokens that a row sees
            const int at = part.position + r - page * kPageTokens;
            to = at >= kPageTokens ? kPageTokens : at + 1;
            from = block.window > 0 && at - block.window + 1 > 0 ? at - block.window + 1 : 0;
        };
        for (int r = first; r < last;) {
            int from, to;
            seen(r, from, to);
            int end = r + 1;
            for (int f, t; end < last; ++end) {
                seen(end, f, t);
                if (f != from || t != to) break;
            }
            if (from < to) {
                const int i = (r - first) * group, n = (end - r) * group;
                for (int j = i; j < i + n; ++j) weigh(q, j, from, to, block.attn_softcap);
                add_values(q, i, n, width, values, from, to);
            }
            r = end;
        }
    }
    for (int i = 0; i < count; ++i) {
        const int row = part.first + first + i / group, head = kv_head * group + i % group;
        float* to = out + row * ldo + static_cast<size_t>(head) * shape.head_dim;
        const float* from = q.product + static_cast<size_t>(i) * width;
        for (int d = 0; d < shape.head_dim; ++d) to[d] = from[d] / q.total[i];
    }
}

}  // namespace shoal::SHOAL_ISA

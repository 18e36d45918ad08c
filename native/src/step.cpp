#include "step.h"

#include <algorithm>
#include <cstring>

namespace shoal {
namespace {

constexpr int kFewRows = 16;
constexpr int kNormRows = 16;  // rows of one item of a norm

size_t padded(int n) {
    return static_cast<size_t>((n + kPanel - 1) / kPanel) * kPanel;
}

float* take(float*& at, size_t count) {
    float* here = at;
    at += count;
    return here;
}

}  // namespace

Runs::Runs(const ShoalLinear& linear, int threads, bool long_first) {
    const int panels = linear.panels();
    // Long runs first, since a long stream of weights is read faster, and single panels at the end, since nobody should
    // wait. Of many rows each panel is long, and a run is one; with codes it is as long as makes up for preparing the rows.
    const int even = linear.codes() ? std::max(1, panels / (2 * threads)) : 1;
    for (int at = 0; at < panels; at += long_first ? std::max(1, (panels - at) / (2 * threads)) : even)
        starts_.push_back(at);
    starts_.push_back(panels);
}

void run_product(const Kernels& kernels, const ShoalLinear& linear, int first, int last, const float* x, size_t ldx, int m,
                 float* dst, size_t ldd, int columns, bool add, Scratch& scratch) {
    const bool integers = linear.int8_rows;
    size_t most = 0;
    for (int i = 0; i < linear.num_matrices; ++i)
        most = std::max(most, kernels.rows_scratch(linear.matrices[i], integers, m));
    const size_t items = kernels.panel_scratch(m);
    float* memory = scratch.floats(items + most);
    PreparedRows rows{};
    for (int panel = first; panel < last; ++panel) {
        const Place place = linear.place(panel);
        if (rows.of != place.matrix)
            rows = kernels.prepare_rows(*place.matrix, integers, linear.k, x, ldx, m, memory + items);
        kernels.linear_item(linear, place, rows, m, dst, ldd, columns, add, memory);
    }
}

Step::Step(const Kernels& kernels, const StepInput& input, int threads, Scratch& shared)
    : kernels_(kernels), in_(input), shape_(*input.shape), few_(input.n <= kFewRows) {
    alone_ = true;
    for (int p = 0; p < in_.num_parts; ++p) {
        const int rows = in_.parts[p].rows;
        alone_ = alone_ && rows <= kAttentionRows;
        for (int r = 0; r < rows; r += kAttentionRows) chunks_.push_back({p, r, std::min(rows, r + kAttentionRows)});
    }
    row_block_ = std::min(in_.n, kRowBlock);
    const ShoalBlock& first = *in_.blocks[0];
    for (const ShoalLinear* linear : {&first.qkv, &first.output, &first.gate, &first.down})
        runs_.emplace_back(*linear, threads, few_);
    hidden_ld_ = padded(shape_.hidden);
    qkv_ld_ = padded((shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim);
    attended_ld_ = padded(shape_.heads * shape_.head_dim);
    inner_ld_ = padded(shape_.intermediate);
    const size_t n = in_.n;
    float* at = shared.floats(n * (2 * hidden_ld_ + qkv_ld_ + attended_ld_ + inner_ld_));
    normed_ = take(at, n * hidden_ld_);
    delta_ = take(at, n * hidden_ld_);
    qkv_ = take(at, n * qkv_ld_);
    inner_ = take(at, n * inner_ld_);
    attended_ = take(at, n * attended_ld_);
    // Its padding is read, by weights of zero, and must be finite; the others' is written.
    for (size_t r = 0; r < n; ++r) std::memset(attended_ + r * attended_ld_, 0, attended_ld_ * sizeof(float));
}

int Step::begin(int phase) {
    block_ = phase / kStages;
    if (block_ >= in_.num_blocks) return -1;
    const ShoalBlock& b = block();
    const int norm_items = (in_.n + kNormRows - 1) / kNormRows;
    switch (static_cast<Stage>(phase % kStages)) {
        case kNormQkv:
        case kNormMlp:
        case kPost: {
            const Stage stage = static_cast<Stage>(phase % kStages);
            if (stage == kPost && !b.post_mlp_norm) return 0;
            if (!few_) return norm_items;
            norm_rows(stage, 0, in_.n);
            return 0;
        }
        case kQkv:
            return runs_[0].count() * rows_items();
        case kWrite:
            return alone_ ? 0 : in_.num_parts * shape_.kv_heads;
        case kAttend:
            return static_cast<int>(chunks_.size()) * shape_.kv_heads;
        case kOutput:
            return runs_[1].count() * rows_items();
        case kGateUp:
            return runs_[2].count() * rows_items();
        default:
            return runs_[3].count() * rows_items();
    }
}

void Step::item(int phase, int index, Scratch& scratch) {
    const ShoalBlock& b = block();
    const Stage stage = static_cast<Stage>(phase % kStages);
    switch (stage) {
        case kNormQkv:
        case kNormMlp:
        case kPost:
            norm_rows(stage, index * kNormRows, std::min(in_.n, (index + 1) * kNormRows));
            break;
        case kQkv:
            product(b.qkv, runs_[0], index, normed_, hidden_ld_, qkv_, qkv_ld_, static_cast<int>(qkv_ld_), false,
                    scratch);
            break;
        case kWrite:
            write(index);
            break;
        case kAttend:
            attend(index, scratch);
            break;
        case kOutput:
        case kDown: {
            const bool output = stage == kOutput;
            const float* from = output ? attended_ : inner_;
            const size_t ld = output ? attended_ld_ : inner_ld_;
            const bool post = output ? b.post_attention_norm : b.post_mlp_norm;
            const ShoalLinear& linear = output ? b.output : b.down;
            if (post)
                product(linear, output ? runs_[1] : runs_[3], index, from, ld, delta_, hidden_ld_,
                        static_cast<int>(hidden_ld_), false, scratch);
            else
                product(linear, output ? runs_[1] : runs_[3], index, from, ld, in_.x, shape_.hidden, shape_.hidden,
                        true, scratch);
            break;
        }
        default: {
            const Runs& runs = runs_[2];
            const int run = index % runs.count(), r = index / runs.count() * row_block_;
            const int m = std::min(in_.n - r, row_block_);
            gated(runs.start(run), runs.start(run + 1), r, m, scratch);
        }
    }
}

void Step::gated(int first, int last, int row, int m, Scratch& scratch) {
    const ShoalBlock& b = block();
    const ShoalMatrix &gate = *b.gate.matrices, &up = *b.up.matrices;
    const size_t items = kernels_.panel_scratch(m), of_gate = kernels_.rows_scratch(gate, b.gate.int8_rows, m);
    float* memory = scratch.floats(items + of_gate + kernels_.rows_scratch(up, b.up.int8_rows, m));
    const float* x = normed_ + row * hidden_ld_;
    const PreparedRows gate_rows =
        kernels_.prepare_rows(gate, b.gate.int8_rows, b.gate.k, x, hidden_ld_, m, memory + items);
    const PreparedRows up_rows =
        kernels_.prepare_rows(up, b.up.int8_rows, b.up.k, x, hidden_ld_, m, memory + items + of_gate);
    for (int panel = first; panel < last; ++panel)
        kernels_.gated_item(b.gate, b.up, panel, gate_rows, up_rows, m, inner_ + row * inner_ld_, inner_ld_, b.activation,
                            memory);
}

void Step::norm_rows(Stage stage, int first, int last) {
    const ShoalBlock& b = block();
    const float* post = stage == kNormMlp ? b.post_attention_norm : stage == kPost ? b.post_mlp_norm : nullptr;
    for (int r = first; r < last; ++r) {
        float* x = in_.x + static_cast<size_t>(r) * shape_.hidden;
        if (post) {
            float* delta = delta_ + r * hidden_ld_;
            kernels_.rms_norm(delta, post, b.norm_eps, shape_.hidden, delta, shape_.hidden);
            for (int i = 0; i < shape_.hidden; ++i) x[i] += delta[i];
        }
        if (stage == kPost) continue;
        const float* norm = stage == kNormQkv ? b.attention_norm : b.mlp_norm;
        float* to = normed_ + r * hidden_ld_;
        if (norm) {
            kernels_.rms_norm(x, norm, b.norm_eps, shape_.hidden, to, static_cast<int>(hidden_ld_));
        } else {
            std::memcpy(to, x, shape_.hidden * sizeof(float));
            std::memset(to + shape_.hidden, 0, (hidden_ld_ - shape_.hidden) * sizeof(float));
        }
    }
}

void Step::product(const ShoalLinear& linear, const Runs& runs, int index, const float* x, size_t ldx, float* dst,
                   size_t ldd, int columns, bool add, Scratch& scratch) {
    const int run = index % runs.count(), r = index / runs.count() * row_block_;
    const int m = std::min(in_.n - r, row_block_);
    run_product(kernels_, linear, runs.start(run), runs.start(run + 1), x + r * ldx, ldx, m, dst + r * ldd, ldd, columns,
                add, scratch);
}

void Step::write(int index) {
    // A part's tokens are one item for each head: in a 4-bit cache two tokens of a head share a byte.
    const ShoalPart& part = in_.parts[index / shape_.kv_heads];
    kernels_.write_item(shape_, block(), *in_.cache, part, table(part), index % shape_.kv_heads, 0, part.rows, qkv_,
                        qkv_ld_, in_.angles[block().angles]);
}

void Step::attend(int index, Scratch& scratch) {
    const Chunk& chunk = chunks_[index / shape_.kv_heads];
    const int head = index % shape_.kv_heads;
    const ShoalPart& part = in_.parts[chunk.part];
    const ShoalAngles& angles = in_.angles[block().angles];
    if (alone_)
        kernels_.write_item(shape_, block(), *in_.cache, part, table(part), head, chunk.first, chunk.last, qkv_,
                            qkv_ld_, angles);
    float* memory = scratch.floats(kernels_.attention_scratch(shape_, *in_.cache, chunk.last - chunk.first));
    kernels_.attention_item(shape_, block(), *in_.cache, part, table(part), head, chunk.first, chunk.last, qkv_,
                            qkv_ld_, angles, attended_, attended_ld_, memory);
}

Product::Product(const Kernels& kernels, const ShoalLinear& linear, const float* norm_weight, float eps, const float* x,
                 int n, float* out, size_t ldd, int threads, Scratch& shared)
    : kernels_(kernels),
      linear_(linear),
      n_(n),
      row_block_(std::min(n, kRowBlock)),
      runs_(linear, threads, true),
      ld_(padded(linear.k)),
      ldd_(ldd),
      out_(out) {
    rows_ = shared.floats(static_cast<size_t>(n) * ld_);
    for (int r = 0; r < n; ++r) {
        const float* from = x + static_cast<size_t>(r) * linear.k;
        float* to = rows_ + r * ld_;
        if (norm_weight) {
            kernels.rms_norm(from, norm_weight, eps, linear.k, to, static_cast<int>(ld_));
        } else {
            std::memcpy(to, from, linear.k * sizeof(float));
            std::memset(to + linear.k, 0, (ld_ - linear.k) * sizeof(float));
        }
    }
}

int Product::begin(int phase) {
    return phase ? -1 : runs_.count() * ((n_ + row_block_ - 1) / row_block_);
}

void Product::item(int, int index, Scratch& scratch) {
    const int run = index % runs_.count(), r = index / runs_.count() * row_block_;
    const int m = std::min(n_ - r, row_block_);
    run_product(kernels_, linear_, runs_.start(run), runs_.start(run + 1), rows_ + r * ld_, ld_, m, out_ + r * ldd_, ldd_,
                static_cast<int>(ldd_), false, scratch);
}

}  // namespace shoal

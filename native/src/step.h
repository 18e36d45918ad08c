// Rows through consecutive blocks, as one job of phases: per block qkv, attention, output, gate and up, down.
#pragma once
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace shoal {

constexpr int kRowBlock = 128;      // rows of one item of a product: weights are unpacked once for so many
constexpr int kAttentionRows = 16;  // rows of one item of attention

struct StepInput {
    const ShoalShape* shape;
    const ShoalBlock* const* blocks;
    int num_blocks;
    const ShoalCache* cache;
    const ShoalPart* parts;
    int num_parts;
    ShoalAngles angles[2];
    float* x;  // [n][hidden], in place
    int n;
};

// How the panels of a product are dealt out: item i has those from start(i) to start(i + 1).
class Runs {
public:
    Runs(const ShoalLinear& linear, int threads, bool long_first);
    int count() const { return static_cast<int>(starts_.size()) - 1; }
    int start(int run) const { return starts_[run]; }

private:
    std::vector<int> starts_;
};

// A linear layer's products for some rows: panels from `first` to `last` into dst [m][ldd], = or +=, never beyond `columns`.
void run_product(const Kernels& kernels, const ShoalLinear& linear, int first, int last, const float* x, size_t ldx, int m,
                 float* dst, size_t ldd, int columns, bool add, Scratch& scratch);

class Step final : public Job {
public:
    Step(const Kernels& kernels, const StepInput& input, int threads, Scratch& shared);
    int begin(int phase) override;
    void item(int phase, int index, Scratch& scratch) override;

private:
    enum Stage { kNormQkv, kQkv, kWrite, kAttend, kOutput, kNormMlp, kGateUp, kDown, kPost, kStages };
    struct Chunk {
        int part, first, last;
    };

    int rows_items() const { return (in_.n + row_block_ - 1) / row_block_; }
    void norm_rows(Stage stage, int first, int last);
    void product(const ShoalLinear& linear, const Runs& runs, int index, const float* x, size_t ldx, float* dst,
                 size_t ldd, int columns, bool add, Scratch& scratch);
    void gated(int first, int last, int row, int m, Scratch& scratch);
    void attend(int index, Scratch& scratch);
    void write(int index);
    const ShoalBlock& block() const { return *in_.blocks[block_]; }
    const int32_t* table(const ShoalPart& part) const { return part.table + block_ * part.stride; }

    const Kernels& kernels_;
    const StepInput in_;
    const ShoalShape& shape_;
    std::vector<Runs> runs_;     // of qkv, output, gate (and up), down: the same for every block
    std::vector<Chunk> chunks_;  // pieces of parts whose attention is one item
    bool alone_;                 // every part is one chunk, so that an item may write its keys itself
    bool few_;                   // few rows: what goes along whole rows is done between phases
    int row_block_;
    int block_ = 0;
    size_t hidden_ld_, qkv_ld_, attended_ld_, inner_ld_;
    float *normed_, *qkv_, *attended_, *delta_, *inner_;
};

// out [n][ldd] = norm(x) · linear, where `norm_weight` may be null.
class Product final : public Job {
public:
    Product(const Kernels& kernels, const ShoalLinear& linear, const float* norm_weight, float eps, const float* x,
            int n, float* out, size_t ldd, int threads, Scratch& shared);
    int begin(int phase) override;
    void item(int phase, int index, Scratch& scratch) override;

private:
    const Kernels& kernels_;
    const ShoalLinear& linear_;
    int n_, row_block_;
    Runs runs_;
    size_t ld_, ldd_;
    float *rows_, *out_;
};

// Reads memory and does nothing with it: what a decode step cannot be faster than.
class Reading final : public Job {
public:
    Reading(const Kernels& kernels, const float* data, size_t count, int items)
        : kernels_(kernels), data_(data), each_(count / items / 256 * 256), items_(items) {}
    int begin(int phase) override { return phase ? -1 : items_; }
    void item(int, int index, Scratch&) override {
        if (kernels_.read(data_ + index * each_, each_) == 0.5f) found_ = true;
    }

private:
    const Kernels& kernels_;
    const float* data_;
    size_t each_;
    int items_;
    volatile bool found_ = false;
};

}  // namespace shoal

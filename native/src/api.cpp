// The exported functions. A context is a thread pool, its memory and the kernels that it uses. A call that cannot be
// right does nothing and says what is wrong; nothing is thrown at the caller.
#include <cstring>
#include <exception>

#include "check.h"
#include "step.h"

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace shoal {

const Kernels* choose_kernels(int limit, int non_temporal) {
#if defined(__GNUC__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    // Where it was measured, non-temporal prefetches are as fast as others on AMD's processors (Zen 5) and half as fast
    // on Intel's (Sapphire Rapids: nothing else fetches ahead for them).
    if (non_temporal < 0) non_temporal = __builtin_cpu_is("amd") ? 1 : 0;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
#else
    const bool avx2 = false, avx512 = false;
#endif
    if (avx512 && limit >= 5) return non_temporal ? &kAvx512NonTemporal : &kAvx512;
    if (avx2 && limit >= 2) return non_temporal ? &kAvx2NonTemporal : &kAvx2;
    return nullptr;
}

}  // namespace shoal

struct ShoalContext {
    ShoalContext(int threads, const shoal::Kernels& table) : pool(threads), kernels(table) {}
    shoal::Pool pool;
    shoal::Scratch shared;
    const shoal::Kernels& kernels;
};

SHOAL_API int32_t shoal_abi() {
    return kAbi;
}

// The fields of ShoalBlock in order, as "kind:name" with a space after each.
SHOAL_API const char* shoal_block_fields() {
#define SHOAL_LINEAR(name) "linear:" #name " "
#define SHOAL_VECTOR(name) "vector:" #name " "
#define SHOAL_NUMBER(name) "number:" #name " "
#define SHOAL_INTEGER(name) "integer:" #name " "
    return SHOAL_BLOCK_FIELDS(SHOAL_LINEAR, SHOAL_VECTOR, SHOAL_NUMBER, SHOAL_INTEGER);
}

SHOAL_API int32_t shoal_block_bytes() {
    return sizeof(ShoalBlock);
}

// 0: nothing that we have kernels for, 2: AVX2, 5: AVX-512
SHOAL_API int32_t shoal_isa(int32_t limit) {
    const shoal::Kernels* kernels = shoal::choose_kernels(limit);
    return kernels ? kernels->isa : 0;
}

// Null where there are no kernels, no such number of threads, or no room for them.
SHOAL_API ShoalContext* shoal_open(int32_t threads, int32_t limit, int32_t non_temporal) {
    const shoal::Kernels* kernels = shoal::choose_kernels(limit, non_temporal);
    if (!kernels || threads < 1 || threads > shoal::kMaxThreads) return nullptr;
    try {
        return new ShoalContext(threads, *kernels);
    } catch (const std::exception&) {
        return nullptr;
    }
}

SHOAL_API void shoal_close(ShoalContext* context) {
    delete context;
}

namespace {

// Runs a call that has been checked: null, or why it could not be run.
template <class Call>
const char* run(ShoalContext* context, const char* wrong, Call call) {
    if (!context) return "there are no threads";
    if (wrong) return wrong;
    try {
        call();
        return nullptr;
    } catch (const std::exception&) {
        return "there is no memory for the call";
    }
}

}  // namespace

// Not for two threads at once on one context. x [n][hidden] becomes the output; the cache holds the rows' keys and
// values. Null, or what is wrong: then nothing has been done.
SHOAL_API const char* shoal_step(ShoalContext* context, const ShoalShape* shape, const ShoalBlock* const* blocks,
                                 int32_t num_blocks, const ShoalCache* cache, const ShoalPart* parts,
                                 int32_t num_parts, const ShoalAngles* angles, float* x, int32_t n) {
    const char* wrong = shoal::wrong_step(shape, blocks, num_blocks, cache, parts, num_parts, angles, x, n);
    return run(context, wrong, [&] {
        shoal::Step step(context->kernels,
                         {shape, blocks, num_blocks, cache, parts, num_parts, {angles[0], angles[1]}, x, n},
                         context->pool.threads(), context->shared);
        context->pool.run(step);
    });
}

// out [n][ldd] = RMSNorm(x) · linear, x [n][k]; without a norm where its weight is null. ldd: at least the panels'
// columns. Null, or what is wrong: then nothing has been done.
SHOAL_API const char* shoal_linear(ShoalContext* context, const ShoalLinear* linear, const float* norm_weight,
                                   float eps, const float* x, int32_t n, float* out, int64_t ldd) {
    return run(context, shoal::wrong_product(linear, norm_weight, eps, x, n, out, ldd), [&] {
        shoal::Product product(context->kernels, *linear, norm_weight, eps, x, n, out, static_cast<size_t>(ldd),
                               context->pool.threads(), context->shared);
        context->pool.run(product);
    });
}

// Reads `count` floats once, `items` pieces of four streams each, on all threads. Null, or what is wrong.
SHOAL_API const char* shoal_read(ShoalContext* context, const float* data, int64_t count, int32_t items) {
    return run(context, shoal::wrong_reading(data, count, items), [&] {
        shoal::Reading reading(context->kernels, data, static_cast<size_t>(count), items);
        context->pool.run(reading);
    });
}

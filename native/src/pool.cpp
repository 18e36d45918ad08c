#include "pool.h"

#include <immintrin.h>

#include <chrono>

namespace shoal {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);  // longer ruins a machine whose cores have other work
constexpr uint64_t kMask = (1u << 20) - 1;
constexpr unsigned kDefaultControl = 0x1f80;  // round to nearest, denormals kept: the same on every thread

uint64_t serial_of(uint64_t ticket) {
    return ticket >> 40;
}
uint64_t count_of(uint64_t ticket) {
    return (ticket >> 20) & kMask;
}
uint64_t next_of(uint64_t ticket) {
    return ticket & kMask;
}

}  // namespace

float* Scratch::floats(size_t count) {
    if (count + 16 > size_) {
        size_ = count + 16;
        memory_.reset(new float[size_]);
    }
    auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + ((64 - address % 64) % 64) / sizeof(float);
}

Pool::Pool(int threads) : scratch_(threads) {
    for (int index = 1; index < threads; ++index) workers_.emplace_back([this, index] { work(index); });
}

Pool::~Pool() {
    {
        std::lock_guard lock(mutex_);
        closing_.store(true);
    }
    changed_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Pool::run(Job& job) {
    std::lock_guard alone(callers_);
    const unsigned control = _mm_getcsr();
    _mm_setcsr(kDefaultControl);
    job_ = &job;
    phase_ = -1;
    finished_.store(false);
    advance(job);
    while (!finished_.load(std::memory_order_acquire)) {
        const uint64_t serial = serial_of(ticket_.load(std::memory_order_acquire));
        while (draw(scratch_[0])) {
        }
        // The serial number was read first: if the phase has ended meanwhile, this returns at once.
        wait_change(serial, true);
    }
    _mm_setcsr(control);
}

void Pool::work(int index) {
    _mm_setcsr(kDefaultControl);
    while (!closing_.load(std::memory_order_relaxed)) {
        const uint64_t serial = serial_of(ticket_.load(std::memory_order_acquire));
        while (draw(scratch_[index])) {
        }
        wait_change(serial, false);
    }
}

bool Pool::draw(Scratch& scratch) {
    const uint64_t seen = ticket_.load(std::memory_order_acquire);
    if (next_of(seen) >= count_of(seen)) return false;
    const uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
    if (next_of(ticket) >= count_of(ticket)) return false;
    Job& job = *job_;
    job.item(phase_, static_cast<int>(next_of(ticket)), scratch);
    if (ended_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_of(ticket)) advance(job);
    return true;
}

void Pool::advance(Job& job) {
    int count = 0;
    do {
        count = job.begin(++phase_);
    } while (count == 0);
    ended_.store(0, std::memory_order_relaxed);
    publish(count < 0 ? 0 : static_cast<uint64_t>(count));
    if (count < 0) {  // from the store on the job may be gone, and the next one may begin
        finished_.store(true, std::memory_order_seq_cst);
        notify();
    }
}

void Pool::publish(uint64_t count) {
    serial_ = (serial_ + 1) & 0xffffff;
    ticket_.store((serial_ << 40) | (count << 20), std::memory_order_seq_cst);
    if (count > 1) notify();  // one item is for whoever published it
}

void Pool::notify() {
    if (parked_.load(std::memory_order_seq_cst) == 0) return;
    std::lock_guard lock(mutex_);
    changed_.notify_all();
}

void Pool::wait_change(uint64_t serial, bool caller) {
    auto changed = [&] {
        return serial_of(ticket_.load(std::memory_order_seq_cst)) != serial ||
               closing_.load(std::memory_order_relaxed) || (caller && finished_.load(std::memory_order_seq_cst));
    };
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
        // No pause instructions: a hypervisor takes a core away from whoever executes many of them.
        for (int turn = 0; turn < 256; ++turn) {
            if (changed()) return;
        }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock lock(mutex_);
    parked_.fetch_add(1, std::memory_order_seq_cst);
    changed_.wait(lock, changed);
    parked_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace shoal

// A small thread pool for jobs that are chains of phases. Items of a phase are handed out by tickets, so that a thread
// which the system has paused holds up its own item only; the thread that ends a phase's last item begins the next.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace shoal {

// Memory of one thread, kept between calls.
class Scratch {
public:
    // At least `count` floats, 64-byte aligned; what was there before is gone.
    float* floats(size_t count);

private:
    std::unique_ptr<float[]> memory_;
    size_t size_ = 0;
};

// What a pool runs. `begin(phase)` is called once per phase, by one thread, after all items of the one before have
// ended: it does what is serial and returns how many items the phase has (0: go on with the next), or −1 at the end.
class Job {
public:
    virtual ~Job() = default;
    virtual int begin(int phase) = 0;
    virtual void item(int phase, int index, Scratch& scratch) = 0;
};

class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // Runs a job to its end on all threads, the caller's included. One job at a time: others wait.
    void run(Job& job);
    int threads() const { return static_cast<int>(workers_.size()) + 1; }

private:
    void work(int index);
    bool draw(Scratch& scratch);  // computes an item; false when the present phase has none left
    void advance(Job& job);
    void publish(uint64_t count);
    void notify();
    void wait_change(uint64_t serial, bool caller);

    // serial number of the phase (24 bits), its items (20 bits), the next item (20 bits): read and drawn in one
    // operation. Whoever holds an item keeps its phase from ending, so `job_` and `phase_` are valid for it.
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<uint64_t> ended_{0};
    alignas(64) std::atomic<int> parked_{0};
    std::atomic<bool> finished_{true};
    std::atomic<bool> closing_{false};
    Job* job_ = nullptr;
    int phase_ = 0;
    uint64_t serial_ = 0;
    std::mutex mutex_, callers_;
    std::condition_variable changed_;
    std::vector<Scratch> scratch_;
    std::vector<std::thread> workers_;
};

}  // namespace shoal

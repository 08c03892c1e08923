#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
static inline void relax() { _mm_pause(); }
#else
static inline void relax() {}
#endif

namespace lsb {
namespace {

constexpr int kSlots = 8;
constexpr int kSpin = 4000;  // tens of microseconds: longer than the gap between two steps

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
};

struct Pool {
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> epoch{0};
  std::atomic<int64_t> next{0};
  std::atomic<int> busy{0};
  std::atomic<bool> quit{false};
  int64_t items = 0;
  Body body{};
  std::vector<Buffer> buffers = std::vector<Buffer>(kSlots);
  std::mutex callers;  // one parallel region at a time, whoever asks
  int count = 1;

  void drain(int thread) {
    for (int64_t item; (item = next.fetch_add(1)) < items;) body.call(body.self, item, thread);
  }

  void work(int thread, uint64_t seen) {
    for (;;) {
      for (int i = 0; i < kSpin && epoch.load(std::memory_order_acquire) == seen; ++i) relax();
      if (epoch.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return epoch.load() != seen; });
      }
      seen = epoch.load(std::memory_order_acquire);
      if (quit.load()) return;
      drain(thread);
      busy.fetch_sub(1, std::memory_order_release);
    }
  }

  void signal() {
    std::lock_guard<std::mutex> lock(mutex);
    epoch.fetch_add(1, std::memory_order_release);
    wake.notify_all();
  }

  void stop() {
    quit = true;
    signal();
    for (auto& worker : workers) worker.join();
    workers.clear();
    quit = false;
  }

  void resize(int wanted) {
    if (wanted == count) return;
    stop();
    count = wanted;
    if (buffers.size() < static_cast<size_t>(wanted) * kSlots) buffers.resize(wanted * kSlots);
    uint64_t seen = epoch.load();
    for (int t = 1; t < wanted; ++t) workers.emplace_back([this, t, seen] { work(t, seen); });
  }

  ~Pool() {
    stop();
    for (auto& buffer : buffers) std::free(buffer.data);
  }
};

Pool& pool() {
  static Pool instance;
  return instance;
}

}  // namespace

void set_threads(int count) {
  if (count < 1 || count > 256) throw std::invalid_argument("threads must be 1..256");
  std::lock_guard<std::mutex> one_at_a_time(pool().callers);
  pool().resize(count);
}

int threads() { return pool().count; }

void run_items(int64_t items, Body body) {
  Pool& p = pool();
  std::lock_guard<std::mutex> one_at_a_time(p.callers);
  if (p.count == 1 || items < 2) {
    for (int64_t item = 0; item < items; ++item) body.call(body.self, item, 0);
    return;
  }
  p.items = items;
  p.body = body;
  p.next.store(0);
  p.busy.store(p.count - 1);
  p.signal();
  p.drain(0);
  for (int spins = 0; p.busy.load(std::memory_order_acquire) != 0; ++spins)
    if (spins < kSpin) relax();
    else std::this_thread::yield();  // a worker lost its core: let it have this one
}

void* scratch(int thread, int slot, size_t bytes) {
  Buffer& buffer = pool().buffers[thread * kSlots + slot];
  if (buffer.bytes < bytes) {
    std::free(buffer.data);
    size_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.data = std::aligned_alloc(4096, rounded);
    if (!buffer.data) {
      buffer.bytes = 0;
      throw std::bad_alloc();
    }
    buffer.bytes = rounded;
  }
  return buffer.data;
}

}  // namespace lsb

// A small thread pool. Work items are claimed one by one; which thread runs an item never changes
// its result.
#pragma once
#include <cstdint>
#include <functional>

namespace lsb {

void set_threads(int count);  // 1..256
int threads();
// Runs body(item, thread) for item in [0, items); returns when all are done. Not re-entrant.
void parallel(int64_t items, const std::function<void(int64_t, int)>& body);
// Scratch memory of one thread: grows, is never returned, 64-byte aligned.
void* scratch(int thread, int slot, size_t bytes);

}  // namespace lsb

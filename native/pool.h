// A small thread pool. Work items are claimed one by one; which thread runs an item never changes
// its result.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lsb {

void set_threads(int count);  // 1..256
int threads();

// A body without std::function's allocation: nothing is allocated while a token is computed.
struct Body {
  void (*call)(const void* self, int64_t item, int thread);
  const void* self;
};
void run_items(int64_t items, Body body);

// Runs body(item, thread) for item in [0, items); returns when all are done. Not re-entrant.
template <typename F>
void parallel(int64_t items, const F& body) {
  run_items(items, {[](const void* self, int64_t item, int thread) { (*static_cast<const F*>(self))(item, thread); }, &body});
}

// The same over ranges: equal contiguous shares of at least `least` items, a few for each thread so
// that a slow core does not hold up the rest. body(begin, end, thread).
template <typename F>
void split(int64_t items, int64_t least, const F& body) {
  const int64_t pieces = threads() == 1 ? 1 : threads() * 4, even = (items + pieces - 1) / pieces;
  const int64_t share = even > least ? even : least;
  parallel((items + share - 1) / share, [&](int64_t i, int thread) {
    const int64_t end = (i + 1) * share;
    body(i * share, end < items ? end : items, thread);
  });
}

// Scratch memory of one thread: grows, is never returned, 64-byte aligned.
void* scratch(int thread, int slot, size_t bytes);

}  // namespace lsb

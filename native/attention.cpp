// Splits attention over threads: by rows and key heads, and where those are few, by chunks of
// positions. Chunks are fixed and merged in order, so threads never change a bit of the result.
#include <algorithm>
#include <stdexcept>
#include <vector>

#include "dispatch.h"
#include "pool.h"

namespace lsb {

namespace {

constexpr int64_t kRows = 8;            // rows that share one pass over keys and values
constexpr int64_t kSplitRows = 8;       // with more, rows are work enough
constexpr int64_t kItemsPerThread = 4;

struct Item { int64_t piece; int kv_head; int64_t begin, end; };  // chunks [begin, end)

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

// What one call needs, kept: nothing is allocated while a token is computed.
struct Plan {
  std::vector<AttendRows> pieces;
  std::vector<Item> items;
  std::vector<float> parts;  // states of chunks, to be merged
};

void cut(const float* q, int64_t width, int heads, const int32_t* slot, const int32_t* position, int64_t rows,
         int64_t window, std::vector<AttendRows>& pieces) {
  pieces.clear();
  for (int64_t begin = 0; begin < rows;) {
    int64_t end = begin + 1;
    while (end < rows && end - begin < kRows && slot[end] == slot[begin]) ++end;
    pieces.push_back({q + begin * width, position + begin, end - begin, heads, slot[begin], window});
    begin = end;
  }
}

void share_out(const std::vector<AttendRows>& pieces, int kv_heads, bool split, std::vector<Item>& items) {
  items.clear();
  for (size_t p = 0; p < pieces.size(); ++p) {
    const AttendRows& rows = pieces[p];
    const auto [least, most] = std::minmax_element(rows.position, rows.position + rows.count);
    const int64_t first = rows.window > 0 ? std::max<int64_t>(0, *least + 1 - rows.window) : 0;
    const int64_t begin = first / kChunk, end = *most / kChunk + 1;
    for (int head = 0; head < kv_heads; ++head)
      for (int64_t chunk = begin; chunk < end; chunk += split ? 1 : end - begin)
        items.push_back({(int64_t)p, head, chunk, split ? chunk + 1 : end});
  }
}

}  // namespace

void check(const CacheView& c) {
  for (int bits : {c.key_bits, c.value_bits})
    require(bits == 16 || bits == 8 || bits == 4, "a cache has 16, 8 or 4 bits");
  require(c.slots > 0 && c.kv_heads > 0 && c.head_dim > 0, "the cache has no heads");
  require(c.context > 0 && c.context % 16 == 0, "context must be a multiple of 16");
  require(c.head_dim % 16 == 0 && c.head_dim <= kHeadDimMax, "head size must be a multiple of 16, at most 512");
}

void store_kv(const CacheView& cache, const float* k, const float* v, const int32_t* slot,
              const int32_t* position, int64_t rows) {
  const int64_t dim = cache.head_dim, width = cache.kv_heads * dim;
  const Kernels& kernels = active();
  // By heads: neighbouring positions share bytes.
  const auto head = [&](int64_t h, int) {
    for (int64_t r = 0; r < rows; ++r)
      kernels.store_kv(cache, k + r * width + h * dim, v + r * width + h * dim, slot[r], position[r], (int)h);
  };
  if (rows >= kRows) return parallel(cache.kv_heads, head);
  for (int h = 0; h < cache.kv_heads; ++h) head(h, 0);
}

void attend(const CacheView& cache, const float* q, int heads, const int32_t* slot,
            const int32_t* position, int64_t rows, int64_t window, float* out) {
  const int dim = cache.head_dim, share = heads / cache.kv_heads;
  const int64_t width = (int64_t)heads * dim, floats = state_floats(dim);
  thread_local Plan own;
  Plan& plan = own;  // the caller's, also in the threads below
  const std::vector<AttendRows>& pieces = plan.pieces;
  cut(q, width, heads, slot, position, rows, window, plan.pieces);
  const bool split = rows <= kSplitRows && threads() > 1 &&
                     (int64_t)pieces.size() * cache.kv_heads < kItemsPerThread * threads();
  const std::vector<Item>& items = plan.items;
  share_out(pieces, cache.kv_heads, split, plan.items);
  const Kernels& kernels = active();
  const auto finish = [&](const Item& item, const float* states) {
    const AttendRows& piece = pieces[item.piece];
    for (int64_t r = 0; r < piece.count; ++r, states += share * floats) {
      float* to = out + (piece.q - q) + r * width + (int64_t)item.kv_head * share * dim;
      for (int s = 0; s < share; ++s) kernels.finish_state(cache, states + s * floats, to + s * dim);
    }
  };
  const int64_t most = std::min(rows, kRows) * share;  // queries of an item
  if (split) plan.parts.resize(std::max<size_t>(plan.parts.size(), items.size() * most * floats));
  float* part = plan.parts.data();
  parallel((int64_t)items.size(), [&](int64_t i, int thread) {
    const Item& item = items[i];
    void* work = scratch(thread, 0, kernels.attend_scratch_bytes(most, dim));
    float* states = split ? part + i * most * floats : (float*)scratch(thread, 1, most * floats * sizeof(float));
    kernels.attend(cache, pieces[item.piece], item.kv_head, item.begin, item.end, states, work);
    if (!split) finish(item, states);
  });
  for (size_t i = 0; split && i < items.size();) {
    float* states = part + i * most * floats;
    const Item& item = items[i];
    const int64_t queries = pieces[item.piece].count * share;
    for (++i; i < items.size() && items[i].piece == item.piece && items[i].kv_head == item.kv_head; ++i)
      for (int64_t n = 0; n < queries; ++n)
        kernels.merge_state(states + n * floats, part + (i * most + n) * floats, dim);
    finish(item, states);
  }
}

int64_t attend_bytes(int64_t context, int heads, int kv_heads, int head_dim, int threads) {
  const int64_t share = heads / kv_heads, state = state_floats(head_dim) * sizeof(float);
  const int64_t chunks = (context + kChunk - 1) / kChunk;
  const int64_t work = active().attend_scratch_bytes(kRows * share, head_dim) + kRows * share * state;
  return threads * work + (threads > 1 ? kSplitRows * heads * chunks * state : 0);
}

}  // namespace lsb

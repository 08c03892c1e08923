// Planes and the rows that enter them: tables, packed activations, products, decoded weights.
#include <algorithm>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "dispatch.h"
#include "pool.h"

namespace lsb {

namespace {

constexpr int64_t kPackedMax = int64_t{1} << 40;  // int8 values of one PackedRows
constexpr int kGroupMax = 65536;                  // 65536 * 255 * 127 < 2^31

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

// The 12 bits before and at a weight (the older ones zero beyond the window) to its level index.
static int level_index(const uint8_t* hashes, int window, int bits) {
  const int padded = bits << (kWindowMax - window);
  return padded >> 8 ^ hashes[padded >> 4 & 15] ^ hashes[16 + (padded & 15)];
}

PlaneTables make_tables(int window, const uint8_t* hashes, int planes, const int8_t* levels) {
  if (window < kWindowMin || window > kWindowMax) throw std::invalid_argument("window must be 4..12");
  if (planes < 1 || planes > kPlanesMax) throw std::invalid_argument("planes must be 1..8");
  for (int i = 0; i < 2 * kLevels; ++i) {
    if (hashes[i] >= kLevels) throw std::invalid_argument("a hash must be a nibble");
    // Nibble i / 16 ends 4 or 8 steps back: its oldest bits may lie outside the window.
    const int outside = std::clamp(8 + 4 * (i / 16) - window, 0, 4), inside = i % 16 >> outside << outside;
    if (hashes[i] != (outside == 4 ? 0 : hashes[i / 16 * 16 + inside]))
      throw std::invalid_argument("a hash depends on bits outside the window");
  }
  PlaneTables t;
  t.window = window;
  t.count = planes;
  for (int i = 0; i < 64; ++i)
    for (int n = 0; n < 2; ++n) t.hash[n][i] = hashes[n * kLevels + i % kLevels];
  for (int i = 0; i < 1 << window; ++i) t.offset[i] = (uint16_t)(level_index(hashes, window, i) * 2 * kStreams);
  for (int k = 0, largest = 0; k < planes; ++k) {
    const int8_t* own = levels + k * kLevels;
    const bool first = k % kPlanesPerGroup == 0;
    for (int i = 0; i < 64; ++i) {
      t.levels[k][i] = (uint8_t)own[i % kLevels];
      t.biased[k][i] = (uint8_t)(own[i % kLevels] + (first ? 128 : 0));
    }
    for (int i = 0; i < 1 << window; ++i) t.values[k][i] = own[level_index(hashes, window, i)];
    // A weight of 4 planes is a byte, so their largest levels together must stay within +-127.
    int top = 0;
    for (int i = 0; i < kLevels; ++i) top = std::max(top, std::abs((int)own[i]));
    largest = first ? top : largest + top;
    if (largest > 127) throw std::invalid_argument("largest levels of planes 1..4 or 5..8 add up to more than 127");
  }
  return t;
}

static void check_group(int64_t cols, int group) {
  if (cols < 1 || group < 1) throw std::invalid_argument("rows, columns and group must be positive");
  if (group > kGroupMax) throw std::invalid_argument("a group sums at most 65536 columns in 32 bits");
  if (cols % group || (group % kStrip && group != cols))
    throw std::invalid_argument("columns must divide into groups of whole strips of 16");
}

int64_t PackedRows::row_bytes(int64_t cols, int group) {
  check_group(cols, group);
  return ceil_div(cols, kStrip) * kStrip + cols / group * (int64_t)(sizeof(float) + sizeof(int32_t));
}

PackedRows::PackedRows(int64_t tokens_max, int64_t cols, int group, uint8_t* memory)
    : tokens_max_(tokens_max), cols_(cols), stride_(ceil_div(cols, kStrip) * kStrip), group_(group) {
  check_group(cols, group);
  if (tokens_max < 1) throw std::invalid_argument("rows, columns and group must be positive");
  if (tokens_max > kPackedMax / cols) throw std::invalid_argument("too many rows");
  if (!memory) own_.reset(memory = new uint8_t[tokens_max * row_bytes(cols, group)]);
  bytes_ = (int8_t*)memory;
  scale_ = (float*)(memory + tokens_max * stride_);
  sum_ = (int32_t*)(scale_ + tokens_max * (cols / group));
}

void PackedRows::resize(int64_t tokens) {
  if (tokens < 1 || tokens > tokens_max_) throw std::invalid_argument("more rows than reserved");
  tokens_ = tokens;
}

void PackedRows::pack_row(const Kernels& kernels, int64_t t, const float* x) {
  const int64_t groups = cols_ / group_;
  int8_t* row = bytes_ + t * stride_;
  kernels.quantize(x, cols_, group_, row, scale_ + t * groups, sum_ + t * groups);
  std::fill(row + cols_, row + stride_, (int8_t)0);  // the memory may have held something else
}

void PackedRows::pack(const float* x, int64_t tokens) {
  resize(tokens);
  split(tokens, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) pack_row(active(), t, x + t * cols_);
  });
}

Activations PackedRows::view() const {
  return {bytes_, scale_, sum_, tokens_, cols_, stride_, group_};
}

// Planes first..first + 3 (or to the end) of a tile.
static TileView tile_view(const Planes& planes, int64_t tile, int first) {
  TileView v{};
  v.first = first;
  v.count = std::min(kPlanesPerGroup, planes.tables->count - first);
  v.shape = planes.geometry.tile(tile);
  v.tables = planes.tables;
  for (int k = 0; k < v.count; ++k) v.planes[k] = planes.tiles[tile] + (first + k) * v.shape.plane_bytes();
  return v;
}

void multiply_blocks(const Planes& planes, const Activations& x, const float* row_scale, int64_t begin, int64_t end,
                     float* out, int64_t stride, int thread) {
  const Geometry& g = planes.geometry;
  const int64_t height = g.tile_rows / kBlockRows;
  const int total = planes.tables->count;
  void* work = scratch(thread, 0, planes_scratch_bytes(x.tokens, x.group));
  for (int64_t block = begin; block < end;) {
    const int64_t tile = block / height, first_block = tile * height, stop = std::min(end, first_block + height);
    for (int first = 0; first < total; first += kPlanesPerGroup) {
      const float unit = total > kPlanesPerGroup && first == 0 ? (float)kGroupRatio : 1.0f;
      active().planes_matmul(tile_view(planes, tile, first), x, row_scale + g.first_row(tile), unit,
                             block - first_block, stop - first_block, out + g.first_row(tile), stride, first > 0, work);
    }
    block = stop;
  }
}

void planes_matmul(const Planes& planes, const Activations& x, const float* row_scale, float* out, int64_t stride) {
  split(planes.geometry.blocks(), x.tokens > 1 ? 1 : 4, [&](int64_t begin, int64_t end, int thread) {
    multiply_blocks(planes, x, row_scale, begin, end, out, stride, thread);
  });
}

UnpackedPlanes::UnpackedPlanes(const Planes& planes)
    : kernels_(&active()), shape_(planes.geometry), groups_((planes.tables->count - 1) / kPlanesPerGroup + 1),
      panels_((uint8_t*)std::aligned_alloc(4096, (bytes() + 4095) / 4096 * 4096), std::free) {
  if (!panels_) throw std::bad_alloc();
  const int64_t height = planes.geometry.tile_rows / kBlockRows, blocks = shape_.blocks();
  parallel(groups_ * blocks, [&](int64_t i, int) {
    const int64_t block = i % blocks, tile = block / height;
    const int first = (int)(i / blocks) * kPlanesPerGroup;
    kernels_->unpack_block(tile_view(planes, tile, first), block - tile * height, panels_.get() + i * block_bytes());
  });
}

void UnpackedPlanes::multiply_blocks(const Activations& x, const float* row_scale, int64_t begin, int64_t end,
                                     float* out, int64_t stride, int thread) const {
  void* work = scratch(thread, 0, planes_scratch_bytes(x.tokens, x.group));
  for (int group = 0; group < groups_; ++group) {
    const float unit = groups_ > 1 && group == 0 ? (float)kGroupRatio : 1.0f;
    kernels_->panels_matmul(panels_.get() + group * group_bytes(), shape_, x, row_scale, unit, begin, end, out, stride,
                            group > 0, work);
  }
}

void planes_decode(const Planes& planes, int64_t row_begin, int64_t row_end, int16_t* out) {
  const Kernels& kernels = active();
  const Geometry& g = planes.geometry;
  const int total = planes.tables->count;
  const int64_t stride = g.strips() * kStrip, height = g.tile_rows / kBlockRows;
  const int64_t block_begin = row_begin / kBlockRows, block_end = ceil_div(row_end, kBlockRows);
  parallel(block_end - block_begin, [&](int64_t i, int thread) {
    auto* weights = (int8_t*)scratch(thread, 0, kBlockRows * stride);
    const int64_t block = block_begin + i;
    for (int first = 0; first < total; first += kPlanesPerGroup) {
      kernels.decode_block(tile_view(planes, block / height, first), block % height, weights);
      const int unit = total > kPlanesPerGroup && first == 0 ? kGroupRatio : 1;
      for (int64_t r = 0; r < kBlockRows; ++r) {
        const int64_t row = block * kBlockRows + r;
        if (row < row_begin || row >= row_end) continue;
        int16_t* to = out + (row - row_begin) * g.cols;
        for (int64_t c = 0; c < g.cols; ++c) {
          const int value = unit * weights[r * stride + c];
          to[c] = (int16_t)(first ? to[c] + value : value);
        }
      }
    }
  });
}

}  // namespace lsb

#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>

#include "pool.h"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace lsb {

namespace {

#if defined(__x86_64__)
constexpr const char* kTiers[] = {"scalar", "avx2", "avx512", "avx512vnni"};

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512vnni() {
  return has_avx512() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

std::vector<const Kernels*> supported() {  // slowest first: the last is the default
  std::vector<const Kernels*> tiers;
#if defined(LSB_EMULATE)
  if (has_avx2()) tiers = {&emulated_avx512_kernels(), &emulated_avx512vnni_kernels()};
#endif
  tiers.push_back(&portable_kernels());
  if (has_avx2()) tiers.push_back(&avx2_kernels());
  if (has_avx512()) tiers.push_back(&avx512_kernels());
  if (has_avx512vnni()) tiers.push_back(&avx512vnni_kernels());
  return tiers;
}
#elif defined(__aarch64__)
constexpr const char* kTiers[] = {"scalar", "neon"};

bool has_dot_product() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // every Apple processor that runs this system
#endif
}

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> tiers = {&portable_kernels()};
  if (has_dot_product()) tiers.push_back(&neon_kernels());
  return tiers;
}
#else
constexpr const char* kTiers[] = {"scalar"};

std::vector<const Kernels*> supported() { return {&portable_kernels()}; }
#endif

std::string tier_names() {
  std::string names;
  for (const char* name : kTiers) names += (names.empty() ? "" : ", ") + std::string(name);
  return names;
}

// The best tier here, or the best one up to the tier that LSB_ISA names.
const Kernels* choose() {
  const char* cap = std::getenv("LSB_ISA");
  if (!cap || !*cap) return supported().back();
  const auto* end = std::find_if(std::begin(kTiers), std::end(kTiers),
                                 [&](const char* name) { return !std::strcmp(name, cap); });
  if (end == std::end(kTiers))
    throw std::invalid_argument(std::string("LSB_ISA is '") + cap + "': expected one of " + tier_names());
  const Kernels* best = &portable_kernels();
  for (const Kernels* tier : supported())
    if (std::find_if(std::begin(kTiers), end + 1,
                     [&](const char* name) { return !std::strcmp(name, tier->name); }) != end + 1)
      best = tier;
  return best;
}

const Kernels*& current() {
  static const Kernels* tier = choose();
  return tier;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory in whole cache lines: a vector that lies across two is loaded at half the speed.
using AlignedFloats = std::unique_ptr<float[], void (*)(void*)>;
AlignedFloats aligned_floats(int64_t count) {
  void* data = std::aligned_alloc(64, std::max<int64_t>(1, ceil_div(count, 16)) * 64);
  if (!data) throw std::bad_alloc();
  return {static_cast<float*>(data), std::free};
}

}  // namespace

const Kernels& active() { return *current(); }

std::vector<std::string> available_tiers() {
  std::vector<std::string> names;
  for (const Kernels* tier : supported()) names.push_back(tier->name);
  return names;
}

void use_tier(const std::string& name) {
  for (const Kernels* tier : supported())
    if (name == tier->name) {
      current() = tier;
      return;
    }
  throw std::invalid_argument("instruction set '" + name + "' is not available here");
}

// Few tokens: rows of weights go past once, their sums stay in registers.
static void multiply_few(const DenseView& w, const float* x, int64_t tokens, float* out) {
  const Kernels& kernels = active();
  const int64_t stride = ceil_div(w.cols, 16) * 16;
  split(ceil_div(w.rows, 4), 4, [&](int64_t begin, int64_t end, int thread) {
    auto* panel = (float*)scratch(thread, 0, 4 * stride * sizeof(float));
    kernels.dense_matmul(w, x, tokens, begin * 4, std::min(w.rows, end * 4), out, panel);
  });
}

// Many: in blocks of tokens that all threads share.
static void multiply_many(const DenseView& w, const float* x, int64_t tokens, float* out) {
  const Kernels& kernels = active();
  const int64_t most = ceil_div(std::min(tokens, kDenseTokens), kTileTokens) * kTileTokens;
  const AlignedFloats packed = aligned_floats(most * (ceil_div(w.cols, 16) * 16));
  const int64_t even = ceil_div(w.rows, 4 * threads() * kTileRows) * kTileRows;
  const int64_t share = std::min(kDenseRows, std::max<int64_t>(even, 2 * kTileRows));
  for (int64_t t = 0; t < tokens; t += kDenseTokens) {
    const int64_t count = std::min(kDenseTokens, tokens - t);
    parallel(ceil_div(count, kTileTokens), [&](int64_t tile, int) {
      kernels.pack_tokens(x + t * w.cols, count, w.cols, tile, packed.get());
    });
    parallel(ceil_div(w.rows, share), [&](int64_t i, int thread) {
      auto* work = (float*)scratch(thread, 0, kDenseScratchFloats * sizeof(float));
      const int64_t row = i * share;
      kernels.dense_tiles(w, packed.get(), count, row, std::min(w.rows, row + share), out + t * w.rows, work);
    });
  }
}

void dense_matmul(const DenseView& w, const float* x, int64_t tokens, float* out) {
  constexpr int64_t kFew = 16;  // about where the blocks begin to win
  if (tokens <= kFew || w.cols == 0) multiply_few(w, x, tokens, out);
  else multiply_many(w, x, tokens, out);
}

void rotate(const float* in, const float* scale, int64_t rows, int64_t cols, int block,
            const float* mix, bool inverse, float* out) {
  const Kernels& kernels = active();
  split(rows, 1, [&](int64_t begin, int64_t end, int thread) {
    auto* work = (float*)scratch(thread, 0, cols * sizeof(float));
    kernels.rotate(in + begin * cols, scale, end - begin, cols, block, mix, inverse, out + begin * cols, work);
  });
}

// Where every kSparseRows-th row starts: an index of gaps can only be walked from the front.
Sparse make_sparse(const uint16_t* counts, const uint8_t* index, bool wide, const void* values, Dense kind,
                   int64_t rows, int64_t cols) {
  Sparse s{counts, values, kind, wide, rows, cols, {}};
  int64_t used = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (r % kSparseRows == 0) s.starts.push_back({index, used});
    if (wide) index += 2 * (int64_t)counts[r];
    else for (int left = counts[r]; left;) left -= *index++ != 255;
    used += counts[r];
  }
  return s;
}

static float sparse_value(const Sparse& s, int64_t i) {
  if (s.kind == Dense::kF32) return static_cast<const float*>(s.values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(s.values)[i];
  const bool half = s.kind == Dense::kF16;
  const uint32_t word = half ? (uint32_t)(bits & 0x7FFF) << 13 : (uint32_t)bits << 16;
  float f;
  std::memcpy(&f, &word, 4);
  if (half) f *= bits & 0x8000 ? -0x1p112f : 0x1p112f;
  return f;
}

// Columns of a row from its index, which is moved past it.
static const uint8_t* sparse_columns(const Sparse& s, int count, const uint8_t* index, uint16_t* column) {
  if (s.wide) {
    std::memcpy(column, index, 2 * (size_t)count);
    return index + 2 * (int64_t)count;
  }
  for (int64_t i = 0, at = 0; i < count; ++i) {
    for (; *index == 255; ++index) at += 255;
    at += *index++;
    column[i] = (uint16_t)at++;
  }
  return index;
}

// out += S x.
void sparse_matmul(const Sparse& s, const float* x, int64_t tokens, float* out) {
  parallel((int64_t)s.starts.size(), [&](int64_t b, int thread) {
    auto* column = (uint16_t*)scratch(thread, 0, s.cols * 2);
    auto* weight = (float*)scratch(thread, 1, s.cols * 4);
    const uint8_t* index = s.starts[b].index;
    int64_t v = s.starts[b].value;
    for (int64_t r = b * kSparseRows; r < std::min(s.rows, (b + 1) * kSparseRows); ++r) {
      const int count = s.counts[r];
      index = sparse_columns(s, count, index, column);
      for (int i = 0; i < count; ++i) weight[i] = sparse_value(s, v++);
      for (int64_t t = 0; t < tokens; ++t) {
        float sum = 0.0f;
        for (int i = 0; i < count; ++i) sum += weight[i] * x[t * s.cols + column[i]];
        out[t * s.rows + r] += sum;
      }
    }
  });
}

// [rows, cols] with row stride -> [ceil(cols/32)][rows][32], zero padded.
void pack_panels(const float* x, int64_t rows, int64_t cols, int64_t stride, float* panels) {
  parallel(ceil_div(cols, 32), [&](int64_t p, int) {
    const int64_t width = std::min<int64_t>(32, cols - p * 32);
    for (int64_t r = 0; r < rows; ++r) {
      float* to = panels + (p * rows + r) * 32;
      std::memcpy(to, x + r * stride + p * 32, width * sizeof(float));
      std::fill(to + width, to + 32, 0.0f);
    }
  });
}

// Upper blocks of h [padded, padded] += X^T X; padded is cols rounded up to 32. Squares of blocks take
// their panels from near caches, kGramTokens at a time.
void gram(const float* x, int64_t tokens, int64_t cols, float* h, int64_t padded) {
  constexpr int64_t kGramTokens = 512, kSide = 4;
  const Kernels& kernels = active();
  const int64_t blocks = padded / 32, squares = ceil_div(blocks, kSide);
  const AlignedFloats panels = aligned_floats(padded * std::min(tokens, kGramTokens));
  for (int64_t t = 0; t < tokens; t += kGramTokens) {
    const int64_t count = std::min(kGramTokens, tokens - t);
    pack_panels(x + t * cols, count, cols, cols, panels.get());
    parallel(squares * squares, [&](int64_t square, int) {
      const int64_t i_begin = square / squares * kSide, j_begin = square % squares * kSide;
      for (int64_t j = j_begin; j < std::min(blocks, j_begin + kSide); ++j)
        for (int64_t i = i_begin; i <= std::min(j, i_begin + kSide - 1); ++i)
          kernels.gram(panels.get(), count, padded, i, j, h);
    });
  }
}

// out[r] = sum of a[r][c] b[r][c].
void row_dots(const float* a, const float* b, int64_t rows, int64_t cols, double* out) {
  const Kernels& kernels = active();
  split(rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) out[r] = kernels.dot(a + r * cols, b + r * cols, cols);
  });
}

uint64_t sum_words(const uint64_t* words, int64_t count) {
  constexpr int64_t kShare = 1 << 17;
  std::vector<uint64_t> sums(ceil_div(count, kShare));
  parallel((int64_t)sums.size(), [&](int64_t i, int) {
    uint64_t lanes[16] = {};
    const int64_t end = std::min(count, (i + 1) * kShare);
    int64_t at = i * kShare;
    for (; at + 16 <= end; at += 16)
      for (int lane = 0; lane < 16; ++lane) lanes[lane] += words[at + lane];
    for (; at < end; ++at) lanes[0] += words[at];
    for (uint64_t lane : lanes) sums[i] += lane;
  });
  uint64_t sum = 0;
  for (uint64_t part : sums) sum += part;
  return sum;
}

void encode(const TileJob& matrix, const Geometry& geometry, const std::vector<uint8_t*>& tiles) {
  const Kernels& kernels = active();
  parallel(geometry.tiles(), [&](int64_t tile, int thread) {
    TileJob job = matrix;
    const int64_t first = geometry.first_row(tile) * geometry.cols;
    job.shape = geometry.tile(tile);
    job.target += first, job.decoded += first, job.planes = tiles[tile];
    kernels.encode_tile(job, scratch(thread, 0, kernels.encode_scratch_bytes(job)));
  });
}

}  // namespace lsb

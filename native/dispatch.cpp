#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
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

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }
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

void dense_matmul(const DenseView& w, const float* x, int64_t tokens, float* out) {
  const Kernels& kernels = active();
  const int64_t stride = ceil_div(w.cols, 16) * 16;
  split(ceil_div(w.rows, 4), 4, [&](int64_t begin, int64_t end, int thread) {
    auto* panel = (float*)scratch(thread, 0, 4 * stride * sizeof(float));
    kernels.dense_matmul(w, x, tokens, begin * 4, std::min(w.rows, end * 4), out, panel);
  });
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

// Upper blocks of h [padded, padded] += X^T X; padded is cols rounded up to 32.
void gram(const float* x, int64_t tokens, int64_t cols, float* h, int64_t padded) {
  std::vector<float> panels(padded * tokens);
  pack_panels(x, tokens, cols, cols, panels.data());
  const int64_t blocks = padded / 32;
  const Kernels& kernels = active();
  parallel(blocks, [&](int64_t i, int) {
    for (int64_t j = i; j < blocks; ++j) kernels.gram(panels.data(), tokens, padded, i, j, h);
  });
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

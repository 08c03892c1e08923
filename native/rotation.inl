// Block Hadamard rotation of the inputs, and their quantization to int8.

// Steps 1, 2 and 4 of a transform on 8 neighbours.
#if defined(__AVX__)
template <int kUpper> static inline __m256 butterfly(__m256 x, __m256 other) {
  return _mm256_blend_ps(_mm256_add_ps(x, other), _mm256_sub_ps(other, x), kUpper);
}
static inline void hadamard8(float* x) {
  __m256 v = _mm256_loadu_ps(x);
  v = butterfly<0xAA>(v, _mm256_permute_ps(v, 0xB1));
  v = butterfly<0xCC>(v, _mm256_permute_ps(v, 0x4E));
  v = butterfly<0xF0>(v, _mm256_permute2f128_ps(v, v, 1));
  _mm256_storeu_ps(x, v);
}
#else
static inline void hadamard8(float* x) {
  for (int h = 1; h < 8; h *= 2)
    for (int i = 0; i < 8; i += 2 * h)
      for (int j = i; j < i + h; ++j) {
        const float a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
}
#endif

static void hadamard(float* x, int64_t size) {
  typedef float v8 __attribute__((vector_size(32)));
  float padded[8] = {};
  if (size < 8) {  // zeros behind: its first places are the transform of the smaller size
    std::memcpy(padded, x, size * sizeof(float));
    hadamard8(padded);
    std::memcpy(x, padded, size * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < size; i += 8) hadamard8(x + i);
  for (int64_t h = 8; h < size; h *= 2)
    for (int64_t i = 0; i < size; i += 2 * h)
      for (int64_t j = i; j < i + h; j += 8) {
        v8 a, b, sum, difference;
        std::memcpy(&a, x + j, sizeof a);
        std::memcpy(&b, x + j + h, sizeof b);
        sum = a + b, difference = a - b;
        std::memcpy(x + j, &sum, sizeof sum);
        std::memcpy(x + j + h, &difference, sizeof difference);
      }
}

// Columns [i, block) in runs of N vectors V: out[i] = sum_b m[b * step] x[b][i], in order of b. Returns
// where the runs end.
template <typename V, int N>
static int64_t mix_columns(const float* x, int64_t count, int64_t block, const float* m, int64_t step, int64_t i,
                           float* out) {
  constexpr int64_t kWidth = sizeof(V) / sizeof(float), kRun = N * kWidth;
  for (; i + kRun <= block; i += kRun) {
    V s[N] = {};
    for (int64_t b = 0; b < count; ++b)
      for (int n = 0; n < N; ++n) {
        V v;  // one at a time: an array of them would pass through memory
        std::memcpy(&v, x + b * block + i + n * kWidth, sizeof v);
        s[n] += m[b * step] * v;
      }
    for (int n = 0; n < N; ++n) std::memcpy(out + i + n * kWidth, &s[n], sizeof s[n]);
  }
  return i;
}

// out[a][i] = sum_b mix(a, b) x[b][i] over the cols/block blocks.
static void mix_blocks(const float* x, int64_t count, int64_t block, const float* mix, bool transpose,
                       float* out) {
  typedef float v4 __attribute__((vector_size(16)));
  for (int64_t a = 0; a < count; ++a, out += block) {
    const float* m = transpose ? mix + a : mix + a * count;
    const int64_t step = transpose ? count : 1;
    const int64_t done = mix_columns<vf, 4>(x, count, block, m, step, 0, out);
    mix_columns<v4, 1>(x, count, block, m, step, done, out);
  }
}

// Forward: y = (mix x H / sqrt(block)) (scale * x). Inverse: x = scale * (transposed rotation) y.
// scale [cols] carries the random signs; mix [cols/block]^2 is orthogonal, or null for one block or
// blocks left apart. scratch: cols floats.
static void rotate(const float* in, const float* scale, int64_t rows, int64_t cols, int block,
                   const float* mix, bool inverse, float* out, float* scratch) {
  const int64_t count = cols / block;
  const float norm = 1.0f / std::sqrt((float)block);
  for (int64_t r = 0; r < rows; ++r, in += cols, out += cols) {
    float* work = mix ? scratch : out;
    if (inverse) {
      if (mix) mix_blocks(in, count, block, mix, true, work);
      else std::memcpy(work, in, cols * sizeof(float));
    } else {
      for (int64_t c = 0; c < cols; ++c) work[c] = in[c] * scale[c];
    }
    for (int64_t b = 0; b < count; ++b) hadamard(work + b * block, block);
    if (inverse) {
      for (int64_t c = 0; c < cols; ++c) out[c] = work[c] * norm * scale[c];
    } else {
      for (int64_t c = 0; c < cols; ++c) work[c] *= norm;
      if (mix) mix_blocks(work, count, block, mix, false, out);
    }
  }
}

// One row to int8, one scale per `group` columns: x ~ q * scale. An all-zero group has scale 0.
static void quantize(const float* x, int64_t cols, int group, int8_t* q, float* scale, int32_t* sum) {
  for (int64_t c = 0; c < cols; c += group, ++scale, ++sum) {
    float top = 0.0f;
    for (int i = 0; i < group; ++i) top = std::fabs(x[c + i]) > top ? std::fabs(x[c + i]) : top;
    if (top < 1e-30f) top = 0.0f;  // 127 / top must stay finite
    const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
    int32_t total = 0;
    for (int i = 0; i < group; ++i) {
      float rounded = x[c + i] * inverse + 12582912.0f;  // to nearest even
      int32_t bits;
      std::memcpy(&bits, &rounded, 4);
      int32_t value = bits - 0x4B400000;
      q[c + i] = (int8_t)value;
      total += value;
    }
    *scale = top / 127.0f;
    *sum = total;
  }
}

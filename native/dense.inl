// Dense matrices in any of the plain encodings, multiplied in float32: y = x W^T.
// Every output is a sum in 16 lanes over the columns, so the number of tokens changes no bit.

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

constexpr int64_t dense_bytes(Dense kind, int64_t count) {  // of count weights that lie side by side
  return kind == Dense::kF32 ? 4 * count : kind == Dense::kSign ? (count + 7) / 8 : kind == Dense::kI8 ? count : 2 * count;
}

static inline Lanes load_bytes(const int8_t* p) {
  Lanes l;
  for (int i = 0; i < kParts; ++i) {
#if defined(__AVX512F__)  // what gcc makes of the last branch is slow here
    l.part[i] = (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX__)
    l.part[i] = (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + i * W))));
#else
    vq bytes;
    std::memcpy(&bytes, p + i * W, sizeof bytes);
    l.part[i] = __builtin_convertvector(bytes, vf);
#endif
  }
  return l;
}

static inline Lanes load_signs(const uint8_t* p) {  // bit 1: 1, bit 0: -1
  float v[kLanes];
  for (int i = 0; i < kLanes; ++i) v[i] = p[i / 8] >> (i % 8) & 1 ? 1.0f : -1.0f;
  return load_lanes(v);
}

template <Dense K>
static inline Lanes load_weights(const uint8_t* p) {
  if constexpr (K == Dense::kF32) return load_lanes((const float*)p);
  if constexpr (K == Dense::kF16) return load_half((const uint16_t*)p);
  if constexpr (K == Dense::kBF16) return load_bfloat((const uint16_t*)p);
  if constexpr (K == Dense::kI8) return load_bytes((const int8_t*)p);
  if constexpr (K == Dense::kSign) return load_signs(p);
}

template <Dense K>
static Lanes load_weights_tail(const uint8_t* p, int64_t count) {  // zeros after them
  uint8_t padded[kLanes * 4] = {};
  std::memcpy(padded, p, dense_bytes(K, count));
  float v[kLanes];
  store_lanes(v, load_weights<K>(padded));
  return load_tail(v, count);
}

template <Dense K, typename Put>
static void expand_as(const DenseView& w, int64_t row, int64_t begin, int64_t end, const Put& put) {
  const uint8_t* p = (const uint8_t*)w.data + row * dense_bytes(K, w.cols) + dense_bytes(K, begin);
  const int64_t whole = (end - begin) / kLanes;
  for (int64_t s = 0; s < whole; ++s) put(s, load_weights<K>(p + dense_bytes(K, s * kLanes)));
  const int64_t done = whole * kLanes, left = end - begin - done;
  if (left) put(whole, load_weights_tail<K>(p + dense_bytes(K, done), left));
}

// put(step, 16 floats) for columns [begin, end) of a row, zeros after the last; begin is a multiple of 16.
template <typename Put>
static void expand(const DenseView& w, int64_t row, int64_t begin, int64_t end, const Put& put) {
  switch (w.kind) {
    case Dense::kF32: return expand_as<Dense::kF32>(w, row, begin, end, put);
    case Dense::kF16: return expand_as<Dense::kF16>(w, row, begin, end, put);
    case Dense::kBF16: return expand_as<Dense::kBF16>(w, row, begin, end, put);
    case Dense::kI8: return expand_as<Dense::kI8>(w, row, begin, end, put);
    case Dense::kSign: return expand_as<Dense::kSign>(w, row, begin, end, put);
  }
}

// A whole row, for few tokens.
static void expand_row(const DenseView& w, int64_t row, float* out) {
  expand(w, row, 0, w.cols, [&](int64_t step, const Lanes& l) { store_lanes(out + step * kLanes, l); });
}

template <int R, int T>
static void dense_block(const float* w, int64_t w_stride, const float* x, int64_t cols, float* out,
                        int64_t out_stride, const float* scale) {
  vf acc[R][T][kParts];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t)
      for (int i = 0; i < kParts; ++i) acc[r][t][i] = vf{};
  const int64_t whole = cols / kLanes * kLanes;
  for (int64_t c = 0; c < whole; c += kLanes)
    for (int i = 0; i < kParts; ++i) {
      vf xt[T];
      for (int t = 0; t < T; ++t) xt[t] = load(x + t * cols + c + i * W);
      for (int r = 0; r < R; ++r) {
        const vf v = load_once(w + r * w_stride + c + i * W);
        for (int t = 0; t < T; ++t) acc[r][t][i] = fused(v, xt[t], acc[r][t][i]);
      }
    }
  for (int t = 0; t < T; ++t) {
    const Lanes tail = load_tail(x + t * cols + whole, cols - whole);
    for (int r = 0; r < R; ++r) {
      Lanes sum;
      for (int i = 0; i < kParts; ++i) sum.part[i] = acc[r][t][i];
      if (whole < cols) add_product(sum, load_lanes(w + r * w_stride + whole), tail);
      out[t * out_stride + r] = scale ? fold(sum) * scale[r] : fold(sum);
    }
  }
}

// Rows and tokens of a register block: 16 lanes take 1, 2 or 4 registers.
constexpr int kFewRows = W == 16 ? 4 : W == 8 ? 3 : 1;
constexpr int kFewTokens = W == 16 ? 4 : 2;

template <int R>
static void dense_rows(const float* w, int64_t stride, const float* x, int64_t tokens, int64_t cols,
                       float* out, int64_t out_stride, const float* scale) {
  constexpr int T = kFewTokens;
  int64_t t = 0;
  for (; t + T <= tokens; t += T)
    dense_block<R, T>(w, stride, x + t * cols, cols, out + t * out_stride, out_stride, scale);
  for (; t < tokens; ++t)
    dense_block<R, 1>(w, stride, x + t * cols, cols, out + t * out_stride, out_stride, scale);
}

// panel: 4 rows of cols rounded up to 16 floats; float32 rows that need no padding are used in place.
static void dense_matmul(const DenseView& w, const float* x, int64_t tokens, int64_t row_begin,
                         int64_t row_end, float* out, float* panel) {
  constexpr int R = kFewRows;
  const int64_t stride = round_up(w.cols, kLanes);
  const bool in_place = w.kind == Dense::kF32 && stride == w.cols;
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t count = row + R <= row_end ? R : 1;
    const float* rows = in_place ? (const float*)w.data + row * stride : panel;
    for (int64_t r = 0; r < count && !in_place; ++r) expand_row(w, row + r, panel + r * stride);
    const float* scale = w.scale ? w.scale + row : nullptr;
    if (count == R) dense_rows<R>(rows, stride, x, tokens, w.cols, out + row, w.rows, scale);
    else dense_rows<1>(rows, stride, x, tokens, w.cols, out + row, w.rows, scale);
    row += count;
  }
}

// With many tokens, tiles of 4 or 8 rows x 3 tokens whose 16-lane sums lie in memory from one block of
// columns to the next: weights and inputs come from near caches, and the order of additions stays.

constexpr int kRowsAtOnce = W == 16 ? 2 * kTileRows : kTileRows;  // 24 of 32 registers, or 12 of 16, are sums
constexpr int64_t kTileSums = kRowsAtOnce * kTileTokens * kLanes;

// Up to N rows, the last one again where there are less, as [part of the 16 lanes][step][N][W]: what a
// step of a tile reads lies side by side.
template <int N>
static void interleave(const DenseView& rows, int64_t row, int64_t begin, int64_t end, float* out) {
  const int64_t part = round_up(end - begin, kLanes) / kLanes * N * W;
  for (int64_t n = 0; n < N; ++n, out += W)
    expand(rows, row + n < rows.rows ? row + n : rows.rows - 1, begin, end, [&](int64_t step, const Lanes& l) {
      for (int i = 0; i < kParts; ++i) store(out + i * part + step * N * W, l.part[i]);
    });
}

// One part of the lanes at a time, so that all sums fit the registers: sums [part][row][token][W].
// Not inlined: gcc then has no registers left for the sums.
static __attribute__((noinline)) void add_tile(const float* w, const float* x, int64_t steps, bool first, float* sums) {
  constexpr int R = kRowsAtOnce, T = kTileTokens;
  for (int i = 0; i < kParts; ++i, sums += R * T * W) {
    vf acc[R][T];
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) acc[r][t] = first ? vf{} : load(sums + (r * T + t) * W);
    for (int64_t s = 0; s < steps; ++s, w += R * W, x += T * W) {
      vf xt[T];
      for (int t = 0; t < T; ++t) xt[t] = load(x + t * W);
      for (int r = 0; r < R; ++r) {
        const vf v = load_once(w + r * W);
        for (int t = 0; t < T; ++t) acc[r][t] = fused(v, xt[t], acc[r][t]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) store(sums + (r * T + t) * W, acc[r][t]);
  }
}

static void fold_tile(const float* sums, int64_t tokens, int64_t rows, const float* scale, float* out, int64_t out_stride) {
  for (int64_t t = 0; t < tokens; ++t, out += out_stride) {
    Lanes lanes[kRowsAtOnce];
    for (int r = 0; r < kRowsAtOnce; ++r)
      for (int i = 0; i < kParts; ++i) lanes[r].part[i] = load(sums + ((i * kRowsAtOnce + r) * kTileTokens + t) * W);
    float y[kRowsAtOnce];
    for (int r = 0; r < kRowsAtOnce; r += 4) fold_four(lanes + r, y + r);
    for (int64_t r = 0; r < rows; ++r) out[r] = scale ? y[r] * scale[r] : y[r];
  }
}

// Blocks of columns of equal width, in whole steps: visit(begin, end, end of the last step).
template <typename Visit>
static void column_blocks(int64_t cols, const Visit& visit) {
  const int64_t blocks = (cols + kDenseCols - 1) / kDenseCols;
  const int64_t width = blocks ? round_up((cols + blocks - 1) / blocks, kLanes) : 0;
  for (int64_t begin = 0; begin < cols; begin += width) {
    const int64_t end = begin + width < cols ? begin + width : cols;
    visit(begin, end, round_up(end, kLanes));
  }
}

// One tile of tokens into packed [block of columns][tile][part][step][3][W].
static void pack_tokens(const float* x, int64_t tokens, int64_t cols, int64_t tile, float* packed) {
  constexpr int T = kTileTokens;
  const DenseView rows{Dense::kF32, x, nullptr, tokens, cols};
  column_blocks(cols, [&](int64_t begin, int64_t end, int64_t stop) {
    interleave<T>(rows, tile * T, begin, end, packed + begin * round_up(tokens, T) + tile * T * (stop - begin));
  });
}

// Weights are expanded once for each block of columns and serve all tokens.
static void dense_tiles(const DenseView& w, const float* packed, int64_t tokens, int64_t row_begin,
                        int64_t row_end, float* out, float* scratch) {
  constexpr int R = kRowsAtOnce, T = kTileTokens;
  const int64_t rows = row_end - row_begin;
  float *panel = scratch, *sums = scratch + kDenseRows * kDenseCols;
  auto sums_of = [&](int64_t t, int64_t r) { return sums + (t / T * (kDenseRows / R) + r / R) * kTileSums; };
  column_blocks(w.cols, [&](int64_t begin, int64_t end, int64_t stop) {
    const int64_t width = stop - begin;
    const float* x = packed + begin * round_up(tokens, T);
    for (int64_t r = 0; r < rows; r += R) interleave<R>(w, row_begin + r, begin, end, panel + r * width);
    for (int64_t r = 0; r < rows; r += R)
      for (int64_t t = 0; t < tokens; t += T)
        add_tile(panel + r * width, x + t * width, width / kLanes, begin == 0, sums_of(t, r));
  });
  for (int64_t t = 0; t < tokens; t += T)
    for (int64_t r = 0; r < rows; r += R) {
      const int64_t row = row_begin + r;
      fold_tile(sums_of(t, r), std::min<int64_t>(T, tokens - t), std::min<int64_t>(R, rows - r),
                w.scale ? w.scale + row : nullptr, out + t * w.rows + row, w.rows);
    }
}

// C[8 x 32] += sum_k A(i, k) B[k][32]; A(i, k) = a[i * a_row + k * a_step].
template <int R>
static void outer_block(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t steps,
                        float* c, int64_t c_row) {
  constexpr int P = 32 / W;
  constexpr int C = P > 2 ? 2 : P;  // vectors of the 32 columns held in registers at once
  for (int p0 = 0; p0 < P; p0 += C) {
    vf acc[R][C];
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < C; ++p) acc[r][p] = load(c + r * c_row + (p0 + p) * W);
    for (int64_t k = 0; k < steps; ++k) {
      vf v[C];
      for (int p = 0; p < C; ++p) v[p] = load(b + k * 32 + (p0 + p) * W);
      for (int r = 0; r < R; ++r) {
        vf s = splat(a[r * a_row + k * a_step]);
        for (int p = 0; p < C; ++p) acc[r][p] = fused(s, v[p], acc[r][p]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < C; ++p) store(c + r * c_row + (p0 + p) * W, acc[r][p]);
  }
}

constexpr int kOuterRows = W == 16 ? 8 : 4;
constexpr int64_t kOuterSteps = 64;  // of two panels: they stay in the first-level cache, with the block

static void copy_block(const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int i = 0; i < 32; ++i) std::memcpy(to + i * to_row, from + i * from_row, 32 * sizeof(float));
}

// Adds the 32 x 32 block (i_block, j_block) of X^T X to h [cols, cols]; panels [cols/32][tokens][32].
static void gram(const float* panels, int64_t tokens, int64_t cols, int64_t i_block, int64_t j_block,
                 float* h) {
  const float* a = panels + i_block * tokens * 32;
  const float* b = panels + j_block * tokens * 32;
  float* own = h + i_block * 32 * cols + j_block * 32;
  alignas(64) float c[32 * 32];
  copy_block(own, cols, c, 32);
  for (int64_t t = 0; t < tokens; t += kOuterSteps)
    for (int i = 0; i < 32; i += kOuterRows)
      outer_block<kOuterRows>(a + t * 32 + i, 1, 32, b + t * 32, std::min(kOuterSteps, tokens - t), c + i * 32, 32);
  copy_block(c, 32, own, cols);
}

// Sum of a[i] b[i] in double precision: products are exact, sums in 16 lanes.
static double dot_wide(const float* a, const float* b, int64_t count) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int l = 0; l < kLanes; ++l) lanes[l] += (double)a[i + l] * (double)b[i + l];
  for (int l = 0; i < count; ++i, ++l) lanes[l] += (double)a[i] * (double)b[i];
  for (int width = kLanes / 2; width; width /= 2)
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

// Dense matrices in any of the plain encodings, multiplied in float32: y = x W^T.
// Every output is a sum in 16 lanes over the columns, so the number of tokens changes no bit.

static void expand_row(const DenseView& w, int64_t row, float* out) {
  int64_t c = 0;
  const int64_t cols = w.cols;
  if (w.kind == Dense::kF32) {
    std::memcpy(out, (const float*)w.data + row * cols, cols * sizeof(float));
    c = cols;
  } else if (w.kind == Dense::kI8) {
    const int8_t* p = (const int8_t*)w.data + row * cols;
    for (; c < cols; ++c) out[c] = (float)p[c];
  } else if (w.kind == Dense::kSign) {
    const uint8_t* p = (const uint8_t*)w.data + row * ((cols + 7) / 8);
    for (; c < cols; ++c) out[c] = p[c / 8] >> (c % 8) & 1 ? 1.0f : -1.0f;
  } else {
    const uint16_t* p = (const uint16_t*)w.data + row * cols;
    const bool half = w.kind == Dense::kF16;
    for (; c + kLanes <= cols; c += kLanes)
      store_lanes(out + c, half ? load_half(p + c) : load_bfloat(p + c));
    if (c < cols) {
      uint16_t tail[kLanes] = {};
      std::memcpy(tail, p + c, (cols - c) * 2);
      store_lanes(out + c, half ? load_half(tail) : load_bfloat(tail));
    }
  }
  for (c = cols; c % kLanes; ++c) out[c] = 0.0f;
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
        const vf v = load(w + r * w_stride + c + i * W);
        for (int t = 0; t < T; ++t) acc[r][t][i] += v * xt[t];
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
constexpr int kDenseRows = W == 16 ? 4 : W == 8 ? 3 : 1;
constexpr int kDenseTokens = W == 16 ? 4 : 2;

template <int R>
static void dense_rows(const float* w, int64_t stride, const float* x, int64_t tokens, int64_t cols,
                       float* out, int64_t out_stride, const float* scale) {
  constexpr int T = kDenseTokens;
  int64_t t = 0;
  for (; t + T <= tokens; t += T)
    dense_block<R, T>(w, stride, x + t * cols, cols, out + t * out_stride, out_stride, scale);
  for (; t < tokens; ++t)
    dense_block<R, 1>(w, stride, x + t * cols, cols, out + t * out_stride, out_stride, scale);
}

// panel: 4 rows of cols rounded up to 16 floats; float32 rows that need no padding are used in place.
static void dense_matmul(const DenseView& w, const float* x, int64_t tokens, int64_t row_begin,
                         int64_t row_end, float* out, float* panel) {
  constexpr int R = kDenseRows;
  const int64_t stride = (w.cols + kLanes - 1) / kLanes * kLanes;
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
        for (int p = 0; p < C; ++p) acc[r][p] += s * v[p];
      }
    }
    for (int r = 0; r < R; ++r)
      for (int p = 0; p < C; ++p) store(c + r * c_row + (p0 + p) * W, acc[r][p]);
  }
}

constexpr int kOuterRows = W == 16 ? 8 : 4;

// Adds the 32 x 32 block (i_block, j_block) of X^T X to h [cols, cols]; panels [cols/32][tokens][32].
static void gram(const float* panels, int64_t tokens, int64_t cols, int64_t i_block, int64_t j_block,
                 float* h) {
  const float* a = panels + i_block * tokens * 32;
  const float* b = panels + j_block * tokens * 32;
  for (int i = 0; i < 32; i += kOuterRows)
    outer_block<kOuterRows>(a + i, 1, 32, b, tokens, h + (i_block * 32 + i) * cols + j_block * 32, cols);
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

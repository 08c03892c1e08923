// The network's float operations.

static void rms_norm(const float* x, const float* gain, int64_t rows, int64_t cols, float eps,
                     float* out) {
  for (int64_t r = 0; r < rows; ++r, x += cols, out += cols) {
    Lanes acc = zero_lanes();
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) {
      Lanes v = load_lanes(x + c);
      add_product(acc, v, v);
    }
    if (c < cols) {
      Lanes v = load_tail(x + c, cols - c);
      add_product(acc, v, v);
    }
    float inverse = 1.0f / std::sqrt(fold(acc) / (float)cols + eps);
    for (c = 0; c < cols; ++c) out[c] = x[c] * inverse * gain[c];
  }
}

static void rope(float* x, const float* cosine, const float* sine, const int32_t* position,
                 int64_t rows, int heads, int head_dim) {
  const int half = head_dim / 2;
  for (int64_t r = 0; r < rows; ++r) {
    const float* co = cosine + (int64_t)position[r] * half;
    const float* si = sine + (int64_t)position[r] * half;
    for (int h = 0; h < heads; ++h, x += head_dim)
      for (int i = 0; i < half; ++i) {
        float a = x[i], b = x[i + half];
        x[i] = a * co[i] - b * si[i];
        x[i + half] = b * co[i] + a * si[i];
      }
  }
}

static void store_kv(const CacheView& cache, const float* k, const float* v, int slot,
                     int64_t position) {
  const int dim = cache.head_dim;
  for (int h = 0; h < cache.kv_heads; ++h, k += dim, v += dim) {
    int64_t head = (int64_t)slot * cache.kv_heads + h;
    uint16_t* key = cache.keys + (head * cache.context + position / 16 * 16) * dim + position % 16;
    uint16_t* value = cache.values + (head * cache.context + position) * dim;
    for (int d = 0; d < dim; ++d) key[d * 16] = to_half(k[d]);
    for (int d = 0; d < dim; ++d) value[d] = to_half(v[d]);
  }
}

static void softmax(float* scores, int64_t first, int64_t begin, int64_t end, int64_t stop,
                    float scale, float* inverse_sum) {
  for (int64_t t = first; t < stop; ++t) scores[t] = t < begin || t >= end ? -1e30f : scores[t] * scale;
  float top = -1e30f;
  for (int64_t t = first; t < stop; ++t) top = scores[t] > top ? scores[t] : top;
  Lanes sum = zero_lanes();
  for (int64_t t = first; t < stop; t += kLanes)
    for (int i = 0; i < kParts; ++i) {
      vf s = load(scores + t + i * W);
      vf e = s < splat(-1e29f) ? vf{} : vexp(s - splat(top));
      store(scores + t + i * W, e);
      sum.part[i] += e;
    }
  *inverse_sum = 1.0f / fold(sum);
}

// Rows share a slot; `scratch` holds scores [rows * queries per head][context] and one block.
static void attend(const CacheView& cache, const float* q, int heads, int slot,
                   const int32_t* position, int64_t rows, int kv_head, int64_t window, float* out,
                   float* scratch) {
  const int dim = cache.head_dim, share = heads / cache.kv_heads;
  const int64_t head = (int64_t)slot * cache.kv_heads + kv_head, width = (int64_t)heads * dim;
  const uint16_t* keys = cache.keys + head * cache.context * dim;
  const uint16_t* values = cache.values + head * cache.context * dim;
  float* block = scratch;              // [head_dim][16] or [16][head_dim]
  float* scores = scratch + 16 * dim;  // [query][context]
  const float scale = 1.0f / std::sqrt((float)dim);
  int64_t last = 0, first = cache.context;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t begin = window > 0 && position[r] + 1 > window ? position[r] + 1 - window : 0;
    last = position[r] + 1 > last ? position[r] + 1 : last;
    first = begin < first ? begin : first;
  }
  first = first / 16 * 16;
  const int64_t stop = (last + 15) / 16 * 16;

  for (int64_t t = first; t < stop; t += 16) {
    for (int d = 0; d < dim; ++d) store_lanes(block + d * 16, load_half(keys + t * dim + d * 16));
    for (int64_t r = 0; r < rows; ++r)
      for (int s = 0; s < share; ++s) {
        const float* query = q + r * width + (int64_t)(kv_head * share + s) * dim;
        Lanes acc = zero_lanes();
        for (int d = 0; d < dim; ++d)
          for (int i = 0; i < kParts; ++i)
            acc.part[i] += splat(query[d]) * load(block + d * 16 + i * W);
        store_lanes(scores + (r * share + s) * cache.context + t, acc);
      }
  }
  for (int64_t r = 0; r < rows; ++r)
    for (int s = 0; s < share; ++s) {
      int64_t begin = window > 0 && position[r] + 1 > window ? position[r] + 1 - window : 0;
      float inverse;
      float* row = scores + (r * share + s) * cache.context;
      softmax(row, first, begin, position[r] + 1, stop, scale, &inverse);
      for (int64_t t = first; t < stop; ++t) row[t] *= inverse;
      std::memset(out + r * width + (int64_t)(kv_head * share + s) * dim, 0, dim * sizeof(float));
    }
  for (int64_t t = first; t < stop; t += 16) {
    for (int j = 0; j < dim; j += 1) store_lanes(block + j * 16, load_half(values + t * dim + j * 16));
    for (int64_t r = 0; r < rows; ++r)
      for (int s = 0; s < share; ++s) {
        const float* weight = scores + (r * share + s) * cache.context + t;
        float* sum = out + r * width + (int64_t)(kv_head * share + s) * dim;
        for (int d = 0; d < dim; d += kLanes) {
          Lanes acc = load_lanes(sum + d);
          for (int j = 0; j < 16; ++j)
            for (int i = 0; i < kParts; ++i)
              acc.part[i] += splat(weight[j]) * load(block + j * dim + d + i * W);
          store_lanes(sum + d, acc);
        }
      }
  }
}

static void swiglu(const float* gate, const float* up, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    vf g = load(gate + i);
    store(out + i, g / (splat(1.0f) + vexp(-g)) * load(up + i));
  }
  for (; i < count; ++i) {
    float g[W] = {gate[i]};
    vf v = load(g);
    store(g, v / (splat(1.0f) + vexp(-v)));
    out[i] = g[0] * up[i];
  }
}

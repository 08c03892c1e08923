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
    for (int h = 0; h < heads; ++h, x += head_dim) {
      float *first = x, *second = x + half;
      int i = 0;
      for (; i + W <= half; i += W) {
        const vf a = load(first + i), b = load(second + i), c = load(co + i), s = load(si + i);
        store(first + i, a * c - b * s);
        store(second + i, b * c + a * s);
      }
      for (; i < half; ++i) {
        const float a = first[i], b = second[i];
        first[i] = a * co[i] - b * si[i];
        second[i] = b * co[i] + a * si[i];
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

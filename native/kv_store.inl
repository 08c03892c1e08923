// Keys and values of one position on their way into the cache of attention.inl.

template <int B> static inline void put(void* tiles, int64_t tile, int step, int lane, int value) {
  uint8_t* to = (uint8_t*)tile_at<B>(tiles, tile);
  if constexpr (B == 8) {
    to[(step / 2 * kTile + lane) * 2 + step % 2] = (uint8_t)value;
  } else {
    uint8_t* word = to + (step / 8 * 2 * kTile + lane * 2 + step % 2) * 2 + step / 4 % 2;
    const int shift = step / 2 % 2 * 4;
    *word = (uint8_t)((*word & ~(15 << shift)) | value << shift);
  }
}

// Codes of x [dim]: x ~ scale * code with 8 bits, scale * (2 code - 15) with 4.
template <int B> static void round_head(const float* x, int dim, float scale, int32_t* codes) {
  const vf inverse = splat(scale > 0.0f ? (B == 8 ? 1.0f : 0.5f) / scale : 0.0f);
  for (int c = 0; c < dim; c += W) {
    vf y = load(x + c) * inverse;
    if constexpr (B == 8) y = vmax(vmin(y, splat(127.0f)), splat(-127.0f));
    else y = vmax(vmin(y + splat(7.5f), splat(15.0f)), splat(0.0f));
    const vi n = to_nearest(y);
    std::memcpy(codes + c, &n, sizeof n);
  }
}

// The scale that fits x best to its 4-bit codes: <x, 2 code - 15> / |2 code - 15|^2.
static float fitted_scale(const float* x, int dim, const int32_t* codes) {
  Lanes product = zero_lanes(), square = zero_lanes();
  for (int c = 0; c < dim; c += kTile)
    for (int i = 0; i < kParts; ++i) {
      vi n;
      std::memcpy(&n, codes + c + i * W, sizeof n);
      const vf level = __builtin_convertvector(2 * n - 15, vf);
      product.part[i] += load(x + c + i * W) * level;
      square.part[i] += level * level;
    }
  const float scale = fold(product) / fold(square);
  return scale > 0.0f ? scale : 0.0f;
}

// Codes and scale of one rotated head.
template <int B> static uint16_t quantize_head(const float* x, int dim, int32_t* codes) {
  vf most = {};
  for (int c = 0; c < dim; c += W) most = vmax(most, vabs(load(x + c)));
  const float top = largest_lane(most);
  float scale = top / (B == 8 ? 127.0f : 15.8f);  // 4 bits: the largest may lie a little outside
  if constexpr (B == 4) {
    round_head<B>(x, dim, scale, codes);
    scale = fitted_scale(x, dim, codes);
  }
  const uint16_t half = to_half(scale);
  round_head<B>(x, dim, from_half(half), codes);
  return half;
}

// A key's channels are steps of its tiles, its position a lane.
template <int B> static void store_key(const HeadTiles& h, const float* k, int dim, int64_t position) {
  const int lane = (int)(position % kTile);
  const int64_t first = position / kTile * h.across;
  if constexpr (B == 16) {
    for (int c = 0; c < dim; c += kTile) {
      uint16_t* tile = (uint16_t*)tile_at<16>(h.keys, first + c / kTile) + lane;
      uint16_t halves[kTile];
      to_halves(k + c, halves);
      for (int step = 0; step < kTile; ++step) tile[step * kTile] = halves[step];
    }
  } else {
    float x[kHeadDimMax];
    int32_t codes[kHeadDimMax];
    std::memcpy(x, k, dim * sizeof(float));
    rotate_head(x, dim);
    ((uint16_t*)h.key_scale)[position] = quantize_head<B>(x, dim, codes);
    for (int c = 0; c < dim; ++c) put<B>((void*)h.keys, first + c / kTile, c % kTile, lane, codes[c]);
  }
}

// A value's channels are lanes of its tiles, its position a step.
template <int B> static void store_value(const HeadTiles& h, const float* v, int dim, int64_t position) {
  const int step = (int)(position % kTile);
  const int64_t block = position / kTile;
  if constexpr (B == 16) {
    for (int64_t c = 0; c < h.across; ++c)
      to_halves(v + c * kTile, (uint16_t*)tile_at<16>(h.values, c * h.along + block) + step * kTile);
  } else {
    float x[kHeadDimMax];
    int32_t codes[kHeadDimMax];
    std::memcpy(x, v, dim * sizeof(float));
    rotate_head(x, dim);
    ((uint16_t*)h.value_scale)[position] = quantize_head<B>(x, dim, codes);
    for (int c = 0; c < dim; ++c) put<B>((void*)h.values, c / kTile * h.along + block, step, c % kTile, codes[c]);
  }
}

// Keys and values [head_dim] of one position and key head.
static void store_kv(const CacheView& cache, const float* k, const float* v, int slot, int64_t position, int kv_head) {
  const HeadTiles h = head_tiles(cache, slot, kv_head);
  const int dim = cache.head_dim;
  (cache.key_bits == 16 ? store_key<16> : cache.key_bits == 8 ? store_key<8> : store_key<4>)(h, k, dim, position);
  (cache.value_bits == 16 ? store_value<16> : cache.value_bits == 8 ? store_value<8> : store_value<4>)(h, v, dim, position);
}

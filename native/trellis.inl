// Decoding trellis planes to int8 weights and multiplying them with int8 activations.

static inline uint64_t word_at(const uint8_t* p) { uint64_t w; std::memcpy(&w, p, 8); return w; }

// 64 weights (+128) of one chunk, four at a time by table. at[k] points at the tile's prefix word.
template <int K>
static inline void decode_chunk(const PlanesView& v, const uint8_t* const* at, int64_t chunk,
                                uint8_t* out) {
  const int window = v.tables->window;
  const uint32_t mask = (1u << (window + 3)) - 1;
  const uint32_t* fours[K];
  uint64_t low[K], high[K];
  for (int k = 0; k < K; ++k) {
    fours[k] = v.tables->fours[v.first + k];
    const uint64_t before = word_at(at[k] + 8 * chunk), now = word_at(at[k] + 8 * chunk + 8);
    // From the oldest bit of the first window on: window - 1 bits of `before`, then `now`.
    low[k] = before >> (65 - window) | now << (window - 1);
    high[k] = now >> (33 - window);  // the same, 32 bits on
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRowGroup; ++r) {
    uint32_t sum = 0;
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) {
      uint64_t bits = r < 8 ? low[k] >> (4 * r) : high[k] >> (4 * r - 32);
#if defined(__GNUC__)
      __asm__("" : "+r"(bits));  // keeps this scalar: gathers are several times slower than loads
#endif
      sum += fours[k][(uint32_t)bits & mask];
    }
    std::memcpy(out + 4 * r, &sum, 4);
  }
}

struct TileCursor {  // where a row group's chunks lie
  const uint8_t* at[kPlanesPerGroup];
  int64_t step, index;  // chunk of quad q = q * step + index
};

static inline TileCursor locate(const PlanesView& v, int64_t group) {
  const Geometry& g = v.geometry;
  const int64_t tile = group / g.groups_per_tile();
  TileCursor cursor;
  for (int k = 0; k < v.count; ++k) cursor.at[k] = v.streams[k] + 8 * g.tile_word(tile);
  cursor.step = g.groups_in_tile(tile);
  cursor.index = group % g.groups_per_tile();
  return cursor;
}

template <int K>
static void decode_chunks(const PlanesView& v, int64_t group, uint8_t* out, int64_t out_step) {
  TileCursor cursor = locate(v, group);
  for (int64_t q = 0; q < v.geometry.quads(); ++q)
    decode_chunk<K>(v, cursor.at, q * cursor.step + cursor.index, out + q * out_step);
}

static void decode_group_plain(const PlanesView& v, int64_t group, uint8_t* out, int64_t out_step) {
  switch (v.count) {
    case 1: return decode_chunks<1>(v, group, out, out_step);
    case 2: return decode_chunks<2>(v, group, out, out_step);
    case 3: return decode_chunks<3>(v, group, out, out_step);
    default: return decode_chunks<4>(v, group, out, out_step);
  }
}

static inline void finish(const int32_t* acc, const int32_t* offset, const float* scale, int64_t tokens,
                          int64_t groups, float* sums) {
  for (int64_t t = 0; t < tokens; ++t)
    for (int r = 0; r < kRowGroup; ++r)
      sums[t * kRowGroup + r] += (float)(acc[t * kRowGroup + r] - offset[t * groups]) * scale[t * groups];
}

static inline void write_out(const Geometry& g, int64_t group, const float* sums, const float* row_scale,
                             float unit, int64_t tokens, float* out, bool accumulate) {
  const int64_t row = group * kRowGroup;
  const int64_t rows = g.rows - row < kRowGroup ? g.rows - row : kRowGroup;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < rows; ++r) {
      float y = sums[t * kRowGroup + r] * (row_scale[row + r] * unit);
      out[t * g.rows + row + r] = accumulate ? out[t * g.rows + row + r] + y : y;
    }
}

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

static inline __m512i zmm(const void* p) { return _mm512_loadu_si512(p); }

// Windows by vpermb + vpmultishiftqb, values by vpermi2b: see docs/decisions/0002.
template <int K, bool kWide>
struct Decoder {
  __m512i table[K][kWide ? 4 : 2], spread, shift;

  explicit Decoder(const PlanesView& v) {
    for (int k = 0; k < K; ++k)
      for (int i = 0; i < (kWide ? 4 : 2); ++i)
        table[k][i] = zmm(v.tables->bytes[v.first + k] + 64 * i);
    alignas(64) uint8_t s[64], m[64];
    for (int i = 0; i < 64; ++i) s[i] = 7 + i / 8 + i % 8, m[i] = 9 - v.tables->window + i % 8;
    spread = zmm(s);
    shift = zmm(m);
  }

  __m512i operator()(const uint8_t* const* at, int64_t chunk) const {
    __m512i sum = _mm512_setzero_si512();
    for (int k = 0; k < K; ++k) {
      __m512i words = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)(at[k] + 8 * chunk)));
      __m512i index = _mm512_multishift_epi64_epi8(shift, _mm512_permutexvar_epi8(spread, words));
      __m512i value = _mm512_permutex2var_epi8(table[k][0], index, table[k][1]);
      if (kWide) {
        __m512i high = _mm512_permutex2var_epi8(table[k][2], index, table[k][3]);
        value = _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), value, high);
      }
      sum = k ? _mm512_add_epi8(sum, value) : value;
    }
    return sum;
  }
};

// G row groups of one tile times one block of N tokens, decoded in registers.
template <int K, bool kWide, int N, int G>
static void fused(const PlanesView& v, const Activations& x, int64_t group, float* sums) {
  const Decoder<K, kWide> decode(v);
  const TileCursor cursor = locate(v, group);
  const int64_t groups = x.cols / x.group, quads = x.group / kQuad;
  const int32_t* act = x.quads;
  int64_t chunk = cursor.index;
  for (int64_t a = 0; a < groups; ++a) {
    __m512i acc[G][N];
    for (auto& row : acc)
      for (auto& e : row) e = _mm512_setzero_si512();
    for (int64_t q = 0; q < quads; ++q, chunk += cursor.step, act += N)
      for (int g = 0; g < G; ++g) {
        __m512i w = decode(cursor.at, chunk + g);
        for (int n = 0; n < N; ++n)
          acc[g][n] = _mm512_dpbusd_epi32(acc[g][n], w, _mm512_set1_epi32(act[n]));
      }
    for (int g = 0; g < G; ++g)
      for (int n = 0; n < N; ++n) {
        if (n >= x.tokens) continue;
        __m512i exact = _mm512_sub_epi32(acc[g][n], _mm512_set1_epi32(x.offset[n * groups + a]));
        __m512 part = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_set1_ps(x.scale[n * groups + a]));
        float* s = sums + ((int64_t)g * N + n) * kRowGroup;
        _mm512_storeu_ps(s, _mm512_add_ps(_mm512_loadu_ps(s), part));
      }
  }
}

template <int K, bool kWide, int N>
static void fused_range(const PlanesView& v, const Activations& x, const float* row_scale, float unit,
                        int64_t begin, int64_t end, float* out, bool accumulate) {
  constexpr int kMany = N >= 8 ? 2 : N >= 4 ? 4 : 8;
  const int64_t per_tile = v.geometry.groups_per_tile();
  for (int64_t group = begin; group < end;) {
    alignas(64) float sums[kMany * N * kRowGroup] = {};
    const int64_t tile_end = (group / per_tile + 1) * per_tile;
    const bool many = group + kMany <= end && group + kMany <= tile_end;
    if (many) fused<K, kWide, N, kMany>(v, x, group, sums);
    else fused<K, kWide, N, 1>(v, x, group, sums);
    for (int g = 0; g < (many ? kMany : 1); ++g, ++group)
      write_out(v.geometry, group, sums + g * N * kRowGroup, row_scale, unit, x.tokens, out, accumulate);
  }
}

template <int K, bool kWide>
static void decode_fast(const PlanesView& v, int64_t group, uint8_t* out, int64_t out_step) {
  const Decoder<K, kWide> decode(v);
  const TileCursor cursor = locate(v, group);
  int64_t chunk = cursor.index;
  for (int64_t q = 0; q < v.geometry.quads(); ++q, chunk += cursor.step)
    _mm512_storeu_si512(out + q * out_step, decode(cursor.at, chunk));
}

static void decode_group(const PlanesView& v, int64_t group, uint8_t* out, int64_t step) {
  const int wide = v.tables->window == 8;
  if (v.tables->window > 8) return decode_group_plain(v, group, out, step);
  switch (v.count * 2 + wide) {
    case 2: return decode_fast<1, false>(v, group, out, step);
    case 3: return decode_fast<1, true>(v, group, out, step);
    case 4: return decode_fast<2, false>(v, group, out, step);
    case 5: return decode_fast<2, true>(v, group, out, step);
    case 6: return decode_fast<3, false>(v, group, out, step);
    case 7: return decode_fast<3, true>(v, group, out, step);
    case 8: return decode_fast<4, false>(v, group, out, step);
    default: return decode_fast<4, true>(v, group, out, step);
  }
}

template <int K, bool kWide>
static void fused_tokens(const PlanesView& v, const Activations& x, const float* row_scale, float unit,
                         int64_t begin, int64_t end, float* out, bool accumulate) {
  switch (x.block) {
    case 1: return fused_range<K, kWide, 1>(v, x, row_scale, unit, begin, end, out, accumulate);
    case 2: return fused_range<K, kWide, 2>(v, x, row_scale, unit, begin, end, out, accumulate);
    case 4: return fused_range<K, kWide, 4>(v, x, row_scale, unit, begin, end, out, accumulate);
    default: return fused_range<K, kWide, 8>(v, x, row_scale, unit, begin, end, out, accumulate);
  }
}

static void fused_planes(const PlanesView& v, const Activations& x, const float* row_scale, float unit,
                         int64_t begin, int64_t end, float* out, bool accumulate) {
  const bool wide = v.tables->window == 8;
  switch (v.count * 2 + wide) {
    case 2: return fused_tokens<1, false>(v, x, row_scale, unit, begin, end, out, accumulate);
    case 3: return fused_tokens<1, true>(v, x, row_scale, unit, begin, end, out, accumulate);
    case 4: return fused_tokens<2, false>(v, x, row_scale, unit, begin, end, out, accumulate);
    case 5: return fused_tokens<2, true>(v, x, row_scale, unit, begin, end, out, accumulate);
    case 6: return fused_tokens<3, false>(v, x, row_scale, unit, begin, end, out, accumulate);
    case 7: return fused_tokens<3, true>(v, x, row_scale, unit, begin, end, out, accumulate);
    case 8: return fused_tokens<4, false>(v, x, row_scale, unit, begin, end, out, accumulate);
    default: return fused_tokens<4, true>(v, x, row_scale, unit, begin, end, out, accumulate);
  }
}

// acc[N][16] of one decoded group of columns; w steps by 64 bytes a quad.
static inline void dot_block(const uint8_t* w, const int32_t* act, int64_t quads, int block,
                             int32_t* acc) {
  __m512i a[8];
  for (auto& e : a) e = _mm512_setzero_si512();
  if (block == 8) {
    for (int64_t q = 0; q < quads; ++q, w += 64, act += 8) {
      __m512i weights = zmm(w);
      for (int n = 0; n < 8; ++n) a[n] = _mm512_dpbusd_epi32(a[n], weights, _mm512_set1_epi32(act[n]));
    }
  } else {
    for (int64_t q = 0; q < quads; ++q, w += 64, act += block)
      for (int n = 0; n < block; ++n)
        a[n] = _mm512_dpbusd_epi32(a[n], zmm(w), _mm512_set1_epi32(act[n]));
  }
  for (int n = 0; n < block; ++n) _mm512_storeu_si512(acc + n * kRowGroup, a[n]);
}

#else

static void decode_group(const PlanesView& v, int64_t group, uint8_t* out, int64_t step) {
  decode_group_plain(v, group, out, step);
}

#if defined(__AVX2__)
static inline void dot_block(const uint8_t* w, const int32_t* act, int64_t quads, int block,
                             int32_t* acc) {
  for (int n = 0; n < block; ++n) {
    __m256i pairs[4];  // register i: rows 4i..4i+3, two partial sums each
    for (auto& p : pairs) p = _mm256_setzero_si256();
    for (int64_t q = 0; q < quads; ++q) {
      __m256i x = _mm256_cvtepi8_epi16(_mm_set1_epi32(act[q * block + n]));
      for (int i = 0; i < 4; ++i) {
        __m256i rows = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(w + q * 64 + 16 * i)));
        pairs[i] = _mm256_add_epi32(pairs[i], _mm256_madd_epi16(rows, x));
      }
    }
    for (int i = 0; i < 4; ++i) {
      alignas(32) int32_t halves[8];
      _mm256_store_si256((__m256i*)halves, pairs[i]);
      for (int r = 0; r < 4; ++r) acc[n * kRowGroup + 4 * i + r] = halves[2 * r] + halves[2 * r + 1];
    }
  }
}
#else
static inline void dot_block(const uint8_t* w, const int32_t* act, int64_t quads, int block,
                             int32_t* acc) {
  for (int n = 0; n < block; ++n) {
    int32_t sum[kRowGroup] = {};
    for (int64_t q = 0; q < quads; ++q) {
      int8_t x[4];
      std::memcpy(x, act + q * block + n, 4);
      const uint8_t* p = w + q * 64;
      for (int r = 0; r < kRowGroup; ++r)
        sum[r] += p[4 * r] * x[0] + p[4 * r + 1] * x[1] + p[4 * r + 2] * x[2] + p[4 * r + 3] * x[3];
    }
    std::memcpy(acc + n * kRowGroup, sum, sizeof sum);
  }
}
#endif
#endif

static void decode_groups(const PlanesView& v, int64_t begin, int64_t end, uint8_t* out) {
  const int64_t bytes = v.geometry.quads() * kChunk;
  for (int64_t group = begin; group < end; ++group, out += bytes) decode_group(v, group, out, kChunk);
}

// Decode a row group once, then use it for every token.
static void panel_matmul(const PlanesView& v, const Activations& x, const float* row_scale, float unit,
                         int64_t begin, int64_t end, float* out, bool accumulate, uint8_t* panel) {
  const int64_t groups = x.cols / x.group, quads = x.group / kQuad, all = x.cols / kQuad;
  for (int64_t group = begin; group < end; ++group) {
    decode_group(v, group, panel, kChunk);
    for (int64_t t = 0; t < x.tokens; t += x.block) {
      const int64_t used = x.tokens - t < x.block ? x.tokens - t : x.block;
      const int32_t* act = x.quads + t * all;
      alignas(64) float sums[8 * kRowGroup] = {};
      alignas(64) int32_t acc[8 * kRowGroup];
      for (int64_t a = 0; a < groups; ++a) {
        dot_block(panel + a * quads * kChunk, act + a * quads * x.block, quads, x.block, acc);
        finish(acc, x.offset + t * groups + a, x.scale + t * groups + a, used, groups, sums);
      }
      write_out(v.geometry, group, sums, row_scale, unit, used, out + t * v.geometry.rows, accumulate);
    }
  }
}

static void planes_matmul(const PlanesView& v, const Activations& x, const float* row_scale, float unit,
                          int64_t begin, int64_t end, float* out, bool accumulate, uint8_t* panel) {
#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)
  if (x.tokens <= x.block && v.tables->window <= 8)
    return fused_planes(v, x, row_scale, unit, begin, end, out, accumulate);
#endif
  panel_matmul(v, x, row_scale, unit, begin, end, out, accumulate, panel);
}

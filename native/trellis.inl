// Decoding trellis planes to int8 weights and multiplying them with int8 activations.

constexpr int kPanelStrip = kStrip * kBlockRows;  // decoded bytes of one strip of a block

// Bytes of one block, and of the blocks one and two before it in the order of its streams.
struct BlockRows {
  const uint8_t* now[kPlanesPerGroup];
  const uint8_t* before[2][kPlanesPerGroup];
  alignas(64) uint8_t edge[2][kPlanesPerGroup][kStripBytes];  // `before` of the first strip
};

// Before the first block of a tile comes its last one, a quad (16 bytes) to the left, where strip 0
// has nothing: those bits are zero.
static void locate(const TileView& v, int64_t block, BlockRows* rows) {
  const int64_t count = v.shape.blocks(), bytes = v.shape.block_bytes();
  for (int k = 0; k < v.count; ++k) {
    rows->now[k] = v.planes[k] + block * bytes;
    for (int back = 0; back < 2; ++back) {
      int64_t before = block - 1 - back, left = 0;
      for (; before < 0; before += count) left += kStreams;
      const uint8_t* row = v.planes[k] + before * bytes;
      uint8_t* edge = rows->edge[back][k];
      std::memset(edge, 0, left);
      std::memcpy(edge + left, row, kStripBytes - left);
      // Never read on strip 0; computed as an integer because it may lie before the stream.
      rows->before[back][k] = (const uint8_t*)((uintptr_t)row - (uintptr_t)left);
    }
  }
}

static inline void finish(const int32_t* sums, int32_t offset, float scale, float* out) {
  for (int r = 0; r < kBlockRows; ++r) out[r] += (float)(sums[r] - offset) * scale;
}

static inline void write_out(const Shape& shape, int64_t block, const float* sums, const float* row_scale,
                             float unit, float* out, bool accumulate) {
  const int64_t row = block * kBlockRows;
  const int64_t rows = shape.rows - row < kBlockRows ? shape.rows - row : kBlockRows;
  for (int64_t r = 0; r < rows; ++r) {
    const float y = sums[r] * (row_scale[row + r] * unit);
    out[row + r] = accumulate ? out[row + r] + y : y;
  }
}

#if defined(LSB_BYTES)

constexpr int kRegisterBytes = LSB_BYTES;
constexpr int kRegisters = kStripBytes / LSB_BYTES;  // of one strip

struct Tables {
  vb hash[2], levels[kPlanesPerGroup];

  explicit Tables(const TileView& v) {
    for (int i = 0; i < 2; ++i) hash[i] = load_bytes(v.tables->hash[i]);
    for (int k = 0; k < v.count; ++k)
      levels[k] = load_bytes(kBiased ? v.tables->biased[v.first + k] : v.tables->levels[v.first + k]);
  }
};

// Values of the eight steps in the bytes `now`; `w` are the nibbles that end at steps -4..7 and, if
// the window is longer than 8 bits (kDeep), at -8..7. kAdd adds them to what is there.
template <bool kDeep, bool kAdd>
static inline __attribute__((always_inline)) void plane_values(vb before2, vb before, vb now,
                                                              const Tables& tables, vb levels, vb* out) {
  vb w[16];
  if (kDeep) {
    const vb joint = join(nibble<4>(before2), nibble<0>(before));
    w[0] = nibble<1>(joint), w[1] = nibble<2>(joint), w[2] = nibble<3>(joint), w[3] = nibble<0>(before);
  }
  w[4] = nibble<1>(before), w[5] = nibble<2>(before), w[6] = nibble<3>(before), w[7] = nibble<4>(before);
  w[11] = nibble<0>(now);
  const vb joint = join(w[7], w[11]);
  w[8] = nibble<1>(joint), w[9] = nibble<2>(joint), w[10] = nibble<3>(joint);
  w[12] = nibble<1>(now), w[13] = nibble<2>(now), w[14] = nibble<3>(now), w[15] = nibble<4>(now);
  for (int i = 0; i < kSteps; ++i) {
    vb index = xor_bytes(w[8 + i], lookup(tables.hash[0], w[4 + i]));
    if (kDeep) index = xor_bytes(index, lookup(tables.hash[1], w[i]));
    const vb value = lookup(levels, index);
    out[i] = kAdd ? add_bytes(out[i], value) : value;
  }
}

// One register of a strip at byte `at`: eight registers of weights, one for each row group.
template <int K, bool kDeep>
static inline __attribute__((always_inline)) void decode_register(const uint8_t* const* now,
    const uint8_t* const* before, const uint8_t* const* before2, int64_t at, const Tables& t, vb* out) {
  const auto deep = [&](int k) { return kDeep ? load_bytes(before2[k] + at) : t.hash[0]; };
  plane_values<kDeep, false>(deep(0), load_bytes(before[0] + at), load_bytes(now[0] + at), t, t.levels[0], out);
  if constexpr (K > 1)
    plane_values<kDeep, true>(deep(1), load_bytes(before[1] + at), load_bytes(now[1] + at), t, t.levels[1], out);
  if constexpr (K > 2)
    plane_values<kDeep, true>(deep(2), load_bytes(before[2] + at), load_bytes(now[2] + at), t, t.levels[2], out);
  if constexpr (K > 3)
    plane_values<kDeep, true>(deep(3), load_bytes(before[3] + at), load_bytes(now[3] + at), t, t.levels[3], out);
}

// Calls body(now, before, before2, begin, end) for the strips [begin, end), the first strip apart.
template <typename Body>
static inline void over_strips(const BlockRows& rows, int64_t begin, int64_t end, const Body& body) {
  if (begin == 0 && end > 0) {
    const uint8_t *near[kPlanesPerGroup], *far[kPlanesPerGroup];
    for (int k = 0; k < kPlanesPerGroup; ++k) near[k] = rows.edge[0][k], far[k] = rows.edge[1][k];
    body(rows.now, near, far, 0, 1);
    begin = 1;
  }
  if (begin < end) body(rows.now, rows.before[0], rows.before[1], begin, end);
}

// Sums of the rows of `groups` row groups.
static inline void store_rows(const vsum* sums, int groups, int32_t* out) {
  for (int g = 0; g < groups; ++g) {
    const auto four = rows_of(sums[g]);
    std::memcpy(out + g * kRowGroup, &four, sizeof four);
  }
}

// One token: weights never leave the registers.
template <int K, bool kDeep>
static void single(const TileView& v, const BlockRows& rows, const Activations& x, float* out) {
  const Tables tables(v);
  const int64_t groups = x.cols / x.group, strips = group_strips(x.group);
  for (int64_t a = 0; a < groups; ++a) {
    vsum sums[kSteps];
    for (auto& s : sums) s = zero_sum();
    over_strips(rows, a * strips, (a + 1) * strips,
                [&](const uint8_t* const* now, const uint8_t* const* before, const uint8_t* const* before2,
                    int64_t begin, int64_t end) {
      for (int64_t at = begin * kRegisters; at < end * kRegisters; ++at) {
        vb w[kSteps];
        decode_register<K, kDeep>(now, before, before2, at * LSB_BYTES, tables, w);
        const vb values = spread(x.rows + at / kRegisters * kStrip, at % kRegisters);
        for (int g = 0; g < kSteps; ++g) sums[g] = dot(sums[g], prepare(w[g]), values);
      }
    });
    int32_t whole[kBlockRows];
    store_rows(sums, kSteps, whole);
    finish(whole, kBiased ? 128 * x.sum[a] : 0, x.scale[a], out);
  }
}

// Strips [begin, end) of a block: [strip][register][row group] registers of weights.
template <int K, bool kDeep>
static void decode_panel(const TileView& v, const BlockRows& rows, int64_t begin, int64_t end, uint8_t* panel) {
  const Tables tables(v);
  over_strips(rows, begin, end,
              [&](const uint8_t* const* now, const uint8_t* const* before, const uint8_t* const* before2,
                  int64_t first, int64_t last) {
    uint8_t* to = panel + (first - begin) * kPanelStrip;
    for (int64_t at = first * kRegisters; at < last * kRegisters; ++at) {
      vb w[kSteps];
      decode_register<K, kDeep>(now, before, before2, at * LSB_BYTES, tables, w);
      for (int g = 0; g < kSteps; ++g, to += LSB_BYTES) store_bytes(to, w[g]);
    }
  });
}

constexpr int kManyTokens = 4;
constexpr int kGroupsAtOnce = LSB_BYTES == 32 ? 2 : 4;  // row groups x tokens fill the registers

// sums[t][32] of T tokens with `strips` strips of a panel.
template <int T>
static void panel_dot(const uint8_t* panel, const int8_t* x, int64_t stride, int64_t strips, int32_t (*out)[kBlockRows]) {
  constexpr int G = T == 1 ? kSteps : kGroupsAtOnce;
  for (int g0 = 0; g0 < kSteps; g0 += G) {
    vsum sums[T][G];
    for (auto& row : sums)
      for (auto& s : row) s = zero_sum();
    const uint8_t* w = panel + g0 * LSB_BYTES;
    for (int64_t at = 0; at < strips * kRegisters; ++at, w += kSteps * LSB_BYTES) {
      vb values[T];
      for (int t = 0; t < T; ++t) values[t] = spread(x + t * stride + at / kRegisters * kStrip, at % kRegisters);
      for (int g = 0; g < G; ++g) {
        const Prepared weights = prepare(load_bytes(w + g * LSB_BYTES));
        for (int t = 0; t < T; ++t) sums[t][g] = dot(sums[t][g], weights, values[t]);
      }
    }
    for (int t = 0; t < T; ++t) store_rows(sums[t], G, out[t] + g0 * kRowGroup);
  }
}

typedef void (*Single)(const TileView&, const BlockRows&, const Activations&, float*);
typedef void (*Panel)(const TileView&, const BlockRows&, int64_t, int64_t, uint8_t*);

static bool deep(const TileView& v) { return v.tables->window > 8; }

static void decode_strips(const TileView& v, const BlockRows& rows, int64_t begin, int64_t end, uint8_t* panel) {
  static const Panel kShapes[2][kPlanesPerGroup] = {
      {decode_panel<1, false>, decode_panel<2, false>, decode_panel<3, false>, decode_panel<4, false>},
      {decode_panel<1, true>, decode_panel<2, true>, decode_panel<3, true>, decode_panel<4, true>}};
  kShapes[deep(v)][v.count - 1](v, rows, begin, end, panel);
}

static void single_token(const TileView& v, const BlockRows& rows, const Activations& x, float* out) {
  static const Single kShapes[2][kPlanesPerGroup] = {
      {single<1, false>, single<2, false>, single<3, false>, single<4, false>},
      {single<1, true>, single<2, true>, single<3, true>, single<4, true>}};
  kShapes[deep(v)][v.count - 1](v, rows, x, out);
}

#else

constexpr bool kBiased = false;
constexpr int kManyTokens = 1;
constexpr int kRegisterBytes = kStripBytes;

static void decode_strips(const TileView& v, const BlockRows& rows, int64_t begin, int64_t end, uint8_t* panel) {
  const int window = v.tables->window;
  const uint32_t mask = (1u << window) - 1;
  for (int64_t strip = begin; strip < end; ++strip, panel += kPanelStrip) {
    std::memset(panel, 0, kPanelStrip);
    for (int k = 0; k < v.count; ++k) {
      const int8_t* values = v.tables->values[v.first + k];
      const uint8_t* now = rows.now[k] + strip * kStripBytes;
      const uint8_t* near = strip ? rows.before[0][k] + strip * kStripBytes : rows.edge[0][k];
      const uint8_t* far = strip ? rows.before[1][k] + strip * kStripBytes : rows.edge[1][k];
      for (int i = 0; i < kStripBytes; ++i) {
        const uint32_t bits = (uint32_t)far[i] | (uint32_t)near[i] << 8 | (uint32_t)now[i] << 16;
        for (int g = 0; g < kSteps; ++g)
          panel[g * kStripBytes + i] += (uint8_t)values[bits >> (17 + g - window) & mask];
      }
    }
  }
}

template <int T>
static void panel_dot(const uint8_t* panel, const int8_t* x, int64_t, int64_t strips, int32_t (*out)[kBlockRows]) {
  std::memset(out[0], 0, sizeof out[0]);
  for (int64_t strip = 0; strip < strips; ++strip, x += kStrip)
    for (int g = 0; g < kSteps; ++g, panel += kStripBytes)
      for (int quad = 0; quad < kStrip / kQuad; ++quad)
        for (int r = 0; r < kRowGroup; ++r) {
          const int8_t* w = (const int8_t*)panel + quad * kStreams + r * kQuad;
          for (int j = 0; j < kQuad; ++j) out[0][g * kRowGroup + r] += w[j] * x[quad * kQuad + j];
        }
}
#endif

// A panel, a group of columns at a time, used for every token.
static void many_tokens(const TileView& v, const BlockRows& rows, const Activations& x, uint8_t* panel, float* out) {
  const int64_t groups = x.cols / x.group, strips = group_strips(x.group);
  for (int64_t a = 0; a < groups; ++a) {
    decode_strips(v, rows, a * strips, (a + 1) * strips, panel);
    for (int64_t t = 0; t < x.tokens;) {
      const int64_t used = x.tokens - t < kManyTokens ? 1 : kManyTokens;
      int32_t sums[kManyTokens][kBlockRows];
      const int8_t* values = x.rows + t * x.stride + a * strips * kStrip;
      if (used == 1) panel_dot<1>(panel, values, x.stride, strips, sums);
      else panel_dot<kManyTokens>(panel, values, x.stride, strips, sums);
      for (int64_t i = 0; i < used; ++i, ++t) {
        const int64_t at = t * groups + a;
        finish(sums[i], kBiased ? 128 * x.sum[at] : 0, x.scale[at], out + t * kBlockRows);
      }
    }
  }
}

static void planes_matmul(const TileView& v, const Activations& x, const float* row_scale, float unit,
                          int64_t begin, int64_t end, float* out, int64_t stride, bool accumulate, void* scratch) {
  float* sums = (float*)scratch;
  uint8_t* panel = (uint8_t*)(sums + x.tokens * kBlockRows);
  BlockRows rows;
  for (int64_t block = begin; block < end; ++block) {
    locate(v, block, &rows);
    std::memset(sums, 0, x.tokens * kBlockRows * sizeof(float));
#if defined(LSB_BYTES)
    if (x.tokens == 1) single_token(v, rows, x, sums);
    else
#endif
    many_tokens(v, rows, x, panel, sums);
    for (int64_t t = 0; t < x.tokens; ++t)
      write_out(v.shape, block, sums + t * kBlockRows, row_scale, unit, out + t * stride, accumulate);
  }
}

// Row-major signed weights of one block: [32][whole strips].
static void decode_block(const TileView& v, int64_t block, int8_t* out) {
  const int64_t strips = v.shape.strips(), cols = strips * kStrip;
  constexpr int kQuads = kRegisterBytes / kStreams;  // of one register
  BlockRows rows;
  locate(v, block, &rows);
  alignas(64) uint8_t panel[kPanelStrip];
  for (int64_t strip = 0; strip < strips; ++strip) {
    decode_strips(v, rows, strip, strip + 1, panel);
    for (int quad = 0; quad < kStrip / kQuad; ++quad)
      for (int row = 0; row < kBlockRows; ++row) {
        const int g = row / kRowGroup, r = row % kRowGroup;
        const uint8_t* from = panel + (quad / kQuads * kSteps + g) * kRegisterBytes + quad % kQuads * kStreams + r * kQuad;
        for (int j = 0; j < kQuad; ++j)
          out[row * cols + strip * kStrip + quad * kQuad + j] = (int8_t)(kBiased ? from[j] ^ 128 : from[j]);
      }
  }
}

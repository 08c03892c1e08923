// Decoding trellis planes to int8 weights and multiplying them with int8 activations.

constexpr int64_t kPanelStrip = kPanelStripBytes;

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

#if defined(__AVX512VBMI__)
#include "values_placed.inl"
#else
#include "values_nibbles.inl"
#endif

template <int K, bool kDeep>
static inline __attribute__((always_inline)) void load_past(const uint8_t* const* before, const uint8_t* const* before2,
                                                           int64_t at, Past<kDeep>* past) {
  for (int k = 0; k < K; ++k)
    past[k].load(kDeep ? load_bytes(before2[k] + at) : vb{}, load_bytes(before[k] + at));
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

// out[rows of `groups` row groups] += (sums - offset) * scale.
static inline void add_groups(const vsum* sums, int groups, int32_t offset, float scale, float* out) {
  for (int g = 0; g < groups; g += kGroupsFolded) add_rows(sums + g, offset, scale, out + g * kRowGroup);
}

// Bytes of a plane: a page, where a processor's own reading ahead stops. Narrower tiers do not decode
// fast enough to wait for it.
constexpr int64_t kFetchAhead = LSB_BYTES == 64 ? 4096 : 0;

// One token and B blocks of rows that follow each other in the streams: weights never leave the
// registers, and the nibbles of a block serve the next one. out [B][32]
template <int K, bool kDeep, int B>
static void single(const TileView& v, const Tables& tables, const BlockRows& rows, const Activations& x, float* out) {
  const int64_t groups = x.cols / x.group, strips = group_strips(x.group), block_bytes = v.shape.block_bytes();
  for (int64_t a = 0; a < groups; ++a) {
    vsum sums[B][kSteps];
    for (auto& block : sums)
      for (auto& s : block) s = zero_sum();
    over_strips(rows, a * strips, (a + 1) * strips,
                [&](const uint8_t* const* now, const uint8_t* const* before, const uint8_t* const* before2,
                    int64_t begin, int64_t end) {
      for (int64_t at = begin * kRegisters; at < end * kRegisters; ++at) {
        Past<kDeep> past[K];
        load_past<K, kDeep>(before, before2, at * LSB_BYTES, past);
        for (int k = 0; k < K && kFetchAhead; ++k) __builtin_prefetch(now[k] + at * LSB_BYTES + kFetchAhead);
        const Fixed values = fix(spread(x.rows + at / kRegisters * kStrip, at % kRegisters));
        for (int b = 0; b < B; ++b) {
          decode_register<K, kDeep>(past, now, at * LSB_BYTES + b * block_bytes, tables,
                                    [&](int g, vb w) { sums[b][g] = dot_fixed(sums[b][g], w, values); });
        }
      }
    });
    for (int b = 0; b < B; ++b)
      add_groups(sums[b], kSteps, kBiased ? 128 * x.sum[a] : 0, x.scale[a], out + b * kBlockRows);
  }
}

// Strips [begin, end) of a block: [strip][register][row group] registers of weights.
template <int K, bool kDeep>
static void decode_panel(const Tables& tables, const BlockRows& rows, int64_t begin, int64_t end, uint8_t* panel) {
  over_strips(rows, begin, end,
              [&](const uint8_t* const* now, const uint8_t* const* before, const uint8_t* const* before2,
                  int64_t first, int64_t last) {
    uint8_t* to = panel + (first - begin) * kPanelStrip;
    for (int64_t at = first * kRegisters; at < last * kRegisters; ++at) {
      Past<kDeep> past[K];
      load_past<K, kDeep>(before, before2, at * LSB_BYTES, past);
      decode_register<K, kDeep>(past, now, at * LSB_BYTES, tables,
                                [&](int g, vb w) { store_bytes(to + g * LSB_BYTES, w); });
      to += kSteps * LSB_BYTES;
    }
  });
}

constexpr int kManyTokens = 4;
constexpr int kGroupsAtOnce = LSB_BYTES == 32 ? 2 : 4;  // row groups x tokens fill the registers

// out[token][32] += group `a` of tokens t .. t + T - 1 times the panel of its strips.
template <int T>
static void panel_dot(const uint8_t* panel, const Activations& x, int64_t t, int64_t a, float* out) {
  constexpr int G = T == 1 ? kSteps : kGroupsAtOnce;
  const int64_t strips = group_strips(x.group), groups = x.cols / x.group, stride = x.stride;
  const int8_t* values_at = x.rows + t * stride + a * strips * kStrip;
  for (int g0 = 0; g0 < kSteps; g0 += G) {
    vsum sums[T][G];
    for (auto& row : sums)
      for (auto& s : row) s = zero_sum();
    const uint8_t* w = panel + g0 * LSB_BYTES;
    for (int64_t at = 0; at < strips * kRegisters; ++at, w += kSteps * LSB_BYTES) {
      vb values[T];
      for (int i = 0; i < T; ++i) values[i] = spread(values_at + i * stride + at / kRegisters * kStrip, at % kRegisters);
      if constexpr (T == 1) {
        const Fixed fixed = fix(values[0]);
        for (int g = 0; g < G; ++g) sums[0][g] = dot_fixed(sums[0][g], load_bytes(w + g * LSB_BYTES), fixed);
      } else {
        for (int g = 0; g < G; ++g) {
          const Prepared weights = prepare(load_bytes(w + g * LSB_BYTES));
          for (int i = 0; i < T; ++i) sums[i][g] = dot(sums[i][g], weights, values[i]);
        }
      }
    }
    for (int i = 0; i < T; ++i) {
      const int64_t place = (t + i) * groups + a;
      add_groups(sums[i], G, kBiased ? 128 * x.sum[place] : 0, x.scale[place], out + (t + i) * kBlockRows + g0 * kRowGroup);
    }
  }
}

typedef void (*PanelDot)(const uint8_t*, const Activations&, int64_t, int64_t, float*);
constexpr PanelDot kPanelDots[kManyTokens] = {panel_dot<1>, panel_dot<2>, panel_dot<3>, panel_dot<4>};

typedef void (*Single)(const TileView&, const Tables&, const BlockRows&, const Activations&, float*);
typedef void (*Panel)(const Tables&, const BlockRows&, int64_t, int64_t, uint8_t*);

static bool deep(const TileView& v) { return v.tables->window > 8; }

static void decode_strips(const TileView& v, const Tables& tables, const BlockRows& rows, int64_t begin, int64_t end,
                          uint8_t* panel) {
  static const Panel kShapes[2][kPlanesPerGroup] = {
      {decode_panel<1, false>, decode_panel<2, false>, decode_panel<3, false>, decode_panel<4, false>},
      {decode_panel<1, true>, decode_panel<2, true>, decode_panel<3, true>, decode_panel<4, true>}};
  kShapes[deep(v)][v.count - 1](tables, rows, begin, end, panel);
}

constexpr int kBlocksMost = 2;

template <int B>
static void single_token(const TileView& v, const Tables& tables, const BlockRows& rows, const Activations& x, float* out) {
  static const Single kShapes[2][kPlanesPerGroup] = {
      {single<1, false, B>, single<2, false, B>, single<3, false, B>, single<4, false, B>},
      {single<1, true, B>, single<2, true, B>, single<3, true, B>, single<4, true, B>}};
  kShapes[deep(v)][v.count - 1](v, tables, rows, x, out);
}

#else

constexpr bool kBiased = false;
constexpr int kBlocksMost = 1;
constexpr int kManyTokens = 1;
constexpr int kRegisterBytes = kStripBytes;

static int blocks_at_once(int) { return 1; }

struct Tables {
  explicit Tables(const TileView&) {}
};

static void decode_strips(const TileView& v, const Tables&, const BlockRows& rows, int64_t begin, int64_t end,
                          uint8_t* panel) {
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

static void panel_dot(const uint8_t* panel, const Activations& x, int64_t t, int64_t a, float* out) {
  const int64_t strips = group_strips(x.group), place = t * (x.cols / x.group) + a;
  const int8_t* values = x.rows + t * x.stride + a * strips * kStrip;
  int32_t sums[kBlockRows] = {};
  for (int64_t strip = 0; strip < strips; ++strip, values += kStrip)
    for (int g = 0; g < kSteps; ++g, panel += kStripBytes)
      for (int quad = 0; quad < kStrip / kQuad; ++quad)
        for (int r = 0; r < kRowGroup; ++r) {
          const int8_t* w = (const int8_t*)panel + quad * kStreams + r * kQuad;
          for (int j = 0; j < kQuad; ++j) sums[g * kRowGroup + r] += w[j] * values[quad * kQuad + j];
        }
  for (int r = 0; r < kBlockRows; ++r) out[t * kBlockRows + r] += (float)sums[r] * x.scale[place];
}

constexpr decltype(&panel_dot) kPanelDots[kManyTokens] = {panel_dot};
#endif

// sums[token][32] += group `a` of every token times its panel.
static void all_tokens(const uint8_t* panel, const Activations& x, int64_t a, float* sums) {
  for (int64_t t = 0; t < x.tokens; t += kManyTokens) {
    const int64_t left = x.tokens - t;
    kPanelDots[(left < kManyTokens ? left : kManyTokens) - 1](panel, x, t, a, sums);
  }
}

// A panel, a group of columns at a time, used for every token.
static void many_tokens(const TileView& v, const Tables& tables, const BlockRows& rows, const Activations& x,
                        uint8_t* panel, float* out) {
  const int64_t groups = x.cols / x.group, strips = group_strips(x.group);
  for (int64_t a = 0; a < groups; ++a) {
    decode_strips(v, tables, rows, a * strips, (a + 1) * strips, panel);
    all_tokens(panel, x, a, out);
  }
}

static void planes_matmul(const TileView& v, const Activations& x, const float* row_scale, float unit,
                          int64_t begin, int64_t end, float* out, int64_t stride, bool accumulate, void* scratch) {
  float* sums = (float*)scratch;
  uint8_t* panel = (uint8_t*)(sums + (x.tokens + kBlocksMost - 1) * kBlockRows);
  const Tables tables(v);
  BlockRows rows;
  const int64_t at_once = x.tokens == 1 ? blocks_at_once(v.count) : 1;
  for (int64_t block = begin, count; block < end; block += count) {
    count = end - block >= at_once ? at_once : 1;
    locate(v, block, &rows);
    std::memset(sums, 0, x.tokens * count * kBlockRows * sizeof(float));
#if defined(LSB_BYTES)
    if (x.tokens == 1) (count == 1 ? single_token<1> : single_token<kBlocksMost>)(v, tables, rows, x, sums);
    else
#endif
    many_tokens(v, tables, rows, x, panel, sums);
    for (int64_t i = 0; i < x.tokens * count; ++i)  // tokens of a block, or blocks of a token
      write_out(v.shape, block + (x.tokens == 1 ? i : 0), sums + i * kBlockRows, row_scale, unit,
                out + (x.tokens == 1 ? 0 : i) * stride, accumulate);
  }
}

static void unpack_block(const TileView& v, int64_t block, uint8_t* panels) {
  BlockRows rows;
  locate(v, block, &rows);
  decode_strips(v, Tables(v), rows, 0, v.shape.strips(), panels);
}

static void panels_matmul(const uint8_t* panels, const Shape& shape, const Activations& x, const float* row_scale,
                          float unit, int64_t begin, int64_t end, float* out, int64_t stride, bool accumulate,
                          void* scratch) {
  float* sums = (float*)scratch;
  const int64_t groups = x.cols / x.group, group_bytes = group_strips(x.group) * kPanelStrip;
  for (int64_t block = begin; block < end; ++block) {
    const uint8_t* panel = panels + block * shape.strips() * kPanelStrip;
    std::memset(sums, 0, x.tokens * kBlockRows * sizeof(float));
    for (int64_t a = 0; a < groups; ++a, panel += group_bytes) all_tokens(panel, x, a, sums);
    for (int64_t t = 0; t < x.tokens; ++t)
      write_out(shape, block, sums + t * kBlockRows, row_scale, unit, out + t * stride, accumulate);
  }
}

// Row-major signed weights of one block: [32][whole strips].
static void decode_block(const TileView& v, int64_t block, int8_t* out) {
  const int64_t strips = v.shape.strips(), cols = strips * kStrip;
  constexpr int kQuads = kRegisterBytes / kStreams;  // of one register
  BlockRows rows;
  locate(v, block, &rows);
  const Tables tables(v);
  alignas(64) uint8_t panel[kPanelStrip];
  for (int64_t strip = 0; strip < strips; ++strip) {
    decode_strips(v, tables, rows, strip, strip + 1, panel);
    for (int quad = 0; quad < kStrip / kQuad; ++quad)
      for (int row = 0; row < kBlockRows; ++row) {
        const int g = row / kRowGroup, r = row % kRowGroup;
        const uint8_t* from = panel + (quad / kQuads * kSteps + g) * kRegisterBytes + quad % kQuads * kStreams + r * kQuad;
        for (int j = 0; j < kQuad; ++j)
          out[row * cols + strip * kStrip + quad * kQuad + j] = (int8_t)(kBiased ? from[j] ^ 128 : from[j]);
      }
  }
}

// Keys and values of past tokens, and attention over them.
//
// A cache is kept in tiles of 16 steps x 16 lanes: the kernel adds, step by step, a factor times the
// 16 lanes. Lanes of a key tile are positions and its steps channels; lanes of a value tile are
// channels and its steps positions: one kernel multiplies both. Tiles follow each other in the order
// of their steps: keys [context/16][head_dim/16][tile], values [head_dim/16][context/16][tile].
//   16 bits: [16 steps][16 lanes] half floats
//    8 bits: [8 pairs of steps][16 lanes][2 steps] int8
//    4 bits: [2][16 lanes][2 steps] words of 16 bits; nibble n of half h is pair 4h + n
// Keys and values may differ in bits. With 8 and 4 factors are int16, sums are exact integers, and
// channels are rotated, so that an outlier in one of them does not take the range of the others.

constexpr int kTile = 16;
constexpr int kAtOnce = 4;           // queries that share one pass over tiles
constexpr float kNothing = -1e30f;   // the score of a position that is not seen
constexpr int kFactorMax = 32767;

template <int B> struct Cell { typedef int16_t Factor; typedef vi Sum; };
template <> struct Cell<16> { typedef float Factor; typedef vf Sum; };

template <int B> static inline const uint8_t* tile_at(const void* tiles, int64_t index) {
  return (const uint8_t*)tiles + index * (kTile * kTile * B / 8);
}

// sums[query] += factors[2 pair .. 2 pair + 1] * row, for Q queries.
template <int Q>
static inline __attribute__((always_inline)) void add_pair(const vp* row, int64_t pair,
    const int16_t* const* factors, vi (*sums)[kParts]) {
  for (int q = 0; q < Q; ++q) {
    const vp two = splat_pair(factors[q] + 2 * pair);
    for (int i = 0; i < kParts; ++i) sums[q][i] += pair_sums(row[i], two);
  }
}

// sums[query] += factors * tiles that lie one after the other, `steps` in all.
template <int B, int Q>
static inline __attribute__((always_inline)) void add_tiles(const uint8_t* tiles, int64_t steps,
    const typename Cell<B>::Factor* const* factors, typename Cell<B>::Sum (*sums)[kParts]) {
  // Unrolled further, gcc runs out of registers.
  if constexpr (B == 16) {
#pragma GCC unroll 2
    for (int64_t step = 0; step < steps; ++step) {
      const Lanes row = load_half((const uint16_t*)tiles + step * kTile);
      for (int q = 0; q < Q; ++q)
        for (int i = 0; i < kParts; ++i) sums[q][i] = fused(splat(factors[q][step]), row.part[i], sums[q][i]);
    }
  } else if constexpr (B == 8) {
#pragma GCC unroll 2
    for (int64_t pair = 0; pair < steps / 2; ++pair) {
      vp row[kParts];
      for (int i = 0; i < kParts; ++i) row[i] = load_widened((const int8_t*)tiles + (pair * kParts + i) * 2 * W);
      add_pair<Q>(row, pair, factors, sums);
    }
  } else {
    for (int64_t pair = 0; pair < steps / 2; pair += 4) {
      vn words[kParts];
      for (int i = 0; i < kParts; ++i) std::memcpy(&words[i], tiles + pair * kTile + i * 4 * W, sizeof(vn));
#pragma GCC unroll 1
      for (int nibble = 0; nibble < 4; ++nibble) {
        vp row[kParts];
        for (int i = 0; i < kParts; ++i) {
          row[i] = (vp)(words[i] & 15);
          words[i] >>= 4;
        }
        add_pair<Q>(row, pair + nibble, factors, sums);
      }
    }
  }
}

// What the sums mean: nibble n stands for 2n - 15, so `total` of the factors is taken off.
template <int B> static inline vf real(typename Cell<B>::Sum sum, int32_t total) {
  if constexpr (B == 16) return sum;
  else if constexpr (B == 8) return __builtin_convertvector(sum, vf);
  else return __builtin_convertvector(2 * sum - 15 * total, vf);
}

struct Factors { void* data; float scale; int32_t total; };  // total: of the integers

struct Query {          // one row and head; its arrays are in scratch
  Factors channels;     // [head_dim]: against keys
  Factors positions;    // [kChunk]: against values, where the scores were
  float* scores;        // [kChunk]
  float* part;          // state of one chunk
  int64_t begin, end;   // positions seen
};

struct HeadTiles {
  const uint8_t *keys, *values;
  const uint16_t *key_scale, *value_scale;
  int64_t across, along;  // tiles of channels, of positions
};

// Scores of the positions [first, stop) of the chunk that begins at `start`.
template <int B, int Q>
static void score_group(const HeadTiles& h, const Query* queries, int64_t start, int64_t first, int64_t stop) {
  typedef typename Cell<B>::Factor Factor;
  for (int64_t t = first; t < stop; t += kTile) {
    typename Cell<B>::Sum sums[Q][kParts] = {};
    const Factor* factors[Q];
    for (int q = 0; q < Q; ++q) factors[q] = (const Factor*)queries[q].channels.data;
    add_tiles<B, Q>(tile_at<B>(h.keys, t / kTile * h.across), h.across * kTile, factors, sums);
    Lanes scale = zero_lanes();
    if constexpr (B < 16) scale = load_half(h.key_scale + t);
    for (int q = 0; q < Q; ++q)
      for (int i = 0; i < kParts; ++i) {
        vf s = real<B>(sums[q][i], queries[q].channels.total);
        if constexpr (B < 16) s *= scale.part[i] * splat(queries[q].channels.scale);
        store(queries[q].scores + t - start + i * W, s);
      }
  }
}

// Weighted values of those positions, into the chunk's state.
template <int B, int Q>
static void gather_group(const HeadTiles& h, const Query* queries, int64_t start, int64_t first, int64_t stop) {
  typedef typename Cell<B>::Factor Factor;
  for (int64_t c = 0; c < h.across; ++c) {
    typename Cell<B>::Sum sums[Q][kParts] = {};
    const Factor* factors[Q];
    for (int q = 0; q < Q; ++q) factors[q] = (const Factor*)queries[q].positions.data + (first - start);
    add_tiles<B, Q>(tile_at<B>(h.values, c * h.along + first / kTile), stop - first, factors, sums);
    for (int q = 0; q < Q; ++q)
      for (int i = 0; i < kParts; ++i) {
        vf y = real<B>(sums[q][i], queries[q].positions.total);
        if constexpr (B < 16) y *= splat(queries[q].positions.scale);
        store(queries[q].part + c * kTile + i * W, y);
      }
  }
}

static inline float largest_lane(vf v) {
  float x[W], top;
  store(x, v);
  top = x[0];
  for (int i = 1; i < W; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// Scores of positions [first, stop) to exp(score - top); what the query does not see to 0.
static void soften(const Query& query, int64_t start, int64_t first, int64_t stop, float* top, float* sum) {
  float* s = query.scores - start;
  for (int64_t t = first; t < query.begin && t < stop; ++t) s[t] = kNothing;
  for (int64_t t = query.end > first ? query.end : first; t < stop; ++t) s[t] = kNothing;
  vf most = splat(kNothing);
  for (int64_t t = first; t < stop; t += W) most = vmax(most, load(s + t));
  *top = largest_lane(most);
  Lanes total = zero_lanes();
  for (int64_t t = first; t < stop; t += kTile)
    for (int i = 0; i < kParts; ++i) {
      const vf x = load(s + t + i * W);
      const vf e = x < splat(-1e29f) ? vf{} : vexp(x - splat(*top));
      store(s + t + i * W, e);
      total.part[i] += e;
    }
  *sum = fold(total);
}

// x [count], a multiple of 16, to int16 in out.data, which may be x: it is written behind the reads.
static void to_factors(const float* x, int64_t count, Factors* out) {
  vf most = {};
  for (int64_t c = 0; c < count; c += W) most = vmax(most, vabs(load(x + c)));
  const float top = largest_lane(most);
  const bool nothing = top < 1e-30f;  // kFactorMax / top must stay finite
  const vf inverse = splat(nothing ? 0.0f : (float)kFactorMax / top);
  vi sum = {};
  for (int64_t c = 0; c < count; c += W) {
    const vi n = to_nearest(load(x + c) * inverse);
    const vh narrow = __builtin_convertvector(n, vh);
    std::memcpy((int16_t*)out->data + c, &narrow, sizeof narrow);
    sum += n;
  }
  out->total = 0;
  for (int i = 0; i < W; ++i) out->total += sum[i];
  out->scale = nothing ? 0.0f : top / (float)kFactorMax;
}

// Orthonormal Hadamard blocks of the largest power of two that divides `dim`; its own inverse.
static void rotate_head(float* x, int dim) {
  const int block = dim & -dim;
  const vf norm = splat(1.0f / std::sqrt((float)block));
  for (int c = 0; c < dim; c += block) hadamard(x + c, block);
  for (int c = 0; c < dim; c += W) store(x + c, load(x + c) * norm);
}

// A state is [head_dim] of weighted values, then the largest score and the sum of the weights.
static void merge_state(float* into, const float* from, int dim) {
  if (from[dim + 1] == 0.0f) return;
  if (into[dim + 1] == 0.0f) {
    std::memcpy(into, from, state_floats(dim) * sizeof(float));
    return;
  }
  const float top = into[dim] > from[dim] ? into[dim] : from[dim];
  const vf keep = vexp(splat(into[dim] - top)), add = vexp(splat(from[dim] - top));
  for (int c = 0; c < dim; c += W) store(into + c, load(into + c) * keep + load(from + c) * add);
  into[dim] = top;
  into[dim + 1] = into[dim + 1] * keep[0] + from[dim + 1] * add[0];
}

static void finish_state(const CacheView& cache, const float* state, float* out) {
  const vf inverse = splat(1.0f / state[cache.head_dim + 1]);
  for (int c = 0; c < cache.head_dim; c += W) store(out + c, load(state + c) * inverse);
  if (cache.value_bits < 16) rotate_head(out, cache.head_dim);
}

// The factors of a query; 1 / sqrt(head_dim) is in them or in their scale.
static void load_query(const CacheView& cache, const float* q, Query* query) {
  const int dim = cache.head_dim;
  const float norm = 1.0f / std::sqrt((float)dim);
  float* x = (float*)query->channels.data;
  std::memcpy(x, q, dim * sizeof(float));
  if (cache.key_bits == 16) {
    for (int c = 0; c < dim; c += W) store(x + c, load(x + c) * splat(norm));
    return;
  }
  rotate_head(x, dim);
  to_factors(x, dim, &query->channels);
  query->channels.scale *= norm;
}

// Calls f(first query, integral_constant<how many>) for groups of up to kAtOnce.
template <typename F> static inline void in_groups(int count, const F& f) {
  int at = 0;
  for (; at + kAtOnce <= count; at += kAtOnce) f(at, std::integral_constant<int, kAtOnce>());
  if (count - at == 3) f(at, std::integral_constant<int, 3>());
  if (count - at == 2) f(at, std::integral_constant<int, 2>());
  if (count - at == 1) f(at, std::integral_constant<int, 1>());
}

// Weights to the factors of the values: with the scales of the values in them.
static void weights_to_factors(const uint16_t* scales, int64_t start, int64_t first, int64_t stop, Query* query) {
  for (int64_t t = first; t < stop; t += kTile) {
    const Lanes scale = load_half(scales + t);
    float* s = query->scores + (t - start);
    for (int i = 0; i < kParts; ++i) store(s + i * W, load(s + i * W) * scale.part[i]);
  }
  // Factor t goes to place t, behind the weight at place t: 2 bytes against 4.
  Factors whole = query->positions;
  whole.data = (int16_t*)query->positions.data + (first - start);
  to_factors(query->scores + (first - start), stop - first, &whole);
  query->positions.scale = whole.scale;
  query->positions.total = whole.total;
}

template <int B>
static void score(const HeadTiles& h, const Query* queries, int count, int64_t start, int64_t first, int64_t stop) {
  in_groups(count, [&](int q, auto n) { score_group<B, decltype(n)::value>(h, queries + q, start, first, stop); });
}

template <int B>
static void gather(const HeadTiles& h, Query* queries, int count, int64_t start, int64_t first, int64_t stop) {
  for (int q = 0; B < 16 && q < count; ++q) weights_to_factors(h.value_scale, start, first, stop, queries + q);
  in_groups(count, [&](int q, auto n) { gather_group<B, decltype(n)::value>(h, queries + q, start, first, stop); });
}

// Positions [first, stop) of one chunk, folded into the states of the queries.
static void attend_chunk(const CacheView& cache, const HeadTiles& h, Query* queries, int count, int64_t start,
                         int64_t first, int64_t stop, float* states) {
  const int dim = cache.head_dim;
  (cache.key_bits == 16 ? score<16> : cache.key_bits == 8 ? score<8> : score<4>)(h, queries, count, start, first, stop);
  for (int q = 0; q < count; ++q)
    soften(queries[q], start, first, stop, queries[q].part + dim, queries[q].part + dim + 1);
  (cache.value_bits == 16 ? gather<16> : cache.value_bits == 8 ? gather<8> : gather<4>)(h, queries, count, start, first, stop);
  for (int q = 0; q < count; ++q) merge_state(states + q * state_floats(dim), queries[q].part, dim);
}

static HeadTiles head_tiles(const CacheView& cache, int slot, int kv_head) {
  const int64_t head = (int64_t)slot * cache.kv_heads + kv_head;
  const int64_t numbers = head * cache.context * cache.head_dim, scale = head * cache.context;
  return {(uint8_t*)cache.keys + numbers * cache.key_bits / 8, (uint8_t*)cache.values + numbers * cache.value_bits / 8,
          cache.key_bits < 16 ? cache.key_scale + scale : nullptr,
          cache.value_bits < 16 ? cache.value_scale + scale : nullptr,
          cache.head_dim / kTile, cache.context / kTile};
}

// Queries [row][head of the group], each with its arrays, in `scratch`.
static Query* load_queries(const CacheView& cache, const AttendRows& rows, int kv_head, void* scratch) {
  const int dim = cache.head_dim, share = rows.heads / cache.kv_heads;
  const int64_t count = rows.count * share;
  Query* queries = (Query*)scratch;
  float* memory = (float*)(queries + count);
  for (int64_t i = 0; i < count; ++i) {
    Query& query = queries[i];
    query.end = (int64_t)rows.position[i / share] + 1;
    query.begin = rows.window > 0 && query.end > rows.window ? query.end - rows.window : 0;
    query.channels = {memory, 1.0f, 0};
    query.scores = memory + dim;
    query.positions = {query.scores, 1.0f, 0};
    query.part = query.scores + kChunk;
    memory = query.part + state_floats(dim);
    load_query(cache, rows.q + ((i / share) * rows.heads + kv_head * share + i % share) * dim, &query);
  }
  return queries;
}

static int64_t attend_scratch_bytes(int64_t queries, int dim) {
  return queries * (int64_t)(sizeof(Query) + (dim + kChunk + state_floats(dim)) * sizeof(float));
}

// Chunks [begin, end) of one key head; states [row][head of the group] are written.
static void attend(const CacheView& cache, const AttendRows& rows, int kv_head, int64_t begin,
                   int64_t end, float* states, void* scratch) {
  const int dim = cache.head_dim, count = (int)rows.count * (rows.heads / cache.kv_heads);
  const HeadTiles tiles = head_tiles(cache, rows.slot, kv_head);
  Query* queries = load_queries(cache, rows, kv_head, scratch);
  int64_t first = cache.context, last = 0;
  for (int q = 0; q < count; ++q) {
    first = queries[q].begin < first ? queries[q].begin : first;
    last = queries[q].end > last ? queries[q].end : last;
    states[q * state_floats(dim) + dim + 1] = 0.0f;
  }
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t start = chunk * kChunk, after = start + kChunk;
    const int64_t from = (first > start ? first : start) / kTile * kTile;
    const int64_t stop = ((last < after ? last : after) + kTile - 1) / kTile * kTile;
    attend_chunk(cache, tiles, queries, count, start, from, stop, states);
  }
}

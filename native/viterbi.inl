// A Viterbi search for the 16 streams of a tile at once: 16 lanes of 16-bit costs, one vector for
// each of the 2^(L-1) states. Costs are integers, so every tier finds the same paths.

typedef int16_t vs __attribute__((vector_size(2 * kStreams)));
typedef uint16_t vus __attribute__((vector_size(2 * kStreams)));
typedef int32_t wide __attribute__((vector_size(4 * kStreams)));
typedef uint8_t vbytes __attribute__((vector_size(kStreams)));

constexpr int kFloor = -32768;      // cost of the best start: the whole 16-bit range is used
constexpr int kStepMax = 4096;      // largest cost of a step: errors are 14 bits, squares lose 16
constexpr int kErrorMax = 16383;
constexpr float kReach = 3.0f;      // targets beyond this multiple of the largest level are cut

struct ViterbiPlane {               // one plane, prepared
  int window;
  float scale;                      // target units to cost units
  vs level[kLevels];                // in cost units, 16 times each
  const uint16_t* offset;           // [1 << window] of each window's level among the costs
};

static inline vs spread16(int x) { return (vs){} + (int16_t)x; }
static inline vs least(vs a, vs b) { return a < b ? a : b; }

static ViterbiPlane viterbi_plane(const PlaneTables& tables, int plane, float unit) {
  ViterbiPlane p;
  p.window = tables.window;
  p.offset = tables.offset;
  const int8_t* levels = (const int8_t*)tables.levels[plane];
  int top = 1;
  for (int i = 0; i < kLevels; ++i) top = top > std::abs(levels[i]) ? top : std::abs(levels[i]);
  const float fine = (float)kErrorMax / ((1.0f + kReach) * (float)top);
  p.scale = fine / unit;
  for (int i = 0; i < kLevels; ++i) p.level[i] = spread16((int)std::lrintf(fine * (float)levels[i]));
  return p;
}

static inline vs square_high(vs e) {  // e * e >> 16
#if defined(__AVX2__)
  return (vs)_mm256_mulhi_epi16((__m256i)e, (__m256i)e);
#else
  const wide w = __builtin_convertvector(e, wide);
  return __builtin_convertvector(w * w >> 16, vs);
#endif
}

// Costs of the 16 levels for the 16 targets x.
static inline void step_costs(const ViterbiPlane& p, const float* x, vs* costs) {
  const vf cut = splat(kErrorMax / (1.0f + kReach) * kReach), scale = splat(p.scale);
  const vf magic = splat(12582912.0f);  // rounds to nearest even, and leaves the integer in the low bits
  int32_t rounded[kStreams];
  for (int i = 0; i < kStreams; i += W) {
    const vi bits = as_int(vmax(vmin(load(x + i) * scale, cut), -cut) + magic);
    std::memcpy(rounded + i, &bits, sizeof bits);
  }
  wide target;
  std::memcpy(&target, rounded, sizeof target);
  const vs t = __builtin_convertvector(target, vs);
  for (int i = 0; i < kLevels; ++i) costs[i] = square_high(t - p.level[i]);
}

static int choice_vectors(int window) {  // of half the states, 16 to a vector
  return window > 6 ? 1 << (window - 6) : 1;
}

// One step: the cost of every state after it, and for every state and stream a bit: the oldest bit
// of its best window. Windows 2n and 2n + 1 lead to state n, and from there a newest bit is added.
static void viterbi_step(const ViterbiPlane& p, const vs* costs, const vs* from, vs* to, vs* choice) {
  const int half = 1 << (p.window - 2), vectors = choice_vectors(p.window);
  const auto cost = [&](int window) {
    vs v;
    std::memcpy(&v, (const char*)costs + p.offset[window], sizeof v);
    return v;
  };
  for (int n0 = 0; n0 < half; n0 += 16) {
    vs low = {}, high = {};
    for (int n = n0; n < n0 + 16 && n < half; ++n) {
      const vs bit = spread16((int16_t)(1u << (n - n0)));
      const vs zero = from[2 * n], one = from[2 * n + 1];
      const vs a = zero + cost(2 * n), b = one + cost(2 * n + 1);
      const vs c = zero + cost(2 * n + 2 * half), d = one + cost(2 * n + 1 + 2 * half);
      low |= (b < a) & bit;
      high |= (d < c) & bit;
      to[n] = least(a, b);
      to[n + half] = least(c, d);
    }
    choice[n0 / 16] = low;
    choice[vectors + n0 / 16] = high;
  }
}

// Back from the states `now`: level indices and newest bits of the first `kept` steps, and the states
// after them. A state's bit lies in vector `now >> shift` of a step's choices.
static vs trace_back(const ViterbiPlane& p, int64_t steps, int64_t kept, vs now, const vs* choices,
                     uint8_t* level, uint8_t* newest) {
  const int vectors = 2 * choice_vectors(p.window), shift = p.window - 2 < 4 ? p.window - 2 : 4;
  const vs states = spread16((1 << (p.window - 1)) - 1), place = spread16((1 << shift) - 1);
  vs after = now;
  for (int64_t t = steps; t-- > 0;) {
    if (t == kept - 1) after = now;
    const vs* choice = choices + t * vectors;
    const vs at = now >> shift;
    vs bits = choice[0];
    for (int v = 1; v < vectors; ++v) bits = at == spread16(v) ? choice[v] : bits;
    const vs window = now + now + (vs)((vus)bits >> (vus)(now & place) & 1);
    now = window & states;
    const vbytes bit = __builtin_convertvector((vus)window >> (p.window - 1), vbytes);
    std::memcpy(newest + t * kStreams, &bit, sizeof bit);
    for (int i = 0; i < kStreams; ++i) level[t * kStreams + i] = (uint8_t)(p.offset[window[i]] / sizeof(vs));
  }
  return after;
}

// Best paths through x[0..steps)[16] from `state` [16]: level indices and newest bits of the first
// `kept` steps, and in `state` the one after them. choices: 2 * choice_vectors for each step.
static void viterbi_paths(const ViterbiPlane& p, const float* x, int64_t steps, int64_t kept, int* state,
                          vs* choices, uint8_t* level, uint8_t* newest) {
  const int states = 1 << (p.window - 1), vectors = choice_vectors(p.window);
  alignas(64) vs buffer[2][1 << (kWindowMax - 1)];
  vs *from = buffer[0], *to = buffer[1], costs[kLevels];
  // A path from elsewhere must lose to any from `state` by the time they can meet.
  const vs start = spread16(kFloor), elsewhere = spread16(kFloor + p.window * kStepMax);
  vs at;
  for (int i = 0; i < kStreams; ++i) at[i] = (int16_t)state[i];
  for (int s = 0; s < states; ++s) from[s] = at == spread16(s) ? start : elsewhere;
  const int settle = 65536 / kStepMax - p.window;  // steps until costs could leave the 16 bits
  for (int64_t t = 0; t < steps; ++t) {
    step_costs(p, x + t * kStreams, costs);
    viterbi_step(p, costs, from, to, choices + 2 * t * vectors);
    vs* swap = from;
    from = to;
    to = swap;
    if (t % settle == settle - 1) {
      vs low = from[0];
      for (int s = 1; s < states; ++s) low = least(low, from[s]);
      const vus drop = (vus)low - (vus)spread16(kFloor);  // unsigned: it may leave the 16 bits
      // Paths that cannot be are cut back to where they still lose, so that 16 bits hold them.
      for (int s = 0; s < states; ++s) from[s] = least((vs)((vus)from[s] - drop), elsewhere);
    }
  }
  vs best = from[0];
  at = vs{};
  for (int s = 1; s < states; ++s) {
    at = from[s] < best ? spread16(s) : at;
    best = least(best, from[s]);
  }
  const vs after = trace_back(p, steps, kept, at, choices, level, newest);
  for (int i = 0; i < kStreams; ++i) state[i] = after[i];
}

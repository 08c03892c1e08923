// Bytes of a plane to weights with VPERMB: it reads the low 6 bits of an index, so one register
// of stream bits holds three nibbles, at bits 0, 1 and 2, each with tables made for its place.
// Three shifts then serve eight steps.

// Blocks of one token: with more planes there are no registers left for the sums of a second.
static int blocks_at_once(int planes) { return planes == 1 ? 2 : 1; }

struct Indices {                    // 0 .. 63
  alignas(64) uint8_t at[64];
  constexpr Indices() : at() { for (int i = 0; i < 64; ++i) at[i] = (uint8_t)i; }
};
alignas(64) constexpr Indices kIndices;

struct Tables {
  vb hash[6];                       // from a nibble's place to the place of the one it is joined with
  vb deep[3];                       // the second hash: between equal places
  vb levels[kPlanesPerGroup][3];

  explicit Tables(const TileView& v) {
    const PlaneTables& t = *v.tables;
    const vb first = load_bytes(t.hash[0]), second = load_bytes(t.hash[1]);
    hash[0] = placed<1, 0>(first), hash[1] = placed<2, 1>(first), hash[2] = placed<0, 2>(first);
    hash[3] = placed<0, 1>(first), hash[4] = placed<1, 2>(first), hash[5] = placed<2, 0>(first);
    deep[0] = second, deep[1] = placed<1, 1>(second), deep[2] = placed<2, 2>(second);
    for (int k = 0; k < v.count; ++k) {
      const vb own = load_bytes(kBiased ? t.biased[v.first + k] : t.levels[v.first + k]);
      levels[k][0] = own, levels[k][1] = placed<1, 0>(own), levels[k][2] = placed<2, 0>(own);
    }
  }

  // Of a table of 16 that repeats: the entry of the nibble at bit `From` of an index, at bit `To`.
  template <int From, int To>
  static vb placed(vb table) {
    const vb entry = lookup(table, shift_right<From>(load_bytes(kIndices.at)));
    return To ? _mm512_slli_epi16(entry, To) : entry;
  }
};

// What a byte leaves for the next one of its stream: itself, its bits from the fourth on, and its
// first five after the last three of the byte before (only where the window is longer than 8 bits).
template <bool kDeep>
struct Past {
  vb whole, upper, lower;

  void load(vb before2, vb before) {
    whole = before;
    upper = shift_right<3>(before);
    if (kDeep) lower = after_last_three(shift_right<5>(before2), before);
  }

  static vb after_last_three(vb three, vb byte) {
    return _mm512_ternarylogic_epi64(_mm512_set1_epi8(7), three, _mm512_slli_epi16(byte, 3), 0xCA);
  }
};

// The bits of eight steps of a plane: of the byte `now`, and of the one before.
template <bool kDeep>
struct Steps {
  vb now, upper, lower;
  Past<kDeep> past;

  Steps() = default;
  Steps(const Past<kDeep>& before, vb byte) : now(byte), past(before) {
    upper = shift_right<3>(now);
    lower = Past<kDeep>::after_last_three(shift_right<2>(past.upper), now);
  }

  Past<kDeep> next() const {
    Past<kDeep> out;
    out.whole = now, out.upper = upper;
    if (kDeep) out.lower = lower;
    return out;
  }

  // The value of step I: the newest nibble's register and place, then those of the nibbles four
  // and eight steps before it.
  template <int I>
  vb value(const Tables& t, int plane) const {
    if constexpr (I == 0) return joined<0>(t, plane, lower, past.whole, 0, past.lower);
    if constexpr (I == 1) return joined<1>(t, plane, lower, past.whole, 1, past.lower);
    if constexpr (I == 2) return joined<2>(t, plane, lower, past.upper, 2, past.lower);
    if constexpr (I == 3) return joined<0>(t, plane, now, past.upper, 0, past.whole);
    if constexpr (I == 4) return joined<1>(t, plane, now, lower, 3, past.whole);
    if constexpr (I == 5) return joined<2>(t, plane, now, lower, 4, past.whole);
    if constexpr (I == 6) return joined<0>(t, plane, upper, lower, 5, past.upper);
    if constexpr (I == 7) return joined<1>(t, plane, upper, now, 3, past.upper);
  }

 private:
  template <int Place>
  static vb joined(const Tables& t, int plane, vb newest, vb before, int hash, vb far) {
    vb index = xor_bytes(newest, lookup(t.hash[hash], before));
    if (kDeep) index = xor_bytes(index, lookup(t.deep[Place], far));
    return lookup(t.levels[plane][Place], index);
  }
};

template <int I, int K, bool kDeep, typename Use>
static inline __attribute__((always_inline)) void use_steps(const Steps<kDeep>* steps, const Tables& t, const Use& use) {
  vb w = steps[0].template value<I>(t, 0);
  for (int k = 1; k < K; ++k) w = add_bytes(w, steps[k].template value<I>(t, k));
  use(I, w);
  if constexpr (I + 1 < kSteps) use_steps<I + 1, K>(steps, t, use);
}

// One register of a strip at byte `at`: use(row group, its register of weights) for eight row groups.
template <int K, bool kDeep, typename Use>
static inline __attribute__((always_inline)) void decode_register(Past<kDeep>* past, const uint8_t* const* now,
                                                                 int64_t at, const Tables& t, const Use& use) {
  Steps<kDeep> steps[K];
  for (int k = 0; k < K; ++k) steps[k] = Steps<kDeep>(past[k], load_bytes(now[k] + at));
  use_steps<0, K>(steps, t, use);
  for (int k = 0; k < K; ++k) past[k] = steps[k].next();
}

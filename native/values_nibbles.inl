// Bytes of a plane to weights, where a lookup takes a nibble alone: every nibble is shifted down.

static int blocks_at_once(int) { return 2; }  // a block's nibbles serve the next one

struct Tables {
  vb hash[2], levels[kPlanesPerGroup];

  explicit Tables(const TileView& v) {
    for (int i = 0; i < 2; ++i) hash[i] = load_bytes(v.tables->hash[i]);
    for (int k = 0; k < v.count; ++k)
      levels[k] = load_bytes(kBiased ? v.tables->biased[v.first + k] : v.tables->levels[v.first + k]);
  }
};

// Nibbles that end at the steps before a byte: those of its four last steps, and before them, if the
// window is longer than 8 bits (kDeep), those of the four steps before.
template <bool kDeep>
struct Past {
  vb w[kDeep ? 8 : 4];

  void load(vb before2, vb before) {
    vb* last = w;
    if (kDeep) {
      const vb joint = join(nibble<4>(before2), nibble<0>(before));
      w[0] = nibble<1>(joint), w[1] = nibble<2>(joint), w[2] = nibble<3>(joint), w[3] = nibble<0>(before);
      last += 4;
    }
    last[0] = nibble<1>(before), last[1] = nibble<2>(before), last[2] = nibble<3>(before), last[3] = nibble<4>(before);
  }
};

// Values of the eight steps in the bytes `now`, whose nibbles then are the past of the byte that
// follows in the stream. kAdd adds them to what is there.
template <bool kDeep, bool kAdd>
static inline __attribute__((always_inline)) void plane_values(Past<kDeep>& past, vb now, const Tables& tables,
                                                              int plane, vb* out) {
  const vb* last = past.w + (kDeep ? 4 : 0);
  vb w[kSteps];
  w[3] = nibble<0>(now);
  const vb joint = join(last[3], w[3]);
  w[0] = nibble<1>(joint), w[1] = nibble<2>(joint), w[2] = nibble<3>(joint);
  w[4] = nibble<1>(now), w[5] = nibble<2>(now), w[6] = nibble<3>(now), w[7] = nibble<4>(now);
  for (int i = 0; i < kSteps; ++i) {
    vb index = xor_bytes(w[i], lookup(tables.hash[0], i < 4 ? last[i] : w[i - 4]));
    if (kDeep) index = xor_bytes(index, lookup(tables.hash[1], past.w[i]));
    const vb value = lookup(tables.levels[plane], index);
    out[i] = kAdd ? add_bytes(out[i], value) : value;
  }
  for (int i = 0; i < (kDeep ? 8 : 4); ++i) past.w[i] = w[i + (kDeep ? 0 : 4)];
}

// One register of a strip at byte `at`: use(row group, its register of weights) for eight row groups.
template <int K, bool kDeep, typename Use>
static inline __attribute__((always_inline)) void decode_register(Past<kDeep>* past, const uint8_t* const* now,
                                                                 int64_t at, const Tables& t, const Use& use) {
  vb w[kSteps];
  plane_values<kDeep, false>(past[0], load_bytes(now[0] + at), t, 0, w);
  if constexpr (K > 1) plane_values<kDeep, true>(past[1], load_bytes(now[1] + at), t, 1, w);
  if constexpr (K > 2) plane_values<kDeep, true>(past[2], load_bytes(now[2] + at), t, 2, w);
  if constexpr (K > 3) plane_values<kDeep, true>(past[3], load_bytes(now[3] + at), t, 3, w);
  for (int g = 0; g < kSteps; ++g) use(g, w[g]);
}

// Encoding: a Viterbi search over the 2^(L-1) states of one plane, plane after plane on what is left
// over, block after block of columns with the error fed back under the calibration Hessian.

constexpr int64_t kSuper = 64;      // columns whose incoming feedback is one matrix product
constexpr int64_t kAhead = 16;      // weights of the next block a path also looks at, then forgets
constexpr float kForbidden = 1e30f;

struct ViterbiTables {              // one plane, entries split by their oldest bit
  alignas(64) float even[1 << (kWindowMax - 1)];
  alignas(64) float odd[1 << (kWindowMax - 1)];
};

// Smallest vector that divides the number of state pairs.
template <int L>
static void viterbi_step(float x, const ViterbiTables& table, float* even, float* odd, uint8_t* choice) {
  constexpr int kStates = 1 << (L - 1), kHalf = kStates / 2;
  alignas(64) float next[kStates];
  if constexpr (kHalf >= W) {
    const vf target = splat(x);
    for (int s = 0; s < kStates; s += W) {
      vf a = target - load(table.even + s), b = target - load(table.odd + s);
      vf zero = load(even + s % kHalf) + a * a, one = load(odd + s % kHalf) + b * b;
      vi better = one < zero;
      store(next + s, better ? one : zero);
      const uint32_t bits = mask_bits(better);
      if constexpr (W == 16) { choice[s / 8] = bits & 255; choice[s / 8 + 1] = bits >> 8; }
      else if constexpr (W == 8) choice[s / 8] = (uint8_t)bits;
      else choice[s / 8] = s % 8 ? choice[s / 8] | (uint8_t)(bits << 4) : (uint8_t)bits;
    }
  } else {
    std::memset(choice, 0, (kStates + 7) / 8);
    for (int s = 0; s < kStates; ++s) {
      float a = x - table.even[s], b = x - table.odd[s];
      float zero = even[s % kHalf] + a * a, one = odd[s % kHalf] + b * b;
      next[s] = one < zero ? one : zero;
      choice[s / 8] |= (uint8_t)((one < zero) << (s % 8));
    }
  }
  for (int i = 0; i < kHalf; ++i) {
    even[i] = next[2 * i];
    odd[i] = next[2 * i + 1];
  }
}

// Best path through x[0..steps) from `*state` (-1: any): the table index of every step, the state
// before the first, and in `*state` the one after `kept` steps.
template <int L>
static void viterbi_path(const float* x, int64_t steps, int64_t kept, const ViterbiTables& table,
                         int* first, int* state, uint8_t* choices, uint16_t* index) {
  constexpr int kStates = 1 << (L - 1), kHalf = kStates / 2, kBytes = (kStates + 7) / 8;
  alignas(64) float even[kHalf], odd[kHalf];
  for (int i = 0; i < kHalf; ++i) {
    even[i] = *state < 0 || *state == 2 * i ? 0.0f : kForbidden;
    odd[i] = *state < 0 || *state == 2 * i + 1 ? 0.0f : kForbidden;
  }
  for (int64_t t = 0; t < steps; ++t) {
    viterbi_step<L>(x[t], table, even, odd, choices + t * kBytes);
    if (t % 64 == 63) {  // keep costs small so that floats stay exact enough
      float low = even[0];
      for (int i = 0; i < kHalf; ++i) {
        low = even[i] < low ? even[i] : low;
        low = odd[i] < low ? odd[i] : low;
      }
      for (int i = 0; i < kHalf; ++i) even[i] -= low, odd[i] -= low;
    }
  }
  int s = 0;
  float best = even[0];
  for (int i = 0; i < kStates; ++i) {
    float cost = i % 2 ? odd[i / 2] : even[i / 2];
    if (cost < best) best = cost, s = i;
  }
  for (int64_t t = steps; t-- > 0;) {
    const int oldest = choices[t * kBytes + s / 8] >> (s % 8) & 1;
    index[t] = (uint16_t)(2 * s + oldest);
    s = index[t] & (kStates - 1);
  }
  *first = s;
  *state = index[kept - 1] >> 1;
}

static void viterbi(int window, const float* x, int64_t steps, int64_t kept, const ViterbiTables& table,
                    int* first, int* state, uint8_t* choices, uint16_t* index) {
  switch (window) {
    case 4: return viterbi_path<4>(x, steps, kept, table, first, state, choices, index);
    case 5: return viterbi_path<5>(x, steps, kept, table, first, state, choices, index);
    case 6: return viterbi_path<6>(x, steps, kept, table, first, state, choices, index);
    case 7: return viterbi_path<7>(x, steps, kept, table, first, state, choices, index);
    case 8: return viterbi_path<8>(x, steps, kept, table, first, state, choices, index);
    case 9: return viterbi_path<9>(x, steps, kept, table, first, state, choices, index);
    default: return viterbi_path<10>(x, steps, kept, table, first, state, choices, index);
  }
}

struct EncodeScratch {
  float *target, *error, *fed;      // column-major [64][rows] twice, then [rows][cols]
  float* sequence;                  // one block in stream order
  int32_t* value;                   // its decoded integers
  uint16_t* index;
  uint8_t* choices;
  ViterbiTables* tables;
};

static int64_t encode_parts(const FeedbackJob& job, char* base, EncodeScratch* out) {
  const int64_t rows = job.tile_rows, steps = rows * kSuper + kAhead;
  int64_t used = 0;
  auto take = [&](int64_t bytes) {
    char* p = base ? base + used : nullptr;
    used += (bytes + 63) / 64 * 64;
    return p;
  };
  EncodeScratch s;
  s.target = (float*)take(rows * kSuper * 4);
  s.error = (float*)take(rows * kSuper * 4);
  s.fed = (float*)take(job.feedback ? rows * job.cols * 4 : 64);
  s.sequence = (float*)take(steps * 4);
  s.value = (int32_t*)take(steps * 4);
  s.index = (uint16_t*)take(steps * 2);
  s.choices = (uint8_t*)take(steps * ((1 << (job.tables->window - 1)) / 8 + 1));
  s.tables = (ViterbiTables*)take(sizeof(ViterbiTables) * kPlanesMax);
  if (out) *out = s;
  return used;
}

static int64_t encode_scratch_bytes(const FeedbackJob& job) { return encode_parts(job, nullptr, nullptr); }

static void split_tables(const FeedbackJob& job, ViterbiTables* tables) {
  for (int k = 0; k < job.planes; ++k)
    for (int i = 0; i < 1 << (job.tables->window - 1); ++i) {
      const float unit = k < kPlanesPerGroup ? 1.0f : 1.0f / kGroupRatio;
      tables[k].even[i] = unit * job.tables->raw[k][2 * i];
      tables[k].odd[i] = unit * job.tables->raw[k][2 * i + 1];
    }
}

struct Tile {
  int64_t row, rows, padded, word;  // rows really there; rows up to whole groups; first stream word
};

// Target of columns [begin, begin + width): weights plus what earlier columns left over.
static void load_target(const FeedbackJob& job, const Tile& tile, int64_t begin, int64_t width,
                        EncodeScratch& s) {
  alignas(64) float sums[8][kSuper];
  for (int64_t r0 = 0; r0 < tile.padded; r0 += 8) {
    std::memset(sums, 0, sizeof sums);
    if (job.feedback)
      for (int64_t c = 0; c < width; c += 32)
        for (int r = 0; r < 8; r += kOuterRows)
          outer_block<kOuterRows>(s.fed + (r0 + r) * job.cols, job.cols, 1,
                                  job.feedback + (begin + c) / 32 * job.cols * 32, begin,
                                  &sums[r][c], kSuper);
    for (int64_t r = r0; r < r0 + 8; ++r)
      for (int64_t c = 0; c < width; ++c) {
        const float w = r < tile.rows ? job.target[(tile.row + r) * job.cols + begin + c] : 0.0f;
        s.error[c * tile.padded + r] = w;
        s.target[c * tile.padded + r] = w + sums[r - r0][c];
      }
  }
}

static void put_bits(const FeedbackJob& job, int plane, const Tile& tile, int64_t position,
                     int64_t steps, const uint16_t* index) {
  uint8_t* words = job.streams[plane] + 8 * (tile.word + 1 + position / kChunk);
  const int newest = job.tables->window - 1;
  for (int64_t t = 0; t < steps; t += 64, words += 8) {
    uint64_t word = 0;
    for (int i = 0; i < 64; ++i) word |= (uint64_t)(index[t + i] >> newest & 1) << i;
    std::memcpy(words, &word, 8);
  }
}

// All planes of columns [c, c + width) of the superblock [begin, begin + stop). The paths run on into
// the next block's first weights, whose targets still lack this block's feedback, so that the state
// they leave is a good one to go on from.
static void encode_block(const FeedbackJob& job, const Tile& tile, int64_t begin, int64_t c,
                         int64_t width, int64_t stop, int* state, EncodeScratch& s) {
  const int64_t steps = width * tile.padded, ahead = c + width < stop ? kAhead : 0;
  float* x = s.sequence;
  for (int64_t q = c; q < c + width; q += kQuad)
    for (int64_t r = 0; r < tile.padded; ++r)
      for (int j = 0; j < kQuad; ++j) *x++ = s.target[(q + j) * tile.padded + r];
  for (int64_t t = 0; t < ahead; ++t)
    *x++ = s.target[(c + width + t % kQuad) * tile.padded + t / kQuad];
  std::memset(s.value, 0, steps * 4);
  for (int k = 0; k < job.planes; ++k) {
    const bool fresh = state[k] < 0;
    int first;
    viterbi(job.tables->window, s.sequence, steps + ahead, steps, s.tables[k], &first, &state[k],
            s.choices, s.index);
    if (fresh) {
      uint64_t prefix = (uint64_t)first << (65 - job.tables->window);
      std::memcpy(job.streams[k] + 8 * tile.word, &prefix, 8);
    }
    const int8_t* raw = job.tables->raw[k];
    const int weight = job.planes > kPlanesPerGroup && k < kPlanesPerGroup ? kGroupRatio : 1;
    const float unit = k < kPlanesPerGroup ? 1.0f : 1.0f / kGroupRatio;
    for (int64_t t = 0; t < steps + ahead; ++t) s.sequence[t] -= unit * raw[s.index[t]];
    for (int64_t t = 0; t < steps; ++t) s.value[t] += weight * raw[s.index[t]];
    put_bits(job, k, tile, (begin + c) * tile.padded, steps, s.index);
  }
  const float unit = job.planes > kPlanesPerGroup ? 1.0f / kGroupRatio : 1.0f;
  const int32_t* value = s.value;
  for (int64_t q = c; q < c + width; q += kQuad)
    for (int64_t r = 0; r < tile.padded; ++r)
      for (int j = 0; j < kQuad; ++j, ++value) {
        if (r < tile.rows) job.decoded[(tile.row + r) * job.cols + begin + q + j] = (int16_t)*value;
        s.error[(q + j) * tile.padded + r] -= unit * *value;
      }
}

// Error of the block just coded, pushed on to the later columns of its superblock.
static void push_error(const FeedbackJob& job, const Tile& tile, int64_t begin, int64_t c,
                       int64_t width, int64_t stop, EncodeScratch& s) {
  for (int64_t later = c + width; later < stop; ++later)
    for (int64_t j = c; j < c + width; ++j) {
      const int64_t column = begin + later;
      const float f = job.feedback[(column / 32 * job.cols + begin + j) * 32 + column % 32];
      float* to = s.target + later * tile.padded;
      const float* from = s.error + j * tile.padded;
      for (int64_t r = 0; r < tile.padded; ++r) to[r] += f * from[r];
    }
}

static void encode_tile(const FeedbackJob& job, int64_t index, float* scratch) {
  const Geometry g{job.rows, job.cols, job.tile_rows};
  Tile tile;
  tile.row = index * job.tile_rows;
  tile.padded = g.groups_in_tile(index) * kRowGroup;
  tile.rows = job.rows - tile.row < tile.padded ? job.rows - tile.row : tile.padded;
  tile.word = g.tile_word(index);
  EncodeScratch s;
  encode_parts(job, (char*)scratch, &s);
  split_tables(job, s.tables);
  int state[kPlanesMax];
  for (int& start : state) start = -1;
  for (int64_t begin = 0; begin < job.cols; begin += kSuper) {
    const int64_t width = job.cols - begin < kSuper ? job.cols - begin : kSuper;
    load_target(job, tile, begin, width, s);
    for (int64_t c = 0; c < width; c += job.block) {
      const int64_t block = width - c < job.block ? width - c : job.block;
      encode_block(job, tile, begin, c, block, width, state, s);
      if (job.feedback) push_error(job, tile, begin, c, block, width, s);
    }
    if (job.feedback)
      for (int64_t c = 0; c < width; ++c)
        for (int64_t r = 0; r < tile.padded; ++r)
          s.fed[r * job.cols + begin + c] = s.error[c * tile.padded + r];
  }
}

// Encoding: plane after plane on what is left over, block after block of columns with the error fed
// back under the calibration Hessian.

constexpr int64_t kSuper = 64;      // columns whose incoming feedback is one matrix product
constexpr int64_t kPanel = 32;      // columns of a feedback panel
constexpr int64_t kTarget = kSuper + kPanel;
constexpr int64_t kAhead = 64;      // steps of the next block a path also looks at, then forgets

struct EncodeScratch {
  float *target, *error, *fed;      // column-major [64 and a quad][rows] twice, then [rows][cols]
  float* next;                      // [rows][32]: sums of the panel after the superblock
  float* sequence;                  // [step][16]: one block in stream order
  int32_t* value;                   // its decoded integers
  uint8_t *level, *newest;
  vs* choices;
  ViterbiPlane* planes;
};

static int64_t encode_parts(const FeedbackJob& job, char* base, EncodeScratch* out) {
  const int64_t rows = job.tile_rows, steps = rows / kRowGroup * (kSuper / kQuad) + kAhead;
  int64_t used = 0;
  auto take = [&](int64_t bytes) {
    char* p = base ? base + used : nullptr;
    used += (bytes + 63) / 64 * 64;
    return p;
  };
  EncodeScratch s;
  s.target = (float*)take(rows * (kSuper + kQuad) * 4);
  s.error = (float*)take(rows * (kSuper + kQuad) * 4);
  s.next = (float*)take(rows * kPanel * 4);
  s.fed = (float*)take(job.feedback ? rows * job.cols * 4 : 64);
  s.sequence = (float*)take(steps * kStreams * 4);
  s.value = (int32_t*)take(steps * kStreams * 4);
  s.level = (uint8_t*)take(steps * kStreams);
  s.newest = (uint8_t*)take(steps * kStreams);
  s.choices = (vs*)take(steps * 2 * choice_vectors(job.tables->window) * sizeof(vs));
  s.planes = (ViterbiPlane*)take(sizeof(ViterbiPlane) * kPlanesMax);
  if (out) *out = s;
  return used;
}

static int64_t encode_scratch_bytes(const FeedbackJob& job) { return encode_parts(job, nullptr, nullptr); }

// What 1 is worth, in units of the first plane group: of a plane's levels, of whole integer weights.
static float plane_unit(int plane) { return plane < kPlanesPerGroup ? 1.0f : 1.0f / kGroupRatio; }

struct Tile {
  int64_t row, rows, padded, block;  // rows really there; rows up to whole blocks; first block
};

// Target of columns [begin, begin + width): weights plus what earlier columns left over; and of the
// quad after them, which lacks only these columns' feedback. The sums of the panel that the quad
// lies in are kept: the next superblock starts from them.
static void load_target(const FeedbackJob& job, const Tile& tile, int64_t begin, int64_t width,
                        EncodeScratch& s) {
  alignas(64) float sums[8][kTarget];
  const int64_t ahead = begin + width < job.cols ? kPanel : 0, loaded = width + (ahead ? kQuad : 0);
  for (int64_t r0 = 0; r0 < tile.padded; r0 += 8) {
    std::memset(sums, 0, sizeof sums);
    if (job.feedback && begin)
      for (int r = 0; r < 8; ++r) std::memcpy(sums[r], s.next + (r0 + r) * kPanel, kPanel * sizeof(float));
    if (job.feedback)
      for (int64_t c = 0; c < width + ahead; c += kPanel)
        for (int r = 0; r < 8; r += kOuterRows) {
          const int64_t from = c || !begin ? 0 : begin - kSuper;
          outer_block<kOuterRows>(s.fed + (r0 + r) * job.cols + from, job.cols, 1,
                                  job.feedback + ((begin + c) / kPanel * job.cols + from) * kPanel, begin - from,
                                  &sums[r][c], kTarget);
        }
    if (ahead)
      for (int r = 0; r < 8; ++r) std::memcpy(s.next + (r0 + r) * kPanel, sums[r] + width, kPanel * sizeof(float));
    for (int64_t r = r0; r < r0 + 8; ++r)
      for (int64_t c = 0; c < loaded; ++c) {
        const float w = r < tile.rows ? job.target[(tile.row + r) * job.cols + begin + c] : 0.0f;
        s.error[c * tile.padded + r] = w;
        s.target[c * tile.padded + r] = w + sums[r - r0][c];
      }
  }
}

// Bytes of the streams from quad `quad` on; newest [steps][16], whole quads.
static void put_bits(const FeedbackJob& job, int plane, const Tile& tile, int64_t quad, int64_t steps,
                     const uint8_t* newest) {
  const Geometry g{job.rows, job.cols, job.tile_rows};
  const int64_t blocks = tile.padded / kBlockRows;
  for (int64_t at = 0; at < steps / kSteps; ++at, newest += kSteps * kStreams) {
    uint8_t* bytes = job.streams[plane] + (tile.block + at % blocks) * g.block_bytes() + (quad + at / blocks) * kStreams;
    for (int i = 0; i < kStreams; ++i) {
      int byte = 0;
      for (int step = 0; step < kSteps; ++step) byte |= newest[step * kStreams + i] << step;
      bytes[i] = (uint8_t)byte;
    }
  }
}

// Targets of `steps` steps from column c on, [step][4 rows][4 columns].
static void load_sequence(const Tile& tile, int64_t c, int64_t steps, const float* target, float* x) {
  const int64_t groups = tile.padded / kRowGroup;
  for (int64_t t = 0; t < steps; ++t, x += kStreams)
    for (int j = 0; j < kQuad; ++j) {
      const float* from = target + (c + t / groups * kQuad + j) * tile.padded + t % groups * kRowGroup;
      for (int r = 0; r < kRowGroup; ++r) x[r * kQuad + j] = from[r];
    }
}

static void store_values(const FeedbackJob& job, const Tile& tile, int64_t begin, int64_t c, int64_t steps,
                         EncodeScratch& s) {
  const float unit = plane_unit(job.planes - 1);
  const int64_t groups = tile.padded / kRowGroup;
  const int32_t* value = s.value;
  for (int64_t t = 0; t < steps; ++t, value += kStreams) {
    const int64_t q = c + t / groups * kQuad, row = t % groups * kRowGroup;
    for (int r = 0; r < kRowGroup; ++r)
      for (int j = 0; j < kQuad; ++j) {
        s.error[(q + j) * tile.padded + row + r] -= unit * (float)value[r * kQuad + j];
        if (row + r < tile.rows && begin + q + j < job.cols)
          job.decoded[(tile.row + row + r) * job.cols + begin + q + j] = (int16_t)value[r * kQuad + j];
      }
  }
}

static float feedback_at(const FeedbackJob& job, int64_t from, int64_t to) {
  return job.feedback[(to / kPanel * job.cols + from) * kPanel + to % kPanel];
}

// Adds to the targets of the next quad's first steps what the block's errors there will feed back.
static void feed_ahead(const FeedbackJob& job, const Tile& tile, int64_t begin, int64_t c, int64_t width,
                       int64_t ahead, EncodeScratch& s) {
  const float unit = plane_unit(job.planes - 1);
  const int64_t groups = tile.padded / kRowGroup, next = c + width;
  for (int64_t from = c; from < next; ++from)
    for (int j = 0; j < kQuad; ++j) {
      const float f = feedback_at(job, begin + from, begin + next + j);
      for (int64_t t = 0; t < ahead; ++t) {
        const int32_t* value = s.value + ((from - c) / kQuad * groups + t) * kStreams + from % kQuad;
        const float* w = s.error + from * tile.padded + t * kRowGroup;
        float* x = s.sequence + (width / kQuad * groups + t) * kStreams + j;
        for (int r = 0; r < kRowGroup; ++r) x[r * kQuad] += f * (w[r] - unit * (float)value[r * kQuad]);
      }
    }
}

// One path through every plane: values of `steps` steps, the streams' bits, and the states after.
static void encode_paths(const FeedbackJob& job, const Tile& tile, int64_t quad, int64_t steps, int64_t ahead,
                         int (*state)[kStreams], EncodeScratch& s) {
  std::memset(s.value, 0, steps * kStreams * 4);
  for (int k = 0; k < job.planes; ++k) {
    viterbi_paths(s.planes[k], s.sequence, steps + ahead, steps, state[k], s.choices, s.level, s.newest);
    const int8_t* levels = (const int8_t*)job.tables->levels[k];
    const int weight = job.planes > kPlanesPerGroup && k < kPlanesPerGroup ? kGroupRatio : 1;
    const float unit = plane_unit(k);
    for (int64_t t = 0; t < (steps + ahead) * kStreams; ++t) s.sequence[t] -= unit * (float)levels[s.level[t]];
    for (int64_t t = 0; t < steps * kStreams; ++t) s.value[t] += weight * levels[s.level[t]];
    put_bits(job, k, tile, quad, steps, s.newest);
  }
}

// All planes of columns [c, c + width) from `begin` on, of `stop` whose targets are there. The paths
// run on into the next quad's first steps, so that the state they leave is a good one to go on from.
// Those targets lack this block's feedback: the first pass finds the errors that it comes from.
static void encode_block(const FeedbackJob& job, const Tile& tile, int64_t begin, int64_t c,
                         int64_t width, int64_t stop, int (*state)[kStreams], EncodeScratch& s) {
  const int64_t groups = tile.padded / kRowGroup, steps = width / kQuad * groups;
  const int64_t ahead = c + width < stop ? (groups < kAhead ? groups : kAhead) : 0;
  const int64_t quad = (begin + c) / kQuad;
  load_sequence(tile, c, steps + ahead, s.target, s.sequence);
  if (job.feedback && ahead) {
    int trial[kPlanesMax][kStreams];
    std::memcpy(trial, state, sizeof trial);
    encode_paths(job, tile, quad, steps, ahead, trial, s);
    load_sequence(tile, c, steps + ahead, s.target, s.sequence);
    feed_ahead(job, tile, begin, c, width, ahead, s);
  }
  encode_paths(job, tile, quad, steps, ahead, state, s);
  store_values(job, tile, begin, c, steps, s);
}

// Error of the block just coded, pushed on to the later columns up to `stop`.
static void push_error(const FeedbackJob& job, const Tile& tile, int64_t begin, int64_t c,
                       int64_t width, int64_t stop, EncodeScratch& s) {
  for (int64_t later = c + width; later < stop; ++later)
    for (int64_t j = c; j < c + width; ++j) {
      const float f = feedback_at(job, begin + j, begin + later);
      float* to = s.target + later * tile.padded;
      const float* from = s.error + j * tile.padded;
      for (int64_t r = 0; r < tile.padded; ++r) to[r] += f * from[r];
    }
}

static void encode_tile(const FeedbackJob& job, int64_t index, float* scratch) {
  const Geometry g{job.rows, job.cols, job.tile_rows};
  Tile tile;
  tile.row = index * job.tile_rows;
  tile.block = g.first_block(index);
  tile.padded = g.blocks_in_tile(index) * kBlockRows;
  tile.rows = job.rows - tile.row < tile.padded ? job.rows - tile.row : tile.padded;
  EncodeScratch s;
  encode_parts(job, (char*)scratch, &s);
  for (int k = 0; k < job.planes; ++k) s.planes[k] = viterbi_plane(*job.tables, k, plane_unit(k));
  int state[kPlanesMax][kStreams] = {};
  for (int64_t begin = 0; begin < job.cols; begin += kSuper) {
    const int64_t width = job.cols - begin < kSuper ? job.cols - begin : kSuper;
    const int64_t stop = begin + width < job.cols ? width + kQuad : width;
    load_target(job, tile, begin, width, s);
    for (int64_t c = 0; c < width; c += job.block) {
      const int64_t block = width - c < job.block ? width - c : job.block;
      encode_block(job, tile, begin, c, block, stop, state, s);
      if (job.feedback) push_error(job, tile, begin, c, block, stop, s);
    }
    if (job.feedback)
      for (int64_t c = 0; c < width; ++c)
        for (int64_t r = 0; r < tile.padded; ++r)
          s.fed[r * job.cols + begin + c] = s.error[c * tile.padded + r];
  }
}

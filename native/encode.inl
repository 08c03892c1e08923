// Encoding: plane after plane on what is left over, block after block of columns with the error fed
// back under the calibration Hessian.

constexpr int64_t kSuper = 64;      // columns whose incoming feedback is one matrix product
constexpr int64_t kPanel = 32;      // columns of a feedback panel
constexpr int64_t kTarget = kSuper + kPanel;
constexpr int64_t kDepth = 512;     // columns of a feedback panel that stay in the cache for all rows
constexpr int64_t kAhead = 64;      // steps of the next block a path also looks at, then forgets

struct EncodeScratch {
  float *target, *error, *fed;      // [64 and a quad][column_stride] twice, then [rows][cols]
  float* sums;                      // [rows][96]: feedback into the superblock and the panel after it
  float* sequence;                  // [step][16]: one block in stream order
  int32_t* value;                   // its decoded integers
  uint8_t *level, *newest;
  vs* choices;
  ViterbiPlane* planes;
};

// Rows and a little more: columns that lie a power of two apart share few lines of the cache.
static int64_t column_stride(const TileJob& job) { return job.shape.padded_rows() + 16; }

static int64_t encode_parts(const TileJob& job, char* base, EncodeScratch* out) {
  const int64_t rows = job.shape.padded_rows(), steps = rows / kRowGroup * (kSuper / kQuad) + kAhead;
  int64_t used = 0;
  auto take = [&](int64_t bytes) {
    char* p = base ? base + used : nullptr;
    used += (bytes + 63) / 64 * 64;
    return p;
  };
  EncodeScratch s;
  s.target = (float*)take(column_stride(job) * (kSuper + kQuad) * 4);
  s.error = (float*)take(column_stride(job) * (kSuper + kQuad) * 4);
  s.sums = (float*)take(rows * kTarget * 4);
  s.fed = (float*)take(job.feedback ? rows * job.shape.cols * 4 : 64);
  s.sequence = (float*)take(steps * kStreams * 4);
  s.value = (int32_t*)take(steps * kStreams * 4);
  s.level = (uint8_t*)take(steps * kStreams);
  s.newest = (uint8_t*)take(steps * kStreams);
  s.choices = (vs*)take(steps * 2 * choice_vectors(job.tables->window) * sizeof(vs));
  s.planes = (ViterbiPlane*)take(sizeof(ViterbiPlane) * kPlanesMax);
  if (out) *out = s;
  return used;
}

static int64_t encode_scratch_bytes(const TileJob& job) { return encode_parts(job, nullptr, nullptr); }

// What 1 is worth, in units of the first plane group: of a plane's levels, of whole integer weights.
static float plane_unit(int plane) { return plane < kPlanesPerGroup ? 1.0f : 1.0f / kGroupRatio; }

// Feedback of all columns before `begin` into the panels of [begin, begin + width). The panel after
// the last superblock had all but that superblock's own then.
static void sum_feedback(const TileJob& job, int64_t begin, int64_t width, EncodeScratch& s) {
  const int64_t rows = job.shape.padded_rows(), cols = job.shape.cols;
  for (float* sums = s.sums; sums < s.sums + rows * kTarget; sums += kTarget) {
    if (begin) std::memcpy(sums, sums + kSuper, kPanel * sizeof(float));
    std::memset(sums + (begin ? kPanel : 0), 0, (kTarget - (begin ? kPanel : 0)) * sizeof(float));
  }
  for (int64_t from = 0; from < begin; from += kDepth)
    for (int64_t r = 0; r < rows; r += kOuterRows)
      for (int64_t c = 0; c < width; c += kPanel) {
        const int64_t done = c ? 0 : begin - kSuper, k = from < done ? done : from;
        const int64_t stop = from + kDepth < begin ? from + kDepth : begin;
        if (k < stop)
          outer_block<kOuterRows>(s.fed + r * cols + k, cols, 1, job.feedback + ((begin + c) / kPanel * cols + k) * kPanel,
                                  stop - k, s.sums + r * kTarget + c, kTarget);
      }
}

// Target of columns [begin, begin + width): weights plus what earlier columns left over; and of the
// quad after them, which lacks only these columns' feedback.
static void load_target(const TileJob& job, int64_t begin, int64_t width, EncodeScratch& s) {
  alignas(64) float w[8][kTarget] = {};
  const int64_t cols = job.shape.cols, stride = column_stride(job);
  const bool more = begin + width < cols;
  const int64_t loaded = width + (more ? kQuad : 0);
  if (job.feedback) sum_feedback(job, begin, width + (more ? kPanel : 0), s);
  for (int64_t r0 = 0; r0 < job.shape.padded_rows(); r0 += 8) {
    for (int r = 0; r < 8; ++r)
      if (r0 + r < job.shape.rows) std::memcpy(w[r], job.target + (r0 + r) * cols + begin, loaded * sizeof(float));
      else std::memset(w[r], 0, sizeof w[r]);
    for (int64_t c = 0; c < loaded; ++c)
      for (int r = 0; r < 8; ++r) {
        s.error[c * stride + r0 + r] = w[r][c];
        s.target[c * stride + r0 + r] = w[r][c] + (job.feedback ? s.sums[(r0 + r) * kTarget + c] : 0.0f);
      }
  }
}

// Errors of the superblock's columns, for the feedback into later ones.
static void keep_error(const TileJob& job, int64_t begin, int64_t width, EncodeScratch& s) {
  float rows[8][kSuper];
  const int64_t stride = column_stride(job);
  for (int64_t r0 = 0; r0 < job.shape.padded_rows(); r0 += 8) {
    for (int64_t c = 0; c < width; ++c)
      for (int r = 0; r < 8; ++r) rows[r][c] = s.error[c * stride + r0 + r];
    for (int r = 0; r < 8; ++r)
      std::memcpy(s.fed + (r0 + r) * job.shape.cols + begin, rows[r], width * sizeof(float));
  }
}

// Bytes of a plane from quad `quad` on; newest [steps][16], whole quads.
static void put_bits(const TileJob& job, int plane, int64_t quad, int64_t steps,
                     const uint8_t* newest) {
  const int64_t blocks = job.shape.blocks(), block_bytes = job.shape.block_bytes();
  uint8_t* first = job.planes + plane * job.shape.plane_bytes() + quad * kStreams;
  for (int64_t at = 0; at < steps / kSteps; ++at, newest += kSteps * kStreams) {
    uint8_t* bytes = first + at % blocks * block_bytes + at / blocks * kStreams;
    for (int i = 0; i < kStreams; ++i) {
      int byte = 0;
      for (int step = 0; step < kSteps; ++step) byte |= newest[step * kStreams + i] << step;
      bytes[i] = (uint8_t)byte;
    }
  }
}

// Targets of `steps` steps from column c on, [step][4 rows][4 columns].
static void load_sequence(const TileJob& job, int64_t c, int64_t steps, const float* target, float* x) {
  const int64_t groups = job.shape.padded_rows() / kRowGroup, stride = column_stride(job);
  for (int64_t t = 0; t < steps; ++t, x += kStreams)
    for (int j = 0; j < kQuad; ++j) {
      const float* from = target + (c + t / groups * kQuad + j) * stride + t % groups * kRowGroup;
      for (int r = 0; r < kRowGroup; ++r) x[r * kQuad + j] = from[r];
    }
}

static void store_values(const TileJob& job, int64_t begin, int64_t c, int64_t steps,
                         EncodeScratch& s) {
  const float unit = plane_unit(job.tables->count - 1);
  const int64_t groups = job.shape.padded_rows() / kRowGroup, stride = column_stride(job);
  const int32_t* value = s.value;
  for (int64_t t = 0; t < steps; ++t, value += kStreams) {
    const int64_t q = c + t / groups * kQuad, row = t % groups * kRowGroup;
    for (int r = 0; r < kRowGroup; ++r)
      for (int j = 0; j < kQuad; ++j) {
        s.error[(q + j) * stride + row + r] -= unit * (float)value[r * kQuad + j];
        if (row + r < job.shape.rows && begin + q + j < job.shape.cols)
          job.decoded[(row + r) * job.shape.cols + begin + q + j] = (int16_t)value[r * kQuad + j];
      }
  }
}

static float feedback_at(const TileJob& job, int64_t from, int64_t to) {
  return job.feedback[(to / kPanel * job.shape.cols + from) * kPanel + to % kPanel];
}

// Adds to the targets of the next quad's first steps what the block's errors there will feed back.
static void feed_ahead(const TileJob& job, int64_t begin, int64_t c, int64_t width,
                       int64_t ahead, EncodeScratch& s) {
  const float unit = plane_unit(job.tables->count - 1);
  const int64_t groups = job.shape.padded_rows() / kRowGroup, stride = column_stride(job), next = c + width;
  for (int64_t from = c; from < next; ++from)
    for (int j = 0; j < kQuad; ++j) {
      const float f = feedback_at(job, begin + from, begin + next + j);
      for (int64_t t = 0; t < ahead; ++t) {
        const int32_t* value = s.value + ((from - c) / kQuad * groups + t) * kStreams + from % kQuad;
        const float* w = s.error + from * stride + t * kRowGroup;
        float* x = s.sequence + (width / kQuad * groups + t) * kStreams + j;
        for (int r = 0; r < kRowGroup; ++r) x[r * kQuad] += f * (w[r] - unit * (float)value[r * kQuad]);
      }
    }
}

// One path through every plane: values of `steps` steps, the streams' bits, and the states after.
static void encode_paths(const TileJob& job, int64_t quad, int64_t steps, int64_t ahead,
                         int (*state)[kStreams], EncodeScratch& s) {
  std::memset(s.value, 0, (steps + ahead) * kStreams * 4);
  for (int k = 0; k < job.tables->count; ++k) {
    viterbi_paths(s.planes[k], s.sequence, steps + ahead, steps, state[k], s.choices, s.level, s.newest);
    const int8_t* levels = (const int8_t*)job.tables->levels[k];
    const int weight = job.tables->count > kPlanesPerGroup && k < kPlanesPerGroup ? kGroupRatio : 1;
    const float unit = plane_unit(k);
    for (int64_t t = 0; t < (steps + ahead) * kStreams; ++t) {
      const int level = levels[s.level[t]];
      s.sequence[t] -= unit * (float)level;
      s.value[t] += weight * level;  // those ahead are dropped
    }
    put_bits(job, k, quad, steps, s.newest);
  }
}

// All planes of columns [c, c + width) from `begin` on, of `stop` whose targets are there. The paths
// run on into the next quad's first steps, so that the state they leave is a good one to go on from.
// Those targets lack this block's feedback: a trial finds the errors that it comes from. Of a quad
// alone they are those of its own first steps, and paths that end as far again behind have met there.
static void encode_block(const TileJob& job, int64_t begin, int64_t c,
                         int64_t width, int64_t stop, int (*state)[kStreams], EncodeScratch& s) {
  const int64_t groups = job.shape.padded_rows() / kRowGroup, steps = width / kQuad * groups;
  const int64_t ahead = c + width < stop ? (groups < kAhead ? groups : kAhead) : 0;
  const int64_t quad = (begin + c) / kQuad;
  load_sequence(job, c, steps + ahead, s.target, s.sequence);
  if (job.feedback && ahead) {
    int trial[kPlanesMax][kStreams];
    std::memcpy(trial, state, sizeof trial);
    const bool cut = width == kQuad && 2 * ahead < steps;
    encode_paths(job, quad, cut ? 2 * ahead : steps, cut ? 0 : ahead, trial, s);
    load_sequence(job, c, steps + ahead, s.target, s.sequence);
    feed_ahead(job, begin, c, width, ahead, s);
  }
  encode_paths(job, quad, steps, ahead, state, s);
  store_values(job, begin, c, steps, s);
}

// Error of the block just coded, pushed on to the later columns up to `stop`.
static void push_error(const TileJob& job, int64_t begin, int64_t c,
                       int64_t width, int64_t stop, EncodeScratch& s) {
  const int64_t padded = job.shape.padded_rows(), stride = column_stride(job);
  for (int64_t later = c + width; later < stop; ++later)
    for (int64_t j = c; j < c + width; ++j) {
      const float f = feedback_at(job, begin + j, begin + later);
      float* to = s.target + later * stride;
      const float* from = s.error + j * stride;
      for (int64_t r = 0; r < padded; ++r) to[r] += f * from[r];
    }
}

static void encode_tile(const TileJob& job, void* scratch) {
  const int64_t cols = job.shape.cols;
  EncodeScratch s;
  encode_parts(job, (char*)scratch, &s);
  for (int k = 0; k < job.tables->count; ++k) s.planes[k] = viterbi_plane(*job.tables, k, plane_unit(k));
  int state[kPlanesMax][kStreams] = {};
  for (int64_t begin = 0; begin < cols; begin += kSuper) {
    const int64_t width = cols - begin < kSuper ? cols - begin : kSuper;
    const int64_t stop = begin + width < cols ? width + kQuad : width;
    load_target(job, begin, width, s);
    for (int64_t c = 0; c < width; c += job.block) {
      const int64_t block = width - c < job.block ? width - c : job.block;
      encode_block(job, begin, c, block, stop, state, s);
      if (job.feedback) push_error(job, begin, c, block, stop, s);
    }
    if (job.feedback) keep_error(job, begin, width, s);
  }
}

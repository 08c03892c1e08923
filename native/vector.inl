// Vectors of the tier being compiled. Sums are always taken in 16 lanes and folded in one fixed
// order, whatever the register width, and products are rounded alike, so every tier gives the same
// bits.

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int kLanes = 16;
constexpr int kParts = kLanes / W;

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef int16_t vp __attribute__((vector_size(W * 4)));  // 2 W of them
typedef int16_t vh __attribute__((vector_size(W * 2)));
typedef int8_t vc __attribute__((vector_size(W * 2)));
typedef int8_t vq __attribute__((vector_size(W)));
typedef uint16_t vn __attribute__((vector_size(W * 4)));

static inline vf load(const float* p) { vf v; std::memcpy(&v, p, sizeof v); return v; }
// Loaded once, for several uses: gcc would read it from memory for each, and loads set the pace.
static inline vf load_once(const float* p) {
  vf v = load(p);
#if defined(__AVX__) && !defined(LSB_EMULATED)
  __asm__("" : "+v"(v));
#endif
  return v;
}
static inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
static inline vf splat(float x) { return x - vf{}; }

#if !defined(__FMA__) && !defined(__ARM_NEON)
typedef float vhalf __attribute__((vector_size(W * 2)));
typedef double vd __attribute__((vector_size(W * 4)));
typedef int64_t vl __attribute__((vector_size(W * 4)));

// Without the instruction: a product of floats is exact in double precision, a sum of doubles whose
// last bit is set where it is not exact ("rounded to odd") rounds to the float that the exact sum
// rounds to (Boldo and Melquiond, Emulation of FMA and correctly rounded sums, 2008).
static inline vhalf fused_half(vhalf a, vhalf b, vhalf c) {
  const vd product = __builtin_convertvector(a, vd) * __builtin_convertvector(b, vd);
  const vd added = __builtin_convertvector(c, vd), sum = product + added, part = sum - product;
  const vd lost = (product - (sum - part)) + (added - part);
  vl bits, sign;
  std::memcpy(&bits, &sum, sizeof bits);
  std::memcpy(&sign, &lost, sizeof sign);
  const vl inexact = (lost > 0) | (lost < 0), even = (bits & 1) - 1;
  bits += (((bits ^ sign) >> 63) | 1) & even & inexact;
  vd odd;
  std::memcpy(&odd, &bits, sizeof odd);
  return __builtin_convertvector(odd, vhalf);
}
#endif

// a b + c, rounded once.
static inline vf fused(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  vhalf x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  std::memcpy(z, &c, sizeof z);
  for (int i = 0; i < 2; ++i) z[i] = fused_half(x[i], y[i], z[i]);
  std::memcpy(&c, z, sizeof c);
  return c;
#endif
}
static inline vf vmin(vf a, vf b) { return a < b ? a : b; }
static inline vf vmax(vf a, vf b) { return a > b ? a : b; }
static inline vf as_float(vi v) { vf f; std::memcpy(&f, &v, sizeof f); return f; }
static inline vi as_int(vf v) { vi i; std::memcpy(&i, &v, sizeof i); return i; }

static inline vf vabs(vf v) { return as_float(as_int(v) & 0x7FFFFFFF); }
// To the nearest integer, ties to even; |v| < 2^22.
static inline vi to_nearest(vf v) { return as_int(v + splat(12582912.0f)) - 0x4B400000; }

static inline vp load_widened(const int8_t* p) {
#if defined(__AVX__) && !defined(__AVX512F__)  // what gcc makes of the last line is slow here
  return (vp)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
#else
  vc bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, vp);
#endif
}
// Two int16 in every place.
static inline vp splat_pair(const int16_t* two) {
  int32_t both;
  std::memcpy(&both, two, sizeof both);
  const vi v = vi{} + both;
  vp out;
  std::memcpy(&out, &v, sizeof out);
  return out;
}
// a[2i] b[2i] + a[2i + 1] b[2i + 1]
static inline vi pair_sums(vp a, vp b) {
#if defined(__AVX512F__)
  return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX__)
  return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__ARM_NEON)
  return (vi)vpaddq_s32(vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b)),
                        vmull_high_s16((int16x8_t)a, (int16x8_t)b));
#else
  vi out;
  for (int i = 0; i < W; ++i) out[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
  return out;
#endif
}

struct Lanes { vf part[kParts]; };  // 16 floats

static inline Lanes zero_lanes() { Lanes l; for (auto& p : l.part) p = vf{}; return l; }
static inline Lanes load_lanes(const float* x) {
  Lanes l;
  for (int i = 0; i < kParts; ++i) l.part[i] = load(x + i * W);
  return l;
}
static inline Lanes load_tail(const float* x, int64_t count) {
  float padded[kLanes] = {};
  std::memcpy(padded, x, count * sizeof(float));
  return load_lanes(padded);
}
static inline void store_lanes(float* x, const Lanes& l) {
  for (int i = 0; i < kParts; ++i) store(x + i * W, l.part[i]);
}
static inline void add_product(Lanes& acc, const Lanes& a, const Lanes& b) {
  for (int i = 0; i < kParts; ++i) acc.part[i] = fused(a.part[i], b.part[i], acc.part[i]);
}
// Pairwise: lanes 8 apart, then 4, 2, 1.
#if defined(__SSE2__)
static inline __m128 fold_to_four(const Lanes& l) {
#if defined(__AVX__)
#if defined(__AVX512F__)
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)l.part[0]),
                                     _mm512_extractf32x8_ps((__m512)l.part[0], 1));
#else
  const __m256 eight = _mm256_add_ps((__m256)l.part[0], (__m256)l.part[1]);
#endif
  return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
  return (__m128)((l.part[0] + l.part[2]) + (l.part[1] + l.part[3]));
#endif
}
static inline float fold(const Lanes& l) {
  const __m128 four = fold_to_four(l), two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
static inline void fold_four(const Lanes* l, float* out) {
  __m128 a = fold_to_four(l[0]), b = fold_to_four(l[1]), c = fold_to_four(l[2]), d = fold_to_four(l[3]);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d)));
}
#else
static inline float fold(const Lanes& l) {
  float v[kLanes];
  store_lanes(v, l);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  return v[0];
}
static inline void fold_four(const Lanes* l, float* out) {
  for (int i = 0; i < 4; ++i) out[i] = fold(l[i]);
}
#endif

// 16 half floats (no infinities or NaN reach this) to float: exact on every path.
static inline Lanes load_half(const uint16_t* p) {
  Lanes out;
#if defined(__AVX512F__)
  out.part[0] = (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  for (int i = 0; i < 2; ++i)
    out.part[i] = (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8 * i)));
#else
  float v[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bits = (uint32_t)(p[i] & 0x7FFF) << 13;
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude *= 0x1p112f;
    v[i] = p[i] & 0x8000 ? -magnitude : magnitude;
  }
  out = load_lanes(v);
#endif
  return out;
}

static inline Lanes load_bfloat(const uint16_t* p) {
  uint32_t bits[kLanes];
  for (int i = 0; i < kLanes; ++i) bits[i] = (uint32_t)p[i] << 16;
  float v[kLanes];
  std::memcpy(v, bits, sizeof v);
  return load_lanes(v);
}

// Round to nearest even; values beyond the half range saturate at 65504.
static inline uint16_t to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t sign = (bits >> 16) & 0x8000;
  float magnitude = std::fabs(x);
  if (!(magnitude < 65504.0f)) magnitude = 65504.0f;
  if (magnitude < 0x1p-14f) {  // subnormal half: the float adder does the rounding
    float shifted = magnitude + 0.5f;
    uint32_t low;
    std::memcpy(&low, &shifted, 4);
    return (uint16_t)(sign | (low - 0x3F000000u));
  }
  std::memcpy(&bits, &magnitude, 4);
  bits += 0xC8000FFFu + ((bits >> 13) & 1);  // rebias the exponent by -112, round half to even
  return (uint16_t)(sign | (bits >> 13));
}

// 16 floats, rounded in the same way.
static inline void to_halves(const float* x, uint16_t* out) {
#if defined(__F16C__)
  for (int i = 0; i < kLanes; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i), sign = _mm256_set1_ps(-0.0f);
    const __m256 magnitude = _mm256_min_ps(_mm256_andnot_ps(sign, v), _mm256_set1_ps(65504.0f));
    const __m256 kept = _mm256_or_ps(magnitude, _mm256_and_ps(sign, v));
    _mm_storeu_si128((__m128i*)(out + i), _mm256_cvtps_ph(kept, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  for (int i = 0; i < kLanes; ++i) out[i] = to_half(x[i]);
#endif
}
static inline float from_half(uint16_t half) {  // finite ones: exact
  uint32_t bits = (uint32_t)(half & 0x7FFF) << 13;
  float magnitude;
  std::memcpy(&magnitude, &bits, 4);
  return half & 0x8000 ? magnitude * -0x1p112f : magnitude * 0x1p112f;
}

// exp(x) within 2 ulp on [-87, 88]; arguments outside are clamped. Cody-Waite reduction, degree 6.
static inline vf vexp(vf x) {
  x = vmax(vmin(x, splat(88.0f)), splat(-87.0f));
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vf shifted = x * splat(1.44269504f) + magic;
  vf n = shifted - magic;
  vf r = x - n * splat(0.693359375f);
  r = r - n * splat(-2.12194440e-4f);
  vf p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.0f);
  vi power = (as_int(shifted) - as_int(magic) + 127) << 23;
  return p * as_float(power);
}

static inline uint32_t mask_bits(vi m) {  // lane i of a comparison -> bit i
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)m);
#elif defined(__AVX__)
  return _mm256_movemask_ps((__m256)m);
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)m);
#else
  uint32_t bits = 0;
  for (int i = 0; i < W; ++i) bits |= (uint32_t)(m[i] & 1) << i;
  return bits;
#endif
}

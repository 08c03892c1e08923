// Registers of bytes of the tier being compiled: what decoding a plane and multiplying it take.
// A tier that has them defines LSB_BYTES; trellis.inl has a plain path for the others.

#if defined(__AVX512BW__)
#define LSB_BYTES 64
typedef __m512i vb;
typedef __m512i vsum;  // 32-bit sums

static inline vb load_bytes(const void* p) { return _mm512_loadu_si512(p); }
static inline void store_bytes(void* p, vb v) { _mm512_storeu_si512(p, v); }
static inline vb add_bytes(vb a, vb b) { return _mm512_add_epi8(a, b); }
static inline vsum zero_sum() { return _mm512_setzero_si512(); }

#if defined(__AVX512VBMI__)
// VPERMB reads the low 6 bits of an index.
static inline vb lookup(vb table, vb index) { return _mm512_permutexvar_epi8(index, table); }
// Of pairs of bytes: bits of the upper one enter the lower one.
template <int S> static inline vb shift_right(vb x) { return _mm512_srli_epi16(x, S); }
#else
template <int S> static inline vb nibble(vb x) {
  return _mm512_and_si512(S ? _mm512_srli_epi16(x, S) : x, _mm512_set1_epi8(15));
}
static inline vb join(vb low, vb high) { return _mm512_or_si512(low, _mm512_slli_epi16(high, 4)); }
static inline vb lookup(vb table, vb index) { return _mm512_shuffle_epi8(table, index); }
#endif
static inline vb xor_bytes(vb a, vb b) { return _mm512_xor_si512(a, b); }

// The four bytes of each quad of a strip, once for each of the four rows.
static inline vb spread(const int8_t* x, int) {
  const __m512i quads = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)x));
  return _mm512_shuffle_epi8(quads, _mm512_set_epi32(
      0x0F0E0D0C, 0x0F0E0D0C, 0x0F0E0D0C, 0x0F0E0D0C, 0x0B0A0908, 0x0B0A0908, 0x0B0A0908, 0x0B0A0908,
      0x07060504, 0x07060504, 0x07060504, 0x07060504, 0x03020100, 0x03020100, 0x03020100, 0x03020100));
}
#if defined(__AVX512VNNI__)
constexpr bool kBiased = true;      // weights + 128, for the unsigned side of VPDPBUSD
typedef vb Prepared;
static inline Prepared prepare(vb w) { return w; }
static inline vsum dot(vsum sum, const Prepared& w, vb x) { return _mm512_dpbusd_epi32(sum, w, x); }
typedef vb Fixed;
static inline Fixed fix(vb x) { return x; }
static inline vsum dot_fixed(vsum sum, vb w, const Fixed& x) { return _mm512_dpbusd_epi32(sum, w, x); }
#else
constexpr bool kBiased = false;
struct Prepared { vb magnitude; __mmask64 negative; };
static inline Prepared prepare(vb w) { return {_mm512_abs_epi8(w), _mm512_movepi8_mask(w)}; }
static inline vsum dot(vsum sum, const Prepared& w, vb x) {
  // |w| <= 127, so the pairs of products stay within 16 bits.
  const vb signed_x = _mm512_mask_sub_epi8(x, w.negative, zero_sum(), x);
  const vb pairs = _mm512_maddubs_epi16(w.magnitude, signed_x);
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
typedef Prepared Fixed;             // the same with the sides changed: one x for many weights
static inline Fixed fix(vb x) { return prepare(x); }
static inline vsum dot_fixed(vsum sum, vb w, const Fixed& x) { return dot(sum, x, w); }
#endif
// Sums of row groups, each over its quads: [4 quads][4 rows] of four groups to [4 groups][4 rows].
static inline vsum pair_quads(vsum a, vsum b) {
  return _mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xEE));
}
// out[16] += (the rows of four row groups - offset) * scale.
static inline void add_rows(const vsum* s, int32_t offset, float scale, float* out) {
  const vsum first = pair_quads(s[0], s[1]), second = pair_quads(s[2], s[3]);
  const vsum rows = _mm512_add_epi32(_mm512_shuffle_i64x2(first, second, 0x88), _mm512_shuffle_i64x2(first, second, 0xDD));
  const vf value = (vf)_mm512_cvtepi32_ps(_mm512_sub_epi32(rows, _mm512_set1_epi32(offset)));
  store(out, load(out) + value * splat(scale));
}
constexpr int kGroupsFolded = 4;

#elif defined(__AVX2__)
#define LSB_BYTES 32
typedef __m256i vb;
typedef __m256i vsum;

static inline vb load_bytes(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline void store_bytes(void* p, vb v) { _mm256_storeu_si256((__m256i*)p, v); }
static inline vb add_bytes(vb a, vb b) { return _mm256_add_epi8(a, b); }
static inline vb xor_bytes(vb a, vb b) { return _mm256_xor_si256(a, b); }
static inline vsum zero_sum() { return _mm256_setzero_si256(); }
template <int S> static inline vb nibble(vb x) {
  return _mm256_and_si256(S ? _mm256_srli_epi16(x, S) : x, _mm256_set1_epi8(15));
}
static inline vb join(vb low, vb high) { return _mm256_or_si256(low, _mm256_slli_epi16(high, 4)); }
static inline vb lookup(vb table, vb index) { return _mm256_shuffle_epi8(table, index); }

// The four bytes of two quads of a strip, once for each of the four rows.
static inline vb spread(const int8_t* x, int half) {
  int64_t quads;
  std::memcpy(&quads, x + 8 * half, 8);
  return _mm256_shuffle_epi8(_mm256_set1_epi64x(quads), _mm256_setr_epi32(
      0x03020100, 0x03020100, 0x03020100, 0x03020100, 0x07060504, 0x07060504, 0x07060504, 0x07060504));
}
constexpr bool kBiased = false;
struct Prepared { vb weight, magnitude; };
static inline Prepared prepare(vb w) { return {w, _mm256_abs_epi8(w)}; }
static inline vsum dot(vsum sum, const Prepared& w, vb x) {
  // |w| <= 127, so the pairs of products stay within 16 bits.
  const vb pairs = _mm256_maddubs_epi16(w.magnitude, _mm256_sign_epi8(x, w.weight));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
typedef Prepared Fixed;             // the same with the sides changed: one x for many weights
static inline Fixed fix(vb x) { return prepare(x); }
static inline vsum dot_fixed(vsum sum, vb w, const Fixed& x) { return dot(sum, x, w); }
// out[8] += (the rows of two row groups, each the sum of its quads, - offset) * scale. In registers:
// a load right after narrower stores would wait for them.
static inline void add_rows(const vsum* s, int32_t offset, float scale, float* out) {
  const __m256i rows = _mm256_add_epi32(_mm256_permute2x128_si256(s[0], s[1], 0x20), _mm256_permute2x128_si256(s[0], s[1], 0x31));
  const __m256 value = _mm256_cvtepi32_ps(_mm256_sub_epi32(rows, _mm256_set1_epi32(offset)));
  _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), _mm256_mul_ps(value, _mm256_set1_ps(scale))));
}
constexpr int kGroupsFolded = 2;

#elif defined(__ARM_FEATURE_DOTPROD)
#define LSB_BYTES 16
typedef uint8x16_t vb;
typedef int32x4_t vsum;

static inline vb load_bytes(const void* p) { return vld1q_u8((const uint8_t*)p); }
static inline void store_bytes(void* p, vb v) { vst1q_u8((uint8_t*)p, v); }
static inline vb add_bytes(vb a, vb b) { return vaddq_u8(a, b); }
static inline vb xor_bytes(vb a, vb b) { return veorq_u8(a, b); }
static inline vsum zero_sum() { return vdupq_n_s32(0); }
template <int S> static inline vb nibble(vb x) {
  if constexpr (S == 4) return vshrq_n_u8(x, 4);
  else if constexpr (S == 0) return vandq_u8(x, vdupq_n_u8(15));
  else return vandq_u8(vshrq_n_u8(x, S), vdupq_n_u8(15));
}
static inline vb join(vb low, vb high) { return vsliq_n_u8(low, high, 4); }
static inline vb lookup(vb table, vb index) { return vqtbl1q_u8(table, index); }
static inline vb spread(const int8_t* x, int quad) {
  int32_t four;
  std::memcpy(&four, x + 4 * quad, 4);
  return vreinterpretq_u8_s32(vdupq_n_s32(four));
}
constexpr bool kBiased = false;
typedef vb Prepared;
static inline Prepared prepare(vb w) { return w; }
static inline vsum dot(vsum sum, const Prepared& w, vb x) {
  return vdotq_s32(sum, vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(x));
}
typedef vb Fixed;
static inline Fixed fix(vb x) { return x; }
static inline vsum dot_fixed(vsum sum, vb w, const Fixed& x) { return dot(sum, w, x); }
// out[4] += (the rows of a row group - offset) * scale
static inline void add_rows(const vsum* s, int32_t offset, float scale, float* out) {
  vst1q_f32(out, vaddq_f32(vld1q_f32(out), vmulq_n_f32(vcvtq_f32_s32(vsubq_s32(*s, vdupq_n_s32(offset))), scale)));
}
constexpr int kGroupsFolded = 1;
#endif

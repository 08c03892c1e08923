// The AVX-512 instructions that the kernels use, each as a plain loop (and AVX2 with FMA and F16C), so that
// the AVX-512 source runs on machines without them: proof of its logic, never of its speed or of the
// compiler's AVX-512 code. Semantics: Intel 64 and IA-32 Architectures Software Developer's Manual,
// volume 2, the instruction named beside each function, 512-bit form without a mask.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

template <typename T>
struct Emulated {  // the elements of one 64-byte register, element 0 lowest
  T at[64 / sizeof(T)];

  template <typename V>
  explicit Emulated(const V& v) { static_assert(sizeof v == 64, ""); std::memcpy(at, &v, 64); }
  Emulated() = default;
  __m512i integers() const { __m512i v; std::memcpy(&v, at, 64); return v; }
  __m512 floats() const { __m512 v; std::memcpy(&v, at, 64); return v; }
};

static inline __m512i emulated_load(const void* p) { __m512i v; std::memcpy(&v, p, 64); return v; }
static inline __m512 emulated_load_ps(const void* p) { __m512 v; std::memcpy(&v, p, 64); return v; }
static inline void emulated_store(void* p, __m512i v) { std::memcpy(p, &v, 64); }
static inline void emulated_store_ps(void* p, __m512 v) { std::memcpy(p, &v, 64); }

static inline __m512i emulated_set1_epi32(int32_t x) {  // VPBROADCASTD
  Emulated<int32_t> out;
  for (auto& e : out.at) e = x;
  return out.integers();
}
static inline __m512 emulated_set1_ps(float x) { return x - __m512{}; }  // VBROADCASTSS
static inline __m512i emulated_broadcast_i32x4(__m128i x) {  // VBROADCASTI32X4
  Emulated<uint8_t> out;
  for (int i = 0; i < 4; ++i) std::memcpy(out.at + 16 * i, &x, 16);
  return out.integers();
}

// VPERMB: the low 6 bits of an index choose the byte.
static inline __m512i emulated_permutexvar_epi8(__m512i index, __m512i a) {
  const Emulated<uint8_t> i(index), from(a);
  Emulated<uint8_t> out;
  for (int n = 0; n < 64; ++n) out.at[n] = from.at[i.at[n] & 63];
  return out.integers();
}

static inline __mmask64 emulated_movepi8_mask(__m512i a) {  // VPMOVB2M: the sign bits
  const Emulated<uint8_t> from(a);
  __mmask64 mask = 0;
  for (int n = 0; n < 64; ++n) mask |= (__mmask64)(from.at[n] >> 7) << n;
  return mask;
}
static inline __mmask16 emulated_movepi32_mask(__m512i a) {  // VPMOVD2M
  const Emulated<uint32_t> from(a);
  uint32_t mask = 0;
  for (int n = 0; n < 16; ++n) mask |= (from.at[n] >> 31) << n;
  return (__mmask16)mask;
}
static inline __m512i emulated_add_epi8(__m512i a, __m512i b) {  // VPADDB: modulo 2^8
  const Emulated<uint8_t> x(a), y(b);
  Emulated<uint8_t> out;
  for (int n = 0; n < 64; ++n) out.at[n] = (uint8_t)(x.at[n] + y.at[n]);
  return out.integers();
}
static inline __m512i emulated_add_epi32(__m512i a, __m512i b) {  // VPADDD: modulo 2^32
  const Emulated<uint32_t> x(a), y(b);
  Emulated<uint32_t> out;
  for (int n = 0; n < 16; ++n) out.at[n] = x.at[n] + y.at[n];
  return out.integers();
}
static inline __m512i emulated_sub_epi32(__m512i a, __m512i b) {  // VPSUBD: modulo 2^32
  const Emulated<uint32_t> x(a), y(b);
  Emulated<uint32_t> out;
  for (int n = 0; n < 16; ++n) out.at[n] = x.at[n] - y.at[n];
  return out.integers();
}
static inline __m512i emulated_set1_epi8(int x) {  // VPBROADCASTB
  Emulated<uint8_t> out;
  for (auto& e : out.at) e = (uint8_t)x;
  return out.integers();
}
static inline __m512i emulated_set1_epi16(int x) {  // VPBROADCASTW
  Emulated<uint16_t> out;
  for (auto& e : out.at) e = (uint16_t)x;
  return out.integers();
}
static inline __m512i emulated_set_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j,
                                         int k, int l, int m, int n, int o, int p) {  // last is element 0
  const int values[16] = {p, o, n, m, l, k, j, i, h, g, f, e, d, c, b, a};
  return emulated_load(values);
}
static inline __m512i emulated_srli_epi16(__m512i a, int count) {  // VPSRLW
  Emulated<uint16_t> out(a);
  for (auto& e : out.at) e = (uint16_t)(e >> count);
  return out.integers();
}
static inline __m512i emulated_slli_epi16(__m512i a, int count) {  // VPSLLW
  Emulated<uint16_t> out(a);
  for (auto& e : out.at) e = (uint16_t)(e << count);
  return out.integers();
}
static inline __m512i emulated_and(__m512i a, __m512i b) { return a & b; }  // VPANDQ
static inline __m512i emulated_or(__m512i a, __m512i b) { return a | b; }   // VPORQ
static inline __m512i emulated_xor(__m512i a, __m512i b) { return a ^ b; }  // VPXORQ

// VPTERNLOGQ: bit number 4a + 2b + c of `table`.
static inline __m512i emulated_ternary(__m512i a, __m512i b, __m512i c, int table) {
  const Emulated<uint64_t> x(a), y(b), z(c);
  Emulated<uint64_t> out = {};
  for (int n = 0; n < 8; ++n)
    for (int bit = 0; bit < 64; ++bit) {
      const int index = (int)(x.at[n] >> bit & 1) * 4 + (int)(y.at[n] >> bit & 1) * 2 + (int)(z.at[n] >> bit & 1);
      out.at[n] |= (uint64_t)(table >> index & 1) << bit;
    }
  return out.integers();
}

// VPSHUFB: within 16 bytes; the low 4 bits of an index choose, its bit 7 gives zero.
static inline __m512i emulated_shuffle_epi8(__m512i a, __m512i index) {
  const Emulated<uint8_t> from(a), i(index);
  Emulated<uint8_t> out;
  for (int n = 0; n < 64; ++n) out.at[n] = i.at[n] & 128 ? 0 : from.at[n / 16 * 16 + (i.at[n] & 15)];
  return out.integers();
}

static inline __m512i emulated_abs_epi8(__m512i a) {  // VPABSB: -128 stays as it is
  Emulated<uint8_t> out(a);
  for (auto& e : out.at) e = e & 128 ? (uint8_t)(0 - e) : e;
  return out.integers();
}
static inline __m512i emulated_mask_sub_epi8(__m512i src, __mmask64 mask, __m512i a, __m512i b) {  // VPSUBB
  const Emulated<uint8_t> x(a), y(b);
  Emulated<uint8_t> out(src);
  for (int n = 0; n < 64; ++n)
    if (mask >> n & 1) out.at[n] = (uint8_t)(x.at[n] - y.at[n]);
  return out.integers();
}
static inline __m512i emulated_maddubs(__m512i a, __m512i b) {  // VPMADDUBSW: a unsigned; saturates
  const Emulated<uint8_t> x(a);
  const Emulated<int8_t> y(b);
  Emulated<int16_t> out;
  for (int n = 0; n < 32; ++n) {
    const int sum = x.at[2 * n] * y.at[2 * n] + x.at[2 * n + 1] * y.at[2 * n + 1];
    out.at[n] = (int16_t)(sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum);
  }
  return out.integers();
}
static inline __m512i emulated_madd_epi16(__m512i a, __m512i b) {  // VPMADDWD
  const Emulated<int16_t> x(a), y(b);
  Emulated<int32_t> out;
  for (int n = 0; n < 16; ++n)
    out.at[n] = (int32_t)((uint32_t)(x.at[2 * n] * y.at[2 * n]) + (uint32_t)(x.at[2 * n + 1] * y.at[2 * n + 1]));
  return out.integers();
}
// VSHUFI64X2: two quarters of `a`, then two of `b`, each chosen by two bits.
static inline __m512i emulated_shuffle_i64x2(__m512i a, __m512i b, int choice) {
  const Emulated<uint8_t> x(a), y(b);
  Emulated<uint8_t> out;
  for (int q = 0; q < 4; ++q) std::memcpy(out.at + 16 * q, (q < 2 ? x : y).at + 16 * (choice >> 2 * q & 3), 16);
  return out.integers();
}

// VPDPBUSD: bytes of `a` unsigned, of `b` signed; the sum wraps at 32 bits, it does not saturate.
static inline __m512i emulated_dpbusd(__m512i sum, __m512i a, __m512i b) {
  const Emulated<uint8_t> x(a);
  const Emulated<int8_t> y(b);
  Emulated<uint32_t> out(sum);
  for (int n = 0; n < 64; ++n) out.at[n / 4] += (uint32_t)((int32_t)x.at[n] * (int32_t)y.at[n]);
  return out.integers();
}

static inline __m512 emulated_fmadd_ps(__m512 a, __m512 b, __m512 c) {  // VFMADD213PS, as two 256-bit ones
  __m256 x[2], y[2], z[2];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  std::memcpy(z, &c, sizeof z);
  for (int i = 0; i < 2; ++i) z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  std::memcpy(&c, z, sizeof c);
  return c;
}
static inline __m512 emulated_add_ps(__m512 a, __m512 b) { return a + b; }  // VADDPS
static inline __m256 emulated_half_ps(__m512 a, int upper) {                // VEXTRACTF32X8
  __m256 out;
  std::memcpy(&out, (const char*)&a + 32 * (upper & 1), 32);
  return out;
}
static inline __m512 emulated_cvtph_ps(__m256i a) {  // VCVTPH2PS, as two 256-bit ones
  const __m256 halves[2] = {_mm256_cvtph_ps(_mm256_castsi256_si128(a)),
                            _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))};
  return emulated_load_ps(halves);
}
static inline __m512i emulated_cvtepi8_epi32(__m128i a) {  // VPMOVSXBD
  int8_t from[16];
  std::memcpy(from, &a, sizeof from);
  Emulated<int32_t> out;
  for (int n = 0; n < 16; ++n) out.at[n] = from[n];
  return out.integers();
}
static inline __m512 emulated_cvtepi32_ps(__m512i a) {  // VCVTDQ2PS
  const Emulated<int32_t> from(a);
  float out[16];
  for (int n = 0; n < 16; ++n) out[n] = (float)from.at[n];
  return emulated_load_ps(out);
}

#define _mm512_loadu_si512 emulated_load
#define _mm512_loadu_ps emulated_load_ps
#define _mm512_storeu_si512 emulated_store
#define _mm512_storeu_ps emulated_store_ps
#define _mm512_set1_epi32 emulated_set1_epi32
#define _mm512_setzero_si512() emulated_set1_epi32(0)
#define _mm512_set1_ps emulated_set1_ps
#define _mm512_broadcast_i32x4 emulated_broadcast_i32x4
#define _mm512_permutexvar_epi8 emulated_permutexvar_epi8
#define _mm512_movepi8_mask emulated_movepi8_mask
#define _mm512_movepi32_mask emulated_movepi32_mask
#define _mm512_add_epi8 emulated_add_epi8
#define _mm512_add_epi32 emulated_add_epi32
#define _mm512_sub_epi32 emulated_sub_epi32
#define _mm512_set1_epi8 emulated_set1_epi8
#define _mm512_set1_epi16 emulated_set1_epi16
#define _mm512_set_epi32 emulated_set_epi32
#define _mm512_srli_epi16 emulated_srli_epi16
#define _mm512_slli_epi16 emulated_slli_epi16
#define _mm512_and_si512 emulated_and
#define _mm512_or_si512 emulated_or
#define _mm512_xor_si512 emulated_xor
#define _mm512_ternarylogic_epi64 emulated_ternary
#define _mm512_shuffle_epi8 emulated_shuffle_epi8
#define _mm512_abs_epi8 emulated_abs_epi8
#define _mm512_mask_sub_epi8 emulated_mask_sub_epi8
#define _mm512_maddubs_epi16 emulated_maddubs
#define _mm512_madd_epi16 emulated_madd_epi16
#define _mm512_shuffle_i64x2 emulated_shuffle_i64x2
#define _mm512_dpbusd_epi32 emulated_dpbusd
#define _mm512_fmadd_ps emulated_fmadd_ps
#define _mm512_add_ps emulated_add_ps
#define _mm512_extractf32x8_ps emulated_half_ps
#define _mm512_castps512_ps256(a) emulated_half_ps(a, 0)
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps

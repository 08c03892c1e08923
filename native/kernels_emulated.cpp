// The AVX-512 kernels, word for word, on emulated instructions: for tests on machines without
// AVX-512 (CMake option LSB_EMULATE). Standard headers come first: they must not see the macros.
#include <cmath>
#include <cstring>

#include "emulated_avx512.h"
#include "kernels.h"

#define __AVX512F__ 1
#define __AVX512VBMI__ 1
#define __AVX512VNNI__ 1
#define LSB_TIER "avx512vnni-emulated"
#define LSB_TIER_FUNCTION emulated_kernels
#include "kernels.inl"

// The AVX-512 kernels, word for word, on emulated instructions: for tests on machines without
// AVX-512 (CMake option LSB_EMULATE). Compiled twice, with and without VBMI and VNNI. Standard
// headers come first: they must not see the macros.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "emulated_avx512.h"
#include "kernels.h"

#define LSB_EMULATED 1
#define __AVX512F__ 1
#define __AVX512BW__ 1
#if defined(LSB_EMULATE_VNNI)
#define __AVX512VBMI__ 1
#define __AVX512VNNI__ 1
#define LSB_TIER "avx512vnni-emulated"
#define LSB_TIER_FUNCTION emulated_avx512vnni_kernels
#else
#define LSB_TIER "avx512-emulated"
#define LSB_TIER_FUNCTION emulated_avx512_kernels
#endif
#include "kernels.inl"

#define LSB_TIER "avx512"
#define LSB_TIER_FUNCTION avx512_kernels
#include "kernels.inl"

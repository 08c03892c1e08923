#define LSB_TIER "avx2"
#define LSB_TIER_FUNCTION avx2_kernels
#include "kernels.inl"

#define LSB_TIER "avx512vnni"
#define LSB_TIER_FUNCTION avx512vnni_kernels
#include "kernels.inl"

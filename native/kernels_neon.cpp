#define LSB_TIER "neon"
#define LSB_TIER_FUNCTION neon_kernels
#include "kernels.inl"

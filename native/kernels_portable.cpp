#define LSB_TIER "scalar"
#define LSB_TIER_FUNCTION portable_kernels
#include "kernels.inl"

#define LSB_EMULATE_VNNI 1
#include "kernels_emulated.cpp"

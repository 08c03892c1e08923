// The whole kernel set of one tier. Include after defining LSB_TIER and LSB_TIER_FUNCTION.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "kernels.h"

namespace lsb {
namespace {
#include "vector.inl"
#include "network.inl"
#include "dense.inl"
#include "rotation.inl"
#include "attention.inl"
#include "kv_store.inl"
#include "bytes.inl"
#include "trellis.inl"
#include "viterbi.inl"
#include "encode.inl"
}  // namespace

const Kernels& LSB_TIER_FUNCTION() {
  static const Kernels table = {LSB_TIER, decode_block, planes_matmul, unpack_block, panels_matmul, dense_matmul,
                                dense_tiles, pack_tokens,
                                rotate, quantize,
                                rms_norm, rope, store_kv, attend, merge_state, finish_state,
                                attend_scratch_bytes, swiglu, dot_wide, gram, encode_tile, encode_scratch_bytes};
  return table;
}

}  // namespace lsb

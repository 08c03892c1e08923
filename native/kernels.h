// Every hot operation as a plain function on a range of work, one table of them per instruction set.
// All pointers are caller-owned; nothing here allocates. Ranges are split over threads by dispatch.cpp.
#pragma once
#include <cstdint>

#include "layout.h"

namespace lsb {

enum class Dense : int { kF32 = 0, kF16 = 1, kBF16 = 2, kI8 = 3, kSign = 4 };

// What turns a window of L bits into a weight, the same for every plane but for the levels:
//   level index = newest nibble ^ hash[0][the nibble before] ^ hash[1][the nibble before that]
// Bits of those nibbles that lie outside the window do not change their hash.
struct PlaneTables {
  int window = 0;                   // L
  int count = 0;                    // planes, <= kPlanesMax
  alignas(64) uint8_t hash[2][64];  // 16 entries, four times over
  alignas(64) uint8_t levels[kPlanesMax][64];         // int8 patterns, four times over
  alignas(64) uint8_t biased[kPlanesMax][64];         // the same + 128 on planes 1 and 5
  int8_t values[kPlanesMax][1 << kWindowMax];         // of every window, oldest bit lowest
  uint16_t offset[1 << kWindowMax];                   // level index of every window, x 32
};

struct TileView {                   // of one tile, up to kPlanesPerGroup planes that share an int8 weight
  const uint8_t* planes[kPlanesPerGroup];
  int first;                        // index of the first plane: chooses its levels
  int count;
  Shape shape;
  const PlaneTables* tables;
};

struct Activations {                // int8 rows of a sweep
  const int8_t* rows;               // [token][stride], zero from cols on
  const float* scale;               // [token][group]
  const int32_t* sum;               // [token][group]: of the group's int8 values
  int64_t tokens, cols, stride;     // stride: cols rounded up to whole strips
  int group;                        // columns that share a scale: whole strips, or all columns
};

struct DenseView {
  Dense kind;
  const void* data;               // [rows, cols] (kSign: [rows, cols/8] bits, LSB first)
  const float* scale;             // per row, for kI8 and kSign; else null
  int64_t rows, cols;
};

struct CacheView {                // one layer of a KV cache, in tiles of 16 x 16 (attention.inl)
  int key_bits, value_bits;       // 16 (half floats), 8 or 4 (integers, rotated)
  void* keys;                     // [slot][kv head][context/16][head_dim/16][tile]
  void* values;                   // [slot][kv head][head_dim/16][context/16][tile]
  uint16_t* key_scale;            // [slot][kv head][context] half floats; null where bits are 16
  uint16_t* value_scale;
  int64_t slots, context;         // context: multiple of 16
  int kv_heads, head_dim;         // head_dim: multiple of 16, at most kHeadDimMax
};

constexpr int kHeadDimMax = 512;  // 512 products of int16 and int8 stay within 32 bits
constexpr int64_t kChunk = 256;   // positions whose softmax is one part; parts are merged in order

struct AttendRows {               // rows of one slot
  const float* q;                 // [count][heads][head_dim]
  const int32_t* position;        // [count]: the last one seen
  int64_t count;
  int heads, slot;
  int64_t window;                 // positions seen; 0: all
};

struct TileJob {                  // a tile to encode
  const float* target;            // [rows, cols] weights in integer units of the first plane group
  const float* feedback;          // packed panels [cols/32][cols][32] of the unit upper factor; or null
  Shape shape;
  int block;                      // columns quantized before their error is fed back
  const PlaneTables* tables;      // one for each plane
  uint8_t* planes;                // one after another
  int16_t* decoded;               // [rows, cols] integer weights
};

// Many tokens times a dense matrix: what a thread works on at a time fits about 512 KiB of cache.
constexpr int kTileRows = 4, kTileTokens = 3;  // 12 sums and their operands fit 16 registers
constexpr int64_t kDenseRows = 32, kDenseTokens = 96, kDenseCols = 768;
constexpr int64_t kDenseScratchFloats = kDenseRows * (kDenseTokens * 16 + kDenseCols);

struct Kernels {
  const char* name;
  // codec
  void (*decode_block)(const TileView&, int64_t block, int8_t* out);  // [32][whole strips]
  void (*planes_matmul)(const TileView&, const Activations&, const float* row_scale, float unit,
                        int64_t block_begin, int64_t block_end, float* out, int64_t stride,
                        bool accumulate, void* scratch);  // out [token][stride], from the tile's first row
  // The same from decoded weights: a block of a tile as `unpack_block` leaves it, [strip][512 bytes].
  void (*unpack_block)(const TileView&, int64_t block, uint8_t* panels);
  void (*panels_matmul)(const uint8_t* panels, const Shape&, const Activations&, const float* row_scale,
                        float unit, int64_t block_begin, int64_t block_end, float* out, int64_t stride,
                        bool accumulate, void* scratch);
  // Rows [row_begin, row_end) of x W^T: for few tokens, and for up to kDenseTokens packed ones and
  // up to kDenseRows rows. `panel`: 4 rows of whole steps of 16.
  void (*dense_matmul)(const DenseView&, const float* x, int64_t tokens, int64_t row_begin,
                       int64_t row_end, float* out, float* panel);
  void (*dense_tiles)(const DenseView&, const float* packed, int64_t tokens, int64_t row_begin,
                      int64_t row_end, float* out, float* scratch);
  void (*pack_tokens)(const float* x, int64_t tokens, int64_t cols, int64_t tile, float* packed);
  void (*rotate)(const float* in, const float* scale, int64_t rows, int64_t cols, int block,
                 const float* mix, bool inverse, float* out, float* scratch);
  void (*quantize)(const float* x, int64_t cols, int group, int8_t* q, float* scale, int32_t* sum);
  // network
  void (*rms_norm)(const float* x, const float* gain, int64_t rows, int64_t cols, float eps, float* out);
  void (*rope)(float* x, const float* cosine, const float* sine, const int32_t* position,
               int64_t rows, int heads, int head_dim);
  void (*store_kv)(const CacheView&, const float* k, const float* v, int slot, int64_t position, int kv_head);
  void (*attend)(const CacheView&, const AttendRows&, int kv_head, int64_t chunk_begin, int64_t chunk_end,
                 float* states, void* scratch);
  void (*merge_state)(float* into, const float* from, int head_dim);
  void (*finish_state)(const CacheView&, const float* state, float* out);
  int64_t (*attend_scratch_bytes)(int64_t queries, int head_dim);
  void (*swiglu)(const float* gate, const float* up, int64_t count, float* out);
  // calibration and encoding
  double (*dot)(const float* a, const float* b, int64_t count);
  void (*gram)(const float* panels, int64_t tokens, int64_t cols, int64_t i_block, int64_t j_block,
               float* h);
  void (*encode_tile)(const TileJob&, void* scratch);
  int64_t (*encode_scratch_bytes)(const TileJob&);
};

// Floats of what a query has found in some chunks: see attention.inl.
inline int64_t state_floats(int head_dim) { return head_dim + 16; }

inline int64_t group_strips(int64_t group) { return (group + kStrip - 1) / kStrip; }

constexpr int64_t kPanelStripBytes = kStrip * kBlockRows;  // decoded weights of one strip of a block

// Bytes of scratch that planes_matmul wants for `tokens` rows in groups of `group` columns.
inline int64_t planes_scratch_bytes(int64_t tokens, int64_t group) {
  return group_strips(group) * kStrip * kBlockRows + (tokens + 1) * kBlockRows * (int64_t)sizeof(float);
}

const Kernels& portable_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512vnni_kernels();
const Kernels& neon_kernels();
const Kernels& emulated_avx512_kernels();
const Kernels& emulated_avx512vnni_kernels();

}  // namespace lsb

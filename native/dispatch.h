// Chooses the tier once, splits work over threads, owns the packed activations. No model knowledge.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

namespace lsb {

const Kernels& active();
std::vector<std::string> available_tiers();  // worst first
void use_tier(const std::string& name);      // throws std::invalid_argument

// hashes [2][16] nibbles, levels [planes][16]; throws std::invalid_argument
PlaneTables make_tables(int window, const uint8_t* hashes, int planes, const int8_t* levels);

// int8 rows of a sweep: one piece of memory, sized once for `tokens_max` rows.
class PackedRows {
 public:
  // memory: tokens_max * row_bytes of the caller's, aligned to 4, or null for its own.
  PackedRows(int64_t tokens_max, int64_t cols, int group, uint8_t* memory = nullptr);
  static int64_t row_bytes(int64_t cols, int group);
  void resize(int64_t tokens);     // rows to come; throws std::invalid_argument beyond tokens_max
  void pack_row(const Kernels& kernels, int64_t token, const float* x);
  void pack(const float* x, int64_t tokens);
  Activations view() const;
  int64_t cols() const { return cols_; }
  int64_t tokens() const { return tokens_; }
  int64_t tokens_max() const { return tokens_max_; }
  int group() const { return group_; }

 private:
  int64_t tokens_max_, cols_, stride_, tokens_ = 0;
  int group_;
  std::unique_ptr<uint8_t[]> own_;
  int8_t* bytes_;                  // [token][stride], zero from cols on
  float* scale_;                   // [token][group]
  int32_t* sum_;
};

struct Planes {                     // of a matrix
  std::vector<const uint8_t*> tiles;  // first byte of each
  Geometry geometry;
  const PlaneTables* tables;        // one for each plane
};

// Outliers: per row a count, then column gaps. Narrow gaps are bytes (255: advance 255, no entry),
// wide ones are 16-bit columns.
constexpr int64_t kSparseRows = 256;
struct Sparse {
  struct Start { const uint8_t* index; int64_t value; };
  const uint16_t* counts;
  const void* values;
  Dense kind;
  bool wide;
  int64_t rows, cols;
  std::vector<Start> starts;      // of every kSparseRows-th row
};
Sparse make_sparse(const uint16_t* counts, const uint8_t* index, bool wide, const void* values, Dense kind,
                   int64_t rows, int64_t cols);

// Rows of 32-row blocks [begin, end) of y = x W^T, on the thread that calls. out [token][stride].
void multiply_blocks(const Planes& planes, const Activations& x, const float* row_scale, int64_t begin, int64_t end,
                     float* out, int64_t stride, int thread);
void planes_matmul(const Planes& planes, const Activations& x, const float* row_scale, float* out, int64_t stride);
// The integer weights of planes, decoded: a byte each, or two where there are more than four planes.
// Faster than decoding where memory is faster than that, and the same bits.
class UnpackedPlanes {
 public:
  explicit UnpackedPlanes(const Planes& planes);  // for the tier in use now
  int64_t rows() const { return shape_.rows; }
  int64_t cols() const { return shape_.cols; }
  int64_t blocks() const { return shape_.blocks(); }
  int64_t bytes() const { return groups_ * group_bytes(); }
  void multiply_blocks(const Activations& x, const float* row_scale, int64_t begin, int64_t end, float* out,
                       int64_t stride, int thread) const;

 private:
  int64_t block_bytes() const { return shape_.strips() * kPanelStripBytes; }
  int64_t group_bytes() const { return shape_.blocks() * block_bytes(); }

  const Kernels* kernels_;        // panels are laid out for one tier
  Shape shape_;
  int groups_;                    // of planes
  std::unique_ptr<uint8_t, void (*)(void*)> panels_;
};

void planes_decode(const Planes& planes, int64_t row_begin, int64_t row_end, int16_t* out);
void dense_matmul(const DenseView& w, const float* x, int64_t tokens, float* out);
void rotate(const float* in, const float* scale, int64_t rows, int64_t cols, int block,
            const float* mix, bool inverse, float* out);
void sparse_matmul(const Sparse& weight, const float* x, int64_t tokens, float* out);
void row_dots(const float* a, const float* b, int64_t rows, int64_t cols, double* out);
void gram(const float* x, int64_t tokens, int64_t cols, float* h, int64_t padded);
// Encodes a matrix, given as if it were one tile, into the tiles of `geometry`, each on its own.
void encode(const TileJob& matrix, const Geometry& geometry, const std::vector<uint8_t*>& tiles);

// The KV cache (attention.cpp). Slots and positions must lie within it.
void check(const CacheView& cache);  // throws std::invalid_argument
void store_kv(const CacheView& cache, const float* k, const float* v, const int32_t* slot,
              const int32_t* position, int64_t rows);
void attend(const CacheView& cache, const float* q, int heads, const int32_t* slot,
            const int32_t* position, int64_t rows, int64_t window, float* out);
// Bytes of scratch that attend takes at most, whatever the rows.
int64_t attend_bytes(int64_t context, int heads, int kv_heads, int head_dim, int threads);

uint64_t sum_words(const uint64_t* words, int64_t count);  // what reading memory costs at least
void pack_panels(const float* x, int64_t rows, int64_t cols, int64_t stride, float* panels);

}  // namespace lsb

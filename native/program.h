// A layer's operations, recorded once and run in one call for any number of token rows.
//
// Operations run in the order they were recorded. Those that follow each other and treat every row
// by itself become one pass over the rows; products of one input become one pass over the blocks of
// all their matrices. Buffers are the caller's, [rows_max][columns], and must outlive the program.
#pragma once
#include <functional>
#include <vector>

#include "dispatch.h"

namespace lsb {

struct Places {                   // where the rows of a run stand in the cache
  const int32_t* slot;
  const int32_t* position;
  int64_t rows;
};

struct Rotation {                 // of an input: see Kernels::rotate
  const float* scale;
  const float* mix;
  int64_t cols;
  int block;
};

class Program {
 public:
  void rms_norm(const float* x, const float* gain, int64_t cols, float eps, float* out);
  void add(const float* x, int64_t cols, float* to);
  void add_bias(const float* bias, int64_t cols, float* to);
  void swiglu(const float* gate, const float* up, int64_t cols, float* out);
  void rope(float* x, const float* cosine, const float* sine, int heads, int head_dim);
  void pack(const float* x, const Rotation& rotation, PackedRows* out);

  void multiply(const Planes& planes, const float* row_scale, const PackedRows* x, float* out);
  void multiply(const UnpackedPlanes& planes, const float* row_scale, const PackedRows* x, float* out);
  void multiply(const DenseView& weight, const float* x, float* out);
  void add_sparse(const Sparse& weight, const float* x, float* out);
  void store_kv(const CacheView& cache, const float* k, const float* v);
  void attend(const CacheView& cache, const float* q, int heads, int64_t window, float* out);

  int64_t mark();                 // ends a step; returns the number of the next one
  int64_t steps() const { return (int64_t)steps_.size(); }
  void run(const Places& places, int64_t begin, int64_t end) const;

 private:
  using RowWork = std::function<void(const Kernels&, const Places&, int64_t begin, int64_t end, int thread)>;
  struct Product {
    Planes planes;                  // or, if not null:
    const UnpackedPlanes* unpacked;
    const float* row_scale;
    float* out;

    int64_t rows() const { return unpacked ? unpacked->rows() : planes.geometry.rows; }
    int64_t blocks() const { return unpacked ? unpacked->blocks() : planes.geometry.blocks(); }
  };
  struct Step {                   // one of the three
    std::vector<RowWork> rows;
    std::vector<Product> products;
    std::function<void(const Places&)> whole;
    std::vector<PackedRows*> packed;  // filled by `rows`
    const PackedRows* input = nullptr;
    bool closed = false;
  };

  Step& rows_step();
  Step& products_step(const PackedRows* x);
  void each_row(RowWork work);
  void at_once(std::function<void(const Places&)> work);
  static void run_rows(const Step& step, const Places& places);
  static void run_products(const Step& step);

  std::vector<Step> steps_;
};

}  // namespace lsb

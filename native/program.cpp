#include "program.h"

#include <algorithm>
#include <utility>

#include "pool.h"

namespace lsb {

Program::Step& Program::rows_step() {
  if (steps_.empty() || steps_.back().closed || steps_.back().rows.empty()) steps_.emplace_back();
  return steps_.back();
}

void Program::each_row(RowWork work) { rows_step().rows.push_back(std::move(work)); }

void Program::at_once(std::function<void(const Places&)> work) {
  steps_.emplace_back();
  steps_.back().whole = std::move(work);
}

void Program::rms_norm(const float* x, const float* gain, int64_t cols, float eps, float* out) {
  each_row([=](const Kernels& kernels, const Places&, int64_t begin, int64_t end, int) {
    kernels.rms_norm(x + begin * cols, gain, end - begin, cols, eps, out + begin * cols);
  });
}

void Program::add(const float* x, int64_t cols, float* to) {
  each_row([=](const Kernels&, const Places&, int64_t begin, int64_t end, int) {
    for (int64_t i = begin * cols; i < end * cols; ++i) to[i] += x[i];
  });
}

void Program::add_bias(const float* bias, int64_t cols, float* to) {
  each_row([=](const Kernels&, const Places&, int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t c = 0; c < cols; ++c) to[r * cols + c] += bias[c];
  });
}

void Program::swiglu(const float* gate, const float* up, int64_t cols, float* out) {
  each_row([=](const Kernels& kernels, const Places&, int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) kernels.swiglu(gate + r * cols, up + r * cols, cols, out + r * cols);
  });
}

void Program::rope(float* x, const float* cosine, const float* sine, int heads, int head_dim) {
  each_row([=](const Kernels& kernels, const Places& places, int64_t begin, int64_t end, int) {
    kernels.rope(x + begin * heads * head_dim, cosine, sine, places.position + begin, end - begin, heads, head_dim);
  });
}

void Program::pack(const float* x, const Rotation& rotation, PackedRows* out) {
  each_row([=](const Kernels& kernels, const Places&, int64_t begin, int64_t end, int thread) {
    const int64_t cols = rotation.cols;
    auto* rotated = (float*)scratch(thread, 0, 2 * cols * sizeof(float));
    for (int64_t r = begin; r < end; ++r) {
      kernels.rotate(x + r * cols, rotation.scale, 1, cols, rotation.block, rotation.mix, false, rotated, rotated + cols);
      out->pack_row(kernels, r, rotated);
    }
  });
  steps_.back().packed.push_back(out);
}

Program::Step& Program::products_step(const PackedRows* x) {
  if (steps_.empty() || steps_.back().closed || steps_.back().input != x) steps_.emplace_back();
  steps_.back().input = x;
  return steps_.back();
}

void Program::multiply(const Planes& planes, const float* row_scale, const PackedRows* x, float* out) {
  products_step(x).products.push_back({planes, nullptr, row_scale, out});
}

void Program::multiply(const UnpackedPlanes& planes, const float* row_scale, const PackedRows* x, float* out) {
  products_step(x).products.push_back({{}, &planes, row_scale, out});
}

void Program::multiply(const DenseView& weight, const float* x, float* out) {
  at_once([=](const Places& places) { dense_matmul(weight, x, places.rows, out); });
}

void Program::add_sparse(const Sparse& weight, const float* x, float* out) {
  at_once([=](const Places& places) { sparse_matmul(weight, x, places.rows, out); });
}

void Program::store_kv(const CacheView& cache, const float* k, const float* v) {
  at_once([=](const Places& places) { lsb::store_kv(cache, k, v, places.slot, places.position, places.rows); });
}

void Program::attend(const CacheView& cache, const float* q, int heads, int64_t window, float* out) {
  at_once([=](const Places& places) {
    lsb::attend(cache, q, heads, places.slot, places.position, places.rows, window, out);
  });
}

int64_t Program::mark() {
  if (!steps_.empty()) steps_.back().closed = true;
  return steps();
}

void Program::run_rows(const Step& step, const Places& places) {
  for (PackedRows* packed : step.packed) packed->resize(places.rows);
  const Kernels& kernels = active();
  split(places.rows, 1, [&](int64_t begin, int64_t end, int thread) {
    for (const RowWork& work : step.rows) work(kernels, places, begin, end, thread);
  });
}

void Program::run_products(const Step& step) {
  const Activations x = step.input->view();
  int64_t blocks = 0;
  for (const Product& product : step.products) blocks += product.blocks();
  split(blocks, x.tokens > 1 ? 1 : 4, [&](int64_t begin, int64_t end, int thread) {
    for (const Product& p : step.products) {
      const int64_t own = p.blocks(), first = std::max<int64_t>(begin, 0), stop = std::min(end, own);
      if (first < stop && p.unpacked) p.unpacked->multiply_blocks(x, p.row_scale, first, stop, p.out, p.rows(), thread);
      else if (first < stop) multiply_blocks(p.planes, x, p.row_scale, first, stop, p.out, p.rows(), thread);
      begin -= own, end -= own;
    }
  });
}

void Program::run(const Places& places, int64_t begin, int64_t end) const {
  for (int64_t i = begin; i < end; ++i) {
    const Step& step = steps_[i];
    if (step.whole) step.whole(places);
    else if (step.input) run_products(step);
    else run_rows(step, places);
  }
}

}  // namespace lsb

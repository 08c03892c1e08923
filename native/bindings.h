// What the binding files share: array types and checks of shapes.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "dispatch.h"

namespace lsb {

namespace nb = nanobind;

template <typename T, int N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <int N> using Floats = Array<const float, N>;
template <int N> using FloatsOut = Array<float, N>;
template <int N> using AnyArray = nb::ndarray<nb::ro, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

inline void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

// An array is never converted: a converted output would be written to a copy that nobody sees.
inline auto array(const char* name) { return nb::arg(name).noconvert(); }

// One layer of a KV cache: arrays checked once, kept alive.
struct LayerCache {
  using Scales = std::optional<Array<uint16_t, 3>>;  // none with 16 bits

  LayerCache(Array<uint8_t, 5> keys, Array<uint8_t, 5> values, Scales key_scale, Scales value_scale);

  Array<uint8_t, 5> keys, values;                    // as in CacheView, a tile its bytes
  Scales key_scale, value_scale;
  CacheView view{};

 private:
  uint16_t* scale_data(const Scales& scales, int bits) const;
};
void check_heads(const CacheView& cache, int heads, int64_t window);

Geometry make_geometry(int64_t rows, int64_t cols, int tile_rows);
Planes make_planes(const std::vector<Array<const uint8_t, 1>>& extents, int64_t rows, int64_t cols, int tile_rows,
                   const PlaneTables& tables);
DenseView make_dense(int kind, const AnyArray<2>& w, const std::optional<Floats<1>>& scale, int64_t cols);
Sparse make_outliers(const Array<const uint16_t, 1>& counts, const AnyArray<1>& index, const AnyArray<1>& values,
                     int kind, int64_t cols);
void check_places(const Array<const int32_t, 1>& slot, const Array<const int32_t, 1>& position, int64_t rows,
                  int64_t slots, int64_t context);
void check_rotation(const Floats<1>& scale, int block, const std::optional<Floats<2>>& mix, int64_t cols);

void bind_cache(nb::module_& m);    // bindings_cache.cpp
void bind_program(nb::module_& m);  // bindings_program.cpp

}  // namespace lsb

// The KV cache as Python sees it.
#include "bindings.h"

namespace lsb {

namespace {

int bits_of_tile(size_t bytes) {
  require(bytes == 512 || bytes == 256 || bytes == 128, "a tile has 512, 256 or 128 bytes");
  return (int)bytes / 32;
}

}  // namespace

LayerCache::LayerCache(Array<uint8_t, 5> k, Array<uint8_t, 5> v, Scales ks, Scales vs)
    : keys(k), values(v), key_scale(ks), value_scale(vs) {
  constexpr int kTransposed[] = {0, 1, 3, 2};
  for (int i = 0; i < 4; ++i)
    require(k.shape(i) == v.shape(kTransposed[i]) && k.shape(i) < (1 << 26), "keys and values disagree");
  view = {bits_of_tile(k.shape(4)), bits_of_tile(v.shape(4)), k.data(), v.data(), nullptr, nullptr,
          (int64_t)k.shape(0), (int64_t)k.shape(2) * 16, (int)k.shape(1), (int)k.shape(3) * 16};
  lsb::check(view);
  view.key_scale = scale_data(ks, view.key_bits);
  view.value_scale = scale_data(vs, view.value_bits);
}

uint16_t* LayerCache::scale_data(const Scales& scales, int bits) const {
  require(scales.has_value() == (bits < 16), "scales belong to 8 and 4 bits");
  if (!scales) return nullptr;
  require((int64_t)scales->shape(0) == view.slots && (int)scales->shape(1) == view.kv_heads &&
          (int64_t)scales->shape(2) == view.context, "scales disagree with the cache");
  return scales->data();
}

void check_heads(const CacheView& cache, int heads, int64_t window) {
  require(heads > 0 && heads % cache.kv_heads == 0, "heads disagree with the cache");
  require(window >= 0, "the window must not be negative");
}

namespace {

void py_store_kv(const LayerCache& cache, Floats<2> k, Floats<2> v, Array<const int32_t, 1> slot,
                 Array<const int32_t, 1> position) {
  const CacheView& c = cache.view;
  const int64_t rows = k.shape(0), width = (int64_t)c.kv_heads * c.head_dim;
  require((int64_t)k.shape(1) == width && (int64_t)v.shape(1) == width && (int64_t)v.shape(0) == rows,
          "k and v disagree with the cache");
  check_places(slot, position, rows, c.slots, c.context);
  nb::gil_scoped_release release;
  store_kv(c, k.data(), v.data(), slot.data(), position.data(), rows);
}

void py_attend(const LayerCache& cache, Floats<2> q, int heads, Array<const int32_t, 1> slot,
               Array<const int32_t, 1> position, int64_t window, FloatsOut<2> out) {
  const CacheView& c = cache.view;
  const int64_t rows = q.shape(0);
  check_heads(c, heads, window);
  require((int64_t)q.shape(1) == (int64_t)heads * c.head_dim && out.shape(0) == q.shape(0) &&
          out.shape(1) == q.shape(1), "q and out disagree");
  check_places(slot, position, rows, c.slots, c.context);
  nb::gil_scoped_release release;
  attend(c, q.data(), heads, slot.data(), position.data(), rows, window, out.data());
}

}  // namespace

void bind_cache(nb::module_& m) {
  using Scales = LayerCache::Scales;
  nb::class_<LayerCache>(m, "LayerCache")
      .def(nb::init<Array<uint8_t, 5>, Array<uint8_t, 5>, Scales, Scales>(), array("keys"), array("values"),
           array("key_scale").none(), array("value_scale").none())
      .def_prop_ro("bits", [](const LayerCache& self) { return nb::make_tuple(self.view.key_bits, self.view.value_bits); });
  m.def("store_kv", &py_store_kv, nb::arg("cache"), array("k"), array("v"), array("slot"), array("position"));
  m.def("attend", &py_attend, nb::arg("cache"), array("q"), nb::arg("heads"), array("slot"), array("position"),
        nb::arg("window"), array("out"));
  m.def("attend_bytes", [](int64_t context, int heads, int kv_heads, int head_dim, int threads) {
    require(context > 0 && kv_heads > 0 && heads >= kv_heads && head_dim > 0 && threads > 0, "sizes must be positive");
    return attend_bytes(context, heads, kv_heads, head_dim, threads);
  }, nb::arg("context"), nb::arg("heads"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("threads"));
}

}  // namespace lsb

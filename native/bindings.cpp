// The only file that knows Python. Arrays are C-contiguous and checked here, once; the GIL is
// released around every kernel.
#include "bindings.h"

#include <algorithm>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "crc32c.h"
#include "pool.h"

using namespace lsb;

Geometry lsb::make_geometry(int64_t rows, int64_t cols, int tile_rows) {
  require(rows > 0 && cols > 0 && cols % kQuad == 0, "columns must be a multiple of 4");
  require(tile_rows >= kBlockRows && tile_rows % kBlockRows == 0, "tile rows must be a multiple of 32");
  return {{rows, cols}, tile_rows};
}

// First byte of each tile: extents hold whole tiles one after another.
template <typename T>
static std::vector<T*> tiles_of(const std::vector<Array<T, 1>>& extents, const Geometry& geometry, int planes) {
  std::vector<T*> tiles;
  for (const auto& extent : extents)
    for (int64_t at = 0, left = extent.size(); left;) {
      require((int64_t)tiles.size() < geometry.tiles(), "extents hold more than the tiles of the matrix");
      const int64_t nbytes = planes * geometry.tile(tiles.size()).plane_bytes();
      require(nbytes <= left, "extents must hold whole tiles");
      tiles.push_back(extent.data() + at);
      at += nbytes, left -= nbytes;
    }
  require((int64_t)tiles.size() == geometry.tiles(), "extents hold less than the tiles of the matrix");
  return tiles;
}

Planes lsb::make_planes(const std::vector<Array<const uint8_t, 1>>& extents, int64_t rows, int64_t cols,
                        int tile_rows, const PlaneTables& tables) {
  const Geometry geometry = make_geometry(rows, cols, tile_rows);
  return {tiles_of(extents, geometry, tables.count), geometry, &tables};
}

static uint32_t py_crc32c(nb::object buffer, uint32_t seed) {
  Py_buffer view;
  if (PyObject_GetBuffer(buffer.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
  uint32_t crc;
  {
    nb::gil_scoped_release release;
    crc = crc32c(static_cast<const uint8_t*>(view.buf), view.len, seed);
  }
  PyBuffer_Release(&view);
  return crc;
}

DenseView lsb::make_dense(int kind, const AnyArray<2>& w, const std::optional<Floats<1>>& scale, int64_t cols) {
  static const size_t kBytes[] = {4, 2, 2, 1, 1};
  require(kind >= 0 && kind <= 4 && w.itemsize() == kBytes[kind], "weight type disagrees with its kind");
  DenseView v{(Dense)kind, w.data(), nullptr, (int64_t)w.shape(0), cols};
  require((int64_t)w.shape(1) == (v.kind == Dense::kSign ? (cols + 7) / 8 : cols), "columns disagree");
  if (scale) {
    require((int64_t)scale->size() == v.rows, "one scale for each row");
    v.scale = scale->data();
  }
  return v;
}

static void py_dense_matmul(int kind, AnyArray<2> w, std::optional<Floats<1>> scale, Floats<2> x, FloatsOut<2> out) {
  const DenseView v = make_dense(kind, w, scale, x.shape(1));
  require(out.shape(0) == x.shape(0) && (int64_t)out.shape(1) == v.rows, "output shape disagrees");
  nb::gil_scoped_release release;
  dense_matmul(v, x.data(), x.shape(0), out.data());
}

void lsb::check_rotation(const Floats<1>& scale, int block, const std::optional<Floats<2>>& mix, int64_t cols) {
  require(block > 0 && (block & (block - 1)) == 0 && cols % block == 0, "block must be a power of two that divides the columns");
  require(block >= 4 || !mix, "mixing needs blocks of at least 4");
  require((int64_t)scale.size() == cols, "one scale for each column");
  if (mix) require((int64_t)mix->shape(0) == cols / block && mix->shape(1) == mix->shape(0), "mix must be blocks x blocks");
}

static void py_rotate(Floats<2> x, Floats<1> scale, int block, std::optional<Floats<2>> mix, bool inverse,
                      FloatsOut<2> out) {
  const int64_t cols = x.shape(1);
  check_rotation(scale, block, mix, cols);
  require(out.shape(0) == x.shape(0) && (int64_t)out.shape(1) == cols, "output shape disagrees");
  nb::gil_scoped_release release;
  rotate(x.data(), scale.data(), x.shape(0), cols, block, mix ? mix->data() : nullptr, inverse, out.data());
}

Sparse lsb::make_outliers(const Array<const uint16_t, 1>& counts, const AnyArray<1>& index, const AnyArray<1>& values,
                          int kind, int64_t cols) {
  require(kind >= 0 && kind <= 2 && values.itemsize() == (kind == 0 ? 4 : 2), "value type disagrees with its kind");
  return make_sparse(counts.data(), (const uint8_t*)index.data(), index.itemsize() == 2, values.data(), (Dense)kind,
                     counts.size(), cols);
}

static void py_sparse(Array<const uint16_t, 1> counts, AnyArray<1> index, AnyArray<1> values, int kind, Floats<2> x,
                      FloatsOut<2> out) {
  const Sparse sparse = make_outliers(counts, index, values, kind, x.shape(1));
  require((int64_t)out.shape(1) == sparse.rows && out.shape(0) == x.shape(0), "output shape disagrees");
  nb::gil_scoped_release release;
  sparse_matmul(sparse, x.data(), x.shape(0), out.data());
}

void lsb::check_places(const Array<const int32_t, 1>& slot, const Array<const int32_t, 1>& position,
                       int64_t rows, int64_t slots, int64_t context) {
  require((int64_t)slot.size() == rows && (int64_t)position.size() == rows, "one place for each row");
  for (int64_t r = 0; r < rows; ++r)
    require(slot.data()[r] >= 0 && slot.data()[r] < slots && position.data()[r] >= 0 &&
            position.data()[r] < context, "a row lies outside the cache");
}

static void py_rope(FloatsOut<2> x, Floats<2> cosine, Floats<2> sine, Array<const int32_t, 1> position, int head_dim) {
  require(head_dim > 0 && (int64_t)cosine.shape(1) * 2 == head_dim && sine.shape(0) == cosine.shape(0) && sine.shape(1) == cosine.shape(1) && (int64_t)x.shape(1) % head_dim == 0, "rotary tables disagree");
  require(position.size() == x.shape(0), "one position for each row");
  for (size_t r = 0; r < position.size(); ++r)
    require(position.data()[r] >= 0 && position.data()[r] < (int64_t)cosine.shape(0), "position beyond the rotary table");
  nb::gil_scoped_release release;
  active().rope(x.data(), cosine.data(), sine.data(), position.data(), x.shape(0), (int)(x.shape(1) / head_dim), head_dim);
}

static void py_rms_norm(Floats<2> x, Floats<1> gain, float eps, FloatsOut<2> out) {
  require(gain.size() == x.shape(1) && out.shape(0) == x.shape(0) && out.shape(1) == x.shape(1), "norm shapes disagree");
  nb::gil_scoped_release release;
  active().rms_norm(x.data(), gain.data(), x.shape(0), x.shape(1), eps, out.data());
}

static void py_swiglu(Floats<2> gate, Floats<2> up, FloatsOut<2> out) {
  require(gate.size() == up.size() && gate.size() == out.size(), "swiglu shapes disagree");
  nb::gil_scoped_release release;
  const int64_t rows = gate.shape(0), cols = gate.shape(1);
  parallel(rows, [&](int64_t r, int) {
    active().swiglu(gate.data() + r * cols, up.data() + r * cols, cols, out.data() + r * cols);
  });
}

static void py_gram(Floats<2> x, FloatsOut<2> h) {
  const int64_t padded = (int64_t)(x.shape(1) + 31) / 32 * 32;
  require((int64_t)h.shape(0) == padded && (int64_t)h.shape(1) == padded, "h must be square, columns rounded up to 32");
  nb::gil_scoped_release release;
  gram(x.data(), x.shape(0), x.shape(1), h.data(), padded);
}

static void py_row_dots(Floats<2> a, Floats<2> b, Array<double, 1> out) {
  require(a.shape(0) == b.shape(0) && a.shape(1) == b.shape(1) && out.size() == a.shape(0), "row shapes disagree");
  nb::gil_scoped_release release;
  row_dots(a.data(), b.data(), a.shape(0), a.shape(1), out.data());
}

static void py_pack_panels(Floats<2> x, FloatsOut<3> panels) {
  require(panels.shape(0) == (x.shape(1) + 31) / 32 && panels.shape(1) == x.shape(0) && panels.shape(2) == 32, "panels disagree");
  nb::gil_scoped_release release;
  pack_panels(x.data(), x.shape(0), x.shape(1), x.shape(1), panels.data());
}

static void py_encode(Floats<2> target, std::optional<Floats<3>> feedback, const PlaneTables& tables, int tile_rows,
                      int block, std::vector<Array<uint8_t, 1>> extents, Array<int16_t, 2> decoded) {
  const Geometry g = make_geometry(target.shape(0), target.shape(1), tile_rows);
  TileJob job{};
  job.target = target.data();
  job.block = block;
  job.tables = &tables;
  require(block > 0 && block % kQuad == 0 && 64 % block == 0, "block must be 4, 8, 16, 32 or 64");
  require((int64_t)decoded.shape(0) == g.rows && (int64_t)decoded.shape(1) == g.cols, "decoded shape disagrees");
  if (feedback) {
    require((int64_t)feedback->shape(0) == (g.cols + 31) / 32 && (int64_t)feedback->shape(1) == g.cols && feedback->shape(2) == 32, "feedback panels disagree");
    job.feedback = feedback->data();
  }
  job.decoded = decoded.data();
  const std::vector<uint8_t*> tiles = tiles_of(extents, g, tables.count);
  nb::gil_scoped_release release;
  encode(job, g, tiles);
}

// Which of consecutive blocks has another checksum than expected, -1 when none: crc32c of the block's
// number, 8 bytes little endian, and its bytes. The last block may be short.
static int64_t damaged_block(Array<const uint8_t, 1> data, int64_t first, int64_t block_bytes,
                             Array<const uint32_t, 1> expected) {
  const int64_t size = data.size();
  require(first >= 0 && block_bytes > 0, "a block has a number and at least one byte");
  require((int64_t)expected.size() == (size + block_bytes - 1) / block_bytes, "one checksum for each block");
  nb::gil_scoped_release release;
  for (int64_t i = 0, at = 0; at < size; ++i, at += block_bytes) {
    uint8_t number[8];
    for (int byte = 0; byte < 8; ++byte) number[byte] = (uint8_t)((uint64_t)(first + i) >> 8 * byte);
    const int64_t bytes = std::min(block_bytes, size - at);
    if (crc32c(data.data() + at, bytes, crc32c(number, 8, 0)) != expected.data()[i]) return i;
  }
  return -1;
}

// Pages that the allocator keeps for later allocations go back to the system.
static void release_free_memory() {
#if defined(__GLIBC__)
  nb::gil_scoped_release release;
  malloc_trim(0);
#endif
}

NB_MODULE(_native, m) {
  m.doc() = "Kernels of Loop Singular Bit: see native/ for what each does.";
  nb::set_leak_warnings(false);  // prepared tables are cached for the life of the process
  m.def("crc32c", &py_crc32c, nb::arg("buffer"), nb::arg("seed") = 0);
  m.def("damaged_block", &damaged_block, array("data"), nb::arg("first"), nb::arg("block_bytes"), array("expected"));
  m.def("release_free_memory", &release_free_memory);
  m.def("set_threads", &set_threads, nb::arg("count"));
  m.def("threads", &threads);
  m.def("available_tiers", &available_tiers);
  m.def("use_tier", &use_tier, nb::arg("name"));
  m.def("active_tier", [] { return std::string(active().name); });

  nb::class_<PlaneTables>(m, "PlaneTables")
      .def("__init__", [](PlaneTables* self, int window, Array<const uint8_t, 2> hashes, Array<const int8_t, 2> levels) {
        require(hashes.shape(0) == 2 && hashes.shape(1) == kLevels, "hashes must be [2, 16]");
        require(levels.shape(1) == kLevels, "levels must be [planes, 16]");
        new (self) PlaneTables(make_tables(window, hashes.data(), (int)levels.shape(0), levels.data()));
      }, nb::arg("window"), array("hashes"), array("levels"))
      .def_ro("window", &PlaneTables::window)
      .def_ro("count", &PlaneTables::count);

  nb::class_<PackedRows>(m, "PackedRows")
      .def("__init__", [](PackedRows* self, int64_t tokens_max, int64_t cols, int group,
                          std::optional<Array<uint8_t, 1>> memory) {
        if (memory) {
          const int64_t needed = PackedRows::row_bytes(cols, group);
          require(tokens_max >= 1 && (int64_t)memory->size() / needed >= tokens_max, "too little memory for the rows");
          require((uintptr_t)memory->data() % alignof(float) == 0, "memory must be aligned to 4 bytes");
        }
        new (self) PackedRows(tokens_max, cols, group, memory ? memory->data() : nullptr);
      }, nb::keep_alive<1, 5>(), nb::arg("tokens_max"), nb::arg("cols"), nb::arg("group"), array("memory").none() = nb::none())
      .def_static("row_bytes", &PackedRows::row_bytes, nb::arg("cols"), nb::arg("group"))
      .def("pack", [](PackedRows& self, Floats<2> x) {
        require((int64_t)x.shape(1) == self.cols(), "columns disagree");
        nb::gil_scoped_release release;
        self.pack(x.data(), x.shape(0));
      }, array("x"))
      .def_prop_ro("tokens", &PackedRows::tokens)
      .def_prop_ro("group", &PackedRows::group)
      .def("quantized", [](const PackedRows& self, Array<int8_t, 2> q, FloatsOut<2> scale) {
        require((int64_t)q.size() == self.tokens() * self.cols() && (int64_t)scale.size() == self.tokens() * (self.cols() / self.group()), "shapes disagree");
        const Activations view = self.view();
        for (int64_t t = 0; t < view.tokens; ++t) std::copy_n(view.rows + t * view.stride, view.cols, q.data() + t * view.cols);
        std::copy_n(view.scale, scale.size(), scale.data());
      }, array("q"), array("scale"));

  m.def("plane_bytes", [](int64_t rows, int64_t cols) {
    return make_geometry(rows, cols, kBlockRows).plane_bytes();
  }, nb::arg("rows"), nb::arg("cols"));
  m.def("planes_matmul", [](std::vector<Array<const uint8_t, 1>> extents, int64_t rows, int64_t cols, int tile_rows,
                            const PlaneTables& tables, Floats<1> row_scale, const PackedRows& x, FloatsOut<2> out,
                            int64_t row_begin) {
    const Planes planes = make_planes(extents, rows, cols, tile_rows, tables);
    const int64_t stride = out.shape(1);
    require(x.cols() == cols && (int64_t)row_scale.size() == rows, "shapes disagree");
    require((int64_t)out.shape(0) == x.tokens() && row_begin >= 0 && row_begin + rows <= stride, "output shape disagrees");
    nb::gil_scoped_release release;
    planes_matmul(planes, x.view(), row_scale.data(), out.data() + row_begin, stride);
  }, array("extents"), nb::arg("rows"), nb::arg("cols"), nb::arg("tile_rows"), nb::arg("tables"),
     array("row_scale"), nb::arg("x"), array("out"), nb::arg("row_begin") = 0);
  m.def("planes_decode", [](std::vector<Array<const uint8_t, 1>> extents, int64_t rows, int64_t cols, int tile_rows,
                            const PlaneTables& tables, int64_t row_begin, Array<int16_t, 2> out) {
    Planes planes = make_planes(extents, rows, cols, tile_rows, tables);
    require((int64_t)out.shape(1) == cols && row_begin >= 0 && row_begin + (int64_t)out.shape(0) <= rows, "rows out of range");
    nb::gil_scoped_release release;
    planes_decode(planes, row_begin, row_begin + out.shape(0), out.data());
  }, array("extents"), nb::arg("rows"), nb::arg("cols"), nb::arg("tile_rows"), nb::arg("tables"),
     nb::arg("row_begin"), array("out"));
  m.def("encode", &py_encode, array("target"), array("feedback").none(), nb::arg("tables"), nb::arg("tile_rows"),
        nb::arg("block"), array("extents"), array("decoded"));
  m.def("dense_matmul", &py_dense_matmul, nb::arg("kind"), array("w"), array("scale").none(), array("x"), array("out"));
  m.def("sparse_matmul", &py_sparse, array("counts"), array("index"), array("values"), nb::arg("kind"), array("x"), array("out"));
  m.def("rotate", &py_rotate, array("x"), array("scale"), nb::arg("block"), array("mix").none(), nb::arg("inverse"), array("out"));
  m.def("rms_norm", &py_rms_norm, array("x"), array("gain"), nb::arg("eps"), array("out"));
  m.def("rope", &py_rope, array("x"), array("cosine"), array("sine"), array("position"), nb::arg("head_dim"));
  m.def("swiglu", &py_swiglu, array("gate"), array("up"), array("out"));
  m.def("row_dots", &py_row_dots, array("a"), array("b"), array("out"));
  m.def("gram", &py_gram, array("x"), array("h"));
  m.def("sum_words", [](Array<const uint64_t, 1> words) {
    nb::gil_scoped_release release;
    return sum_words(words.data(), (int64_t)words.size());
  }, array("words"));
  bind_cache(m);
  bind_program(m);
  m.def("pack_panels", &py_pack_panels, array("x"), array("panels"));
}

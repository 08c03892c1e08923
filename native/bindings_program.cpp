// A program's operations as Python records them: every array is checked here, once, and kept alive.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>

#include "bindings.h"
#include "program.h"

namespace lsb {
namespace {

std::atomic<int64_t> run_ns{0};     // in programs since the process started

class Recorder {
 public:
  explicit Recorder(int64_t rows_max) : rows_max_(rows_max) {
    require(rows_max > 0, "a program needs at least one row");
  }

  void rms_norm(FloatsOut<2> x, Floats<1> gain, float eps, FloatsOut<2> out) {
    check(out, check(x, gain.size()));
    program_.rms_norm(x.data(), gain.data(), x.shape(1), eps, out.data());
  }
  void add(FloatsOut<2> x, FloatsOut<2> to) {
    check(to, check(x));
    program_.add(x.data(), x.shape(1), to.data());
  }
  void add_bias(Floats<1> bias, FloatsOut<2> to) { program_.add_bias(bias.data(), check(to, bias.size()), to.data()); }
  void swiglu(FloatsOut<2> gate, FloatsOut<2> up, FloatsOut<2> out) {
    check(out, check(up, check(gate)));
    program_.swiglu(gate.data(), up.data(), gate.shape(1), out.data());
  }
  void rope(FloatsOut<2> x, Floats<2> cosine, Floats<2> sine, int head_dim) {
    require(head_dim > 0 && (int64_t)cosine.shape(1) * 2 == head_dim && sine.shape(0) == cosine.shape(0) &&
            sine.shape(1) == cosine.shape(1) && check(x) % head_dim == 0, "rotary tables disagree");
    positions_ = std::min<int64_t>(positions_, cosine.shape(0));
    program_.rope(x.data(), cosine.data(), sine.data(), (int)(x.shape(1) / head_dim), head_dim);
  }
  void pack(FloatsOut<2> x, Floats<1> scale, int block, std::optional<Floats<2>> mix, PackedRows& out) {
    check_rotation(scale, block, mix, check(x));
    require(out.tokens_max() >= rows_max_ && out.cols() == (int64_t)x.shape(1), "packed rows disagree");
    program_.pack(x.data(), {scale.data(), mix ? mix->data() : nullptr, (int64_t)x.shape(1), block}, &out);
  }
  void planes_matmul(std::vector<Array<const uint8_t, 1>> extents, int64_t rows, int64_t cols, int tile_rows,
                     const PlaneTables& tables, Floats<1> row_scale, const PackedRows& x, FloatsOut<2> out) {
    require(x.cols() == cols && (int64_t)row_scale.size() == rows, "shapes disagree");
    check(out, rows);
    program_.multiply(make_planes(extents, rows, cols, tile_rows, tables), row_scale.data(), &x, out.data());
  }
  void unpacked_matmul(const UnpackedPlanes& planes, Floats<1> row_scale, const PackedRows& x, FloatsOut<2> out) {
    require(x.cols() == planes.cols() && (int64_t)row_scale.size() == planes.rows(), "shapes disagree");
    check(out, planes.rows());
    program_.multiply(planes, row_scale.data(), &x, out.data());
  }
  void dense_matmul(int kind, AnyArray<2> w, std::optional<Floats<1>> scale, FloatsOut<2> x, FloatsOut<2> out) {
    const DenseView v = make_dense(kind, w, scale, check(x));
    check(out, v.rows);
    program_.multiply(v, x.data(), out.data());
  }
  void sparse_matmul(Array<const uint16_t, 1> counts, AnyArray<1> index, AnyArray<1> values, int kind, FloatsOut<2> x,
                     FloatsOut<2> out) {
    check(out, counts.size());
    program_.add_sparse(make_outliers(counts, index, values, kind, check(x)), x.data(), out.data());
  }
  void store_kv(const LayerCache& cache, FloatsOut<2> k, FloatsOut<2> v) {
    const CacheView& c = reach(cache);
    check(v, check(k, (int64_t)c.kv_heads * c.head_dim));
    program_.store_kv(c, k.data(), v.data());
  }
  void attend(const LayerCache& cache, FloatsOut<2> q, int heads, int64_t window, FloatsOut<2> out) {
    const CacheView& c = reach(cache);
    check_heads(c, heads, window);
    check(out, check(q, (int64_t)heads * c.head_dim));
    program_.attend(c, q.data(), heads, window, out.data());
  }
  int64_t mark() { return program_.mark(); }
  int64_t steps() const { return program_.steps(); }

  void run(Array<const int32_t, 1> slots, Array<const int32_t, 1> positions, int64_t begin, int64_t end) {
    const int64_t rows = slots.size();
    require(rows >= 1 && rows <= rows_max_, "more rows than the program was recorded for");
    require(begin >= 0 && begin <= end && end <= program_.steps(), "steps out of range");
    check_places(slots, positions, rows, slots_, positions_);
    nb::gil_scoped_release release;
    const auto started = std::chrono::steady_clock::now();
    program_.run({slots.data(), positions.data(), rows}, begin, end);
    run_ns += std::chrono::nanoseconds(std::chrono::steady_clock::now() - started).count();
  }

 private:
  // Columns of a buffer, which must have a row for each that may come.
  template <typename A> int64_t check(const A& buffer, int64_t cols = -1) const {
    require((int64_t)buffer.shape(0) == rows_max_, "a buffer has other rows than the program");
    require(cols < 0 || (int64_t)buffer.shape(1) == cols, "columns of buffers disagree");
    return buffer.shape(1);
  }
  const CacheView& reach(const LayerCache& cache) {
    slots_ = std::min(slots_, cache.view.slots);
    positions_ = std::min(positions_, cache.view.context);
    return cache.view;
  }

  Program program_;
  int64_t rows_max_;
  int64_t slots_ = std::numeric_limits<int32_t>::max(), positions_ = std::numeric_limits<int32_t>::max();
};

}  // namespace

void bind_program(nb::module_& m) {
  using keep2 = nb::keep_alive<1, 2>;
  using keep3 = nb::keep_alive<1, 3>;
  using keep4 = nb::keep_alive<1, 4>;
  using keep5 = nb::keep_alive<1, 5>;
  using keep6 = nb::keep_alive<1, 6>;
  m.def("program_seconds", [] { return 1e-9 * (double)run_ns.load(); });
  nb::class_<UnpackedPlanes>(m, "UnpackedPlanes")
      .def("__init__", [](UnpackedPlanes* self, std::vector<Array<const uint8_t, 1>> extents, int64_t rows, int64_t cols,
                          int tile_rows, const PlaneTables& tables) {
        const Planes planes = make_planes(extents, rows, cols, tile_rows, tables);
        nb::gil_scoped_release release;
        new (self) UnpackedPlanes(planes);
      }, array("extents"), nb::arg("rows"), nb::arg("cols"), nb::arg("tile_rows"), nb::arg("tables"))
      .def_prop_ro("nbytes", &UnpackedPlanes::bytes);
  nb::class_<Recorder>(m, "Program")
      .def(nb::init<int64_t>(), nb::arg("rows_max"))
      .def("rms_norm", &Recorder::rms_norm, keep2(), keep3(), keep5(), array("x"), array("gain"), nb::arg("eps"), array("out"))
      .def("add", &Recorder::add, keep2(), keep3(), array("x"), array("to"))
      .def("add_bias", &Recorder::add_bias, keep2(), keep3(), array("bias"), array("to"))
      .def("swiglu", &Recorder::swiglu, keep2(), keep3(), keep4(), array("gate"), array("up"), array("out"))
      .def("rope", &Recorder::rope, keep2(), keep3(), keep4(), array("x"), array("cosine"), array("sine"), nb::arg("head_dim"))
      .def("pack", &Recorder::pack, keep2(), keep3(), keep5(), keep6(), array("x"), array("scale"), nb::arg("block"),
           array("mix").none(), nb::arg("out"))
      .def("planes_matmul", &Recorder::planes_matmul, keep2(), keep6(), nb::keep_alive<1, 7>(), nb::keep_alive<1, 8>(),
           nb::keep_alive<1, 9>(), array("extents"), nb::arg("rows"), nb::arg("cols"), nb::arg("tile_rows"),
           nb::arg("tables"), array("row_scale"), nb::arg("x"), array("out"))
      .def("unpacked_matmul", &Recorder::unpacked_matmul, keep2(), keep3(), keep4(), keep5(), nb::arg("planes"),
           array("row_scale"), nb::arg("x"), array("out"))
      .def("dense_matmul", &Recorder::dense_matmul, keep3(), keep4(), keep5(), keep6(), nb::arg("kind"), array("w"),
           array("scale").none(), array("x"), array("out"))
      .def("sparse_matmul", &Recorder::sparse_matmul, keep2(), keep3(), keep4(), keep6(), nb::keep_alive<1, 7>(),
           array("counts"), array("index"), array("values"), nb::arg("kind"), array("x"), array("out"))
      .def("store_kv", &Recorder::store_kv, keep2(), keep3(), keep4(), nb::arg("cache"), array("k"), array("v"))
      .def("attend", &Recorder::attend, keep2(), keep3(), keep6(), nb::arg("cache"), array("q"), nb::arg("heads"),
           nb::arg("window"), array("out"))
      .def("mark", &Recorder::mark)
      .def_prop_ro("steps", &Recorder::steps)
      .def("run", &Recorder::run, array("slots"), array("positions"), nb::arg("begin"), nb::arg("end"));
}

}  // namespace lsb

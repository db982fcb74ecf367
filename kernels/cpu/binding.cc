// The Python module: numpy arrays in, numpy arrays out, the GIL released while computing. No logic of its own.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>

#include "model/gemm_speed.h"
#include "model/model.h"
#include "runtime/dispatch.h"
#include "runtime/peaks.h"
#include "runtime/thread_pool.h"

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace aegis {
namespace {

template <class T, int Dims>
using In = nb::ndarray<const T, nb::ndim<Dims>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<nb::numpy, T, nb::c_contig>;
using Bytes = nb::ndarray<const uint16_t, nb::c_contig, nb::device::cpu>;

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument(what); }

template <class T>
Out<T> array(std::vector<size_t> shape) {
  size_t n = 1;
  for (size_t s : shape) n *= s;
  auto memory = std::make_unique<T[]>(n);
  T* data = memory.get();
  nb::capsule owner(memory.release(), [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Out<T>(data, shape.size(), shape.data(), owner);
}

struct PyModel {
  Model model;
  In<uint16_t, 2> embedding;  // kept alive: mapped from the artefact, never copied

  PyModel(Config config, int threads) : model(std::move(config), threads) {}

  // qkv arrives whole and is packed as q and kv: the last layer computes q for the verdict slots alone.
  struct Part {
    Linear* linear;
    size_t first_row;
    int rows;
    RowOrder order;
  };
  std::vector<Part> parts(int layer, const std::string& name, int& rows, int& depth) {
    const Config& c = model.config();
    const auto whole = [&](RowOrder order) { return std::vector<Part>{{&model.linear(layer, name), 0, rows, order}}; };
    depth = c.hidden;
    if (name == "qkv") {
      rows = c.q_size() + 2 * c.kv_size();
      return {{&model.linear(layer, "q"), 0, c.q_size(), RowOrder::kPlain},
              {&model.linear(layer, "kv"), static_cast<size_t>(c.q_size()), 2 * c.kv_size(), RowOrder::kPlain}};
    }
    if (name == "gate_up") return rows = 2 * c.intermediate, whole(RowOrder::kGateUp);
    rows = c.hidden;
    if (name == "o") return depth = c.q_size(), whole(RowOrder::kPlain);
    if (name == "down") return depth = c.intermediate, whole(RowOrder::kPlain);
    fail("no linear layer is called " + name);
  }

  static void expect(const std::string& what, size_t got, size_t wanted) {
    if (got != wanted) fail(what + ": " + std::to_string(got) + " where the model has " + std::to_string(wanted));
  }

  void set_int8(int layer, const std::string& name, In<int8_t, 2> weight, In<float, 1> scale) {
    int rows, depth;
    const auto to = parts(layer, name, rows, depth);
    expect(name + " rows", weight.shape(0), static_cast<size_t>(rows));
    expect(name + " columns", weight.shape(1), static_cast<size_t>(depth));
    expect(name + " scales", scale.shape(0), static_cast<size_t>(rows));
    nb::gil_scoped_release release;
    for (const Part& p : to)
      p.linear->pack_int8(weight.data() + p.first_row * static_cast<size_t>(depth), scale.data() + p.first_row, p.rows,
                          depth, p.order, model.kernels());
  }

  void set_int4(int layer, const std::string& name, In<uint8_t, 2> weight, In<uint8_t, 2> group_scale,
                In<float, 1> scale) {
    int rows, depth;
    const auto to = parts(layer, name, rows, depth);
    expect(name + " rows", weight.shape(0), static_cast<size_t>(rows));
    expect(name + " columns", weight.shape(1), static_cast<size_t>(depth) / 2);
    expect(name + " scales", scale.shape(0), static_cast<size_t>(rows));
    expect(name + " group scale rows", group_scale.shape(0), static_cast<size_t>(rows));
    const size_t groups = group_scale.shape(1);
    if (groups == 0 || static_cast<size_t>(depth) % groups != 0 || static_cast<size_t>(depth) / groups % 8 != 0)
      fail(name + ": groups must divide the columns into multiples of 8");
    const int group = depth / static_cast<int>(groups);
    nb::gil_scoped_release release;
    for (const Part& p : to)
      p.linear->pack_int4(weight.data() + p.first_row * static_cast<size_t>(depth) / 2,
                          group_scale.data() + p.first_row * groups, scale.data() + p.first_row, p.rows, depth, group,
                          p.order, model.kernels());
  }

  void set_bf16(int layer, const std::string& name, In<uint16_t, 2> weight) {
    int rows, depth;
    const auto to = parts(layer, name, rows, depth);
    expect(name + " rows", weight.shape(0), static_cast<size_t>(rows));
    expect(name + " columns", weight.shape(1), static_cast<size_t>(depth));
    nb::gil_scoped_release release;
    for (const Part& p : to)
      p.linear->pack_bf16(weight.data() + p.first_row * static_cast<size_t>(depth), p.rows, depth, p.order);
  }

  void set_bias(int layer, const std::string& name, In<float, 1> bias) {
    int rows, depth;
    const auto to = parts(layer, name, rows, depth);
    expect(name + " biases", bias.shape(0), static_cast<size_t>(rows));
    for (const Part& p : to) {
      if (p.linear->scheme() == Scheme::kNone) fail(name + ": the weight must be set before the bias");
      p.linear->set_bias(bias.data() + p.first_row, p.order);
    }
  }

  // layer -1: the norm before the head.
  void set_norm(int layer, const std::string& name, In<float, 1> weight) {
    const bool of_heads = name == "q_norm" || name == "k_norm";
    expect(name + " weights", weight.shape(0),
           static_cast<size_t>(of_heads ? model.config().head_dim : model.config().hidden));
    if (layer < -1 || layer >= model.config().layers) fail("no layer " + std::to_string(layer));
    std::vector<float>* to = nullptr;
    if (layer == -1 && name == "final_norm") to = &model.final_norm();
    if (layer >= 0 && name == "input_norm") to = &model.layer(layer).input_norm;
    if (layer >= 0 && name == "post_norm") to = &model.layer(layer).post_norm;
    if (layer >= 0 && name == "q_norm") to = &model.layer(layer).q_norm;
    if (layer >= 0 && name == "k_norm") to = &model.layer(layer).k_norm;
    if (layer >= 0 && name == "attention_out_norm") to = &model.layer(layer).attention_out_norm;
    if (layer >= 0 && name == "mlp_out_norm") to = &model.layer(layer).mlp_out_norm;
    if (to == nullptr) fail("no norm is called " + name);
    to->assign(weight.data(), weight.data() + weight.shape(0));
  }

  void set_embedding(In<uint16_t, 2> rows) {
    expect("embedding rows", rows.shape(0), static_cast<size_t>(model.config().vocab));
    expect("embedding columns", rows.shape(1), static_cast<size_t>(model.config().hidden));
    embedding = rows;
    model.set_embedding(embedding.data());
  }

  void set_head(In<float, 2> weight, In<float, 1> bias) {
    expect("head rows", weight.shape(0), static_cast<size_t>(model.config().rows));
    expect("head columns", weight.shape(1), static_cast<size_t>(model.config().hidden));
    expect("head biases", bias.shape(0), static_cast<size_t>(model.config().rows));
    model.set_head(weight.data(), bias.data());
  }

  std::vector<size_t> key_shape(int n) const {
    const Config& c = model.config();
    return {size_t(c.layers), size_t(c.kv_heads), size_t((n + 15) / 16), size_t(c.head_dim / 2), 16, 2};
  }
  std::vector<size_t> value_shape(int n) const {
    const Config& c = model.config();
    return {size_t(c.layers), size_t(c.kv_heads), size_t((n + 1) / 2), size_t(c.head_dim), 2};
  }

  // Keys and values of a root, computed afresh.
  std::tuple<Out<uint16_t>, Out<uint16_t>> compute_root(In<int32_t, 1> ids) {
    const int n = static_cast<int>(ids.shape(0));
    if (n < 1) fail("a root needs at least one token");
    auto k = array<uint16_t>(key_shape(n));
    auto v = array<uint16_t>(value_shape(n));
    {
      nb::gil_scoped_release release;
      Tree tree(nullptr, nullptr, 0);
      const int32_t offsets[] = {0, n}, parents[] = {0};
      model.extend(tree, {ids.data(), offsets, parents, 1, nullptr, 0, true}, nullptr, nullptr);
      std::memcpy(k.data(), tree.node(1).k, k.size() * sizeof(uint16_t));
      std::memcpy(v.data(), tree.node(1).v, v.size() * sizeof(uint16_t));
    }
    return {k, v};
  }
};

struct PyTree {
  PyModel& model;
  Bytes k, v;  // kept alive
  Tree tree;

  PyTree(const PyTree&) = delete;
  PyTree(PyModel& m, Bytes keys, Bytes values, int n)
      : model(m), k(keys), v(values), tree(keys.data(), values.data(), n) {
    if (n < 1 || n > m.model.config().context) fail("the root's length does not fit the context");
    check("root keys", keys, m.key_shape(n));
    check("root values", values, m.value_shape(n));
  }

  static void check(const std::string& what, const Bytes& a, const std::vector<size_t>& shape) {
    bool same = a.ndim() == shape.size();
    for (size_t i = 0; same && i < shape.size(); ++i) same = a.shape(i) == shape[i];
    if (!same) fail(what + " have the wrong shape for this model");
  }

  std::tuple<Out<float>, std::optional<Out<float>>> extend(In<int32_t, 1> ids, In<int32_t, 1> offsets,
                                                           In<int32_t, 1> parents, In<int32_t, 1> slots, bool hidden,
                                                           std::optional<In<int32_t, 1>> kept,
                                                           std::optional<In<int32_t, 1>> room) {
    const size_t segments = parents.shape(0);
    if (segments < 1 || segments > (1u << 24) || offsets.shape(0) != segments + 1)
      fail("offsets must be one more than parents");
    if (offsets.data()[segments] < 0 || static_cast<size_t>(offsets.data()[segments]) != ids.shape(0))
      fail("the last offset must be the number of ids");
    for (const auto& a : {kept, room})
      if (a && a->shape(0) != segments) fail("kept and room must have a value a segment");
    const Config& c = model.model.config();
    const size_t count = slots.shape(0);
    auto logits = array<float>({count, static_cast<size_t>(c.rows)});
    std::optional<Out<float>> states;
    if (hidden) states = array<float>({count, static_cast<size_t>(c.hidden)});
    {
      nb::gil_scoped_release release;
      model.model.extend(tree,
                         {ids.data(), offsets.data(), parents.data(), static_cast<int>(segments), slots.data(),
                          static_cast<int>(count), false, kept ? kept->data() : nullptr, room ? room->data() : nullptr},
                         logits.data(), hidden ? states->data() : nullptr);
    }
    return {logits, states};
  }

  void truncate(int nodes) {
    nb::gil_scoped_release release;
    model.model.truncate(tree, nodes);
  }
};

}  // namespace
}  // namespace aegis

// The same calls in plain C, for bench/binding.py, which measures what a binding costs. They return 0, or -1 where the
// runtime refuses; arrays are the caller's promise.
#define AEGIS_C extern "C" __attribute__((visibility("default")))

AEGIS_C void* aegis_c_tree(PyObject* tree) { return nb::inst_ptr<aegis::PyTree>(tree); }

AEGIS_C int aegis_c_extend(void* tree, const int32_t* ids, int, const int32_t* offsets, const int32_t* parents,
                           int segments, const int32_t* slots, int count, float* logits) try {
  auto& t = *static_cast<aegis::PyTree*>(tree);
  t.model.model.extend(t.tree, {ids, offsets, parents, segments, slots, count}, logits, nullptr);
  return 0;
} catch (...) {
  return -1;
}

AEGIS_C int aegis_c_truncate(void* tree, int nodes) try {
  auto& t = *static_cast<aegis::PyTree*>(tree);
  t.model.model.truncate(t.tree, nodes);
  return 0;
} catch (...) {
  return -1;
}

// An array is taken as it is or refused: nanobind would convert a dtype silently, and 1.7 or 2^32 + 1 become ids.
static auto exact(const char* name) { return nb::arg(name).noconvert(); }

NB_MODULE(_native, m) {
  using namespace aegis;
  m.doc() = "The compiled runtime: a decoder forward over a token tree. Wrapped by aegis_edge.scoring.cpu.";

  m.def("available_isas", &available_isas, "Instruction sets of this build that this CPU has, best first.");
  m.def(
      "isa", [] { return std::string(choose_kernels().name); },
      "The instruction set in use. Raises ValueError where AEGIS_EDGE_ISA names one that is unknown or missing.");
  m.def("usable_threads", &usable_threads, "Threads this process may use (affinity and cgroup quota).");
  m.def(
      "int8_peak", [](int threads, double seconds) { return measure_int8_peak(choose_kernels(), threads, seconds); },
      "threads"_a, "seconds"_a = 0.3, nb::call_guard<nb::gil_scoped_release>(),
      "Register-only int8 dot products: operations a second (2 a multiply-add).");
  m.def(
      "gemm_speed",
      [](int rows, int n, int k, int threads, int copies, int rounds) {
        const GemmSpeed s = measure_gemm(choose_kernels(), rows, n, k, threads, copies, rounds);
        return std::tuple{s.gemm, s.peak};
      },
      "rows"_a, "n"_a, "k"_a, "threads"_a, "copies"_a = 1, "rounds"_a = 50, nb::call_guard<nb::gil_scoped_release>(),
      "A W8A8 GEMM [rows, k] x [n, k] and, in turn with it, the register-only peak: operations a second, best rounds.");
  m.def("read_bandwidth", &measure_read_bandwidth, "threads"_a, "megabytes"_a = 64, "seconds"_a = 0.3,
        nb::call_guard<nb::gil_scoped_release>(), "Memory read speed in bytes a second.");

  nb::class_<PyModel>(m, "Model", "A decoder's weights and its thread team.")
      .def(
          "__init__",
          [](PyModel* self, int layers, int hidden, int heads, int kv_heads, int head_dim, int intermediate, int vocab,
             int context, int rows, float norm_eps, int hadamard_block, std::vector<float> rope_scale,
             In<float, 1> inverse_frequency, int threads, bool gelu, bool qk_norm, bool out_norms, float softcap,
             int input_block, std::vector<int> windows, std::vector<int> rope_of) {
            if (threads < 1 || threads > 1024) fail("threads must be 1 to 1024");
            Config c;
            c.layers = layers, c.hidden = hidden, c.heads = heads, c.kv_heads = kv_heads, c.head_dim = head_dim;
            c.intermediate = intermediate, c.vocab = vocab, c.context = context, c.rows = rows;
            c.norm_eps = norm_eps, c.hadamard_block = hadamard_block;
            c.gelu = gelu, c.qk_norm = qk_norm, c.out_norms = out_norms, c.softcap = softcap;
            c.input_block = input_block, c.windows = std::move(windows), c.rope_of = std::move(rope_of);
            c.rope_scale = std::move(rope_scale);
            c.inverse_frequency.assign(inverse_frequency.data(), inverse_frequency.data() + inverse_frequency.shape(0));
            new (self) PyModel(std::move(c), threads);
          },
          nb::kw_only(), "layers"_a, "hidden"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "intermediate"_a, "vocab"_a,
          "context"_a, "rows"_a, "norm_eps"_a, "hadamard_block"_a, "rope_scale"_a, exact("inverse_frequency"),
          "threads"_a, "gelu"_a = false, "qk_norm"_a = false, "out_norms"_a = false, "softcap"_a = 0.0f,
          "input_block"_a = 0, "windows"_a = std::vector<int>(), "rope_of"_a = std::vector<int>())
      .def_prop_ro("threads", [](const PyModel& p) { return p.model.threads(); })
      .def_prop_ro("isa", [](const PyModel& p) { return std::string(p.model.kernels().name); })
      .def("set_int8", &PyModel::set_int8, "layer"_a, "name"_a, exact("weight"), exact("scale"))
      .def("set_int4", &PyModel::set_int4, "layer"_a, "name"_a, exact("weight"), exact("group_scale"), exact("scale"))
      .def("set_bf16", &PyModel::set_bf16, "layer"_a, "name"_a, exact("weight"))
      .def("set_bias", &PyModel::set_bias, "layer"_a, "name"_a, exact("bias"))
      .def("set_norm", &PyModel::set_norm, "layer"_a, "name"_a, exact("weight"))
      .def("set_embedding", &PyModel::set_embedding, exact("rows"))
      .def("set_head", &PyModel::set_head, exact("weight"), exact("bias"))
      .def("check_complete", [](const PyModel& p) { p.model.check_complete(); })
      .def("compute_root", &PyModel::compute_root, exact("ids"),
           "Keys [L, Hkv, ceil(n/16), d/2, 16, 2] and values [L, Hkv, ceil(n/2), d, 2] of a root, bf16 as uint16.");

  nb::class_<PyTree>(m, "Tree", "A token tree under a policy root.")
      .def(nb::init<PyModel&, Bytes, Bytes, int>(), "model"_a, exact("keys"), exact("values"), "tokens"_a,
           nb::keep_alive<1, 2>())
      .def("__len__", [](const PyTree& t) { return t.tree.size(); })
      .def("extend", &PyTree::extend, exact("ids"), exact("offsets"), exact("parents"), exact("slots"),
           "hidden"_a = false, exact("kept").none() = nb::none(), exact("room").none() = nb::none(),
           "Adds segments; returns (logits f32 [slots, rows], hidden f32 [slots, hidden] or None).")
      .def("truncate", &PyTree::truncate, "nodes"_a);
}

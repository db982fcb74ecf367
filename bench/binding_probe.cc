// The runtime's calls through pybind11, as binding.cc has them through nanobind: compiled and timed by binding.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

namespace py = pybind11;

namespace {

using Ids = py::array_t<int32_t, py::array::c_style>;
using Extend = int (*)(void*, const int32_t*, int, const int32_t*, const int32_t*, int, const int32_t*, int, float*);
using Truncate = int (*)(void*, int);

struct Tree {
  void* tree;
  Extend run;
  Truncate cut;
  py::ssize_t rows;

  py::array_t<float> extend(const Ids& ids, const Ids& offsets, const Ids& parents, const Ids& slots) const {
    py::array_t<float> logits({slots.shape(0), rows});
    const auto size = [](const Ids& a) { return static_cast<int>(a.shape(0)); };
    int failed;
    {
      float* out = logits.mutable_data();
      py::gil_scoped_release release;
      failed = run(tree, ids.data(), size(ids), offsets.data(), parents.data(), size(parents), slots.data(),
                   size(slots), out);
    }
    if (failed) throw std::runtime_error("extend failed");
    return logits;
  }

  void truncate(int nodes) const {
    py::gil_scoped_release release;
    if (cut(tree, nodes)) throw std::runtime_error("truncate failed");
  }
};

}  // namespace

PYBIND11_MODULE(binding_probe, m) {
  py::class_<Tree>(m, "Tree")
      .def(py::init([](uintptr_t tree, uintptr_t extend, uintptr_t truncate, py::ssize_t rows) {
        return Tree{reinterpret_cast<void*>(tree), reinterpret_cast<Extend>(extend),
                    reinterpret_cast<Truncate>(truncate), rows};
      }))
      .def("extend", &Tree::extend, py::arg("ids").noconvert(), py::arg("offsets").noconvert(),
           py::arg("parents").noconvert(), py::arg("slots").noconvert())
      .def("truncate", &Tree::truncate);
}

#include <pybind11/pybind11.h>

#include <cstring>
#include <new>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"

namespace {

const char* python_name(gemlet::ErrorCode code) {
  switch (code) {
    case gemlet::ErrorCode::kConfig:
      return "ConfigError";
    case gemlet::ErrorCode::kModelFile:
      return "ModelFileError";
    case gemlet::ErrorCode::kTensor:
      return "TensorError";
    case gemlet::ErrorCode::kInvalidRequest:
      return "InvalidRequestError";
    case gemlet::ErrorCode::kContextLength:
      return "ContextLengthError";
    case gemlet::ErrorCode::kUnsupported:
      return "UnsupportedError";
    case gemlet::ErrorCode::kClosed:
      return "ModelClosedError";
    case gemlet::ErrorCode::kCancelled:
      return "CancelledError";
    case gemlet::ErrorCode::kMemory:
      return "MemoryLimitError";
    case gemlet::ErrorCode::kDevice:
      return "DeviceError";
    case gemlet::ErrorCode::kInternal:
      return "GemletError";
  }
  return "GemletError";
}

// The classes are in Python (gemlet.errors). They are looked up when something is raised, so that the core imports
// fast.
void raise_gemlet_error(const char* name, const char* message) {
  gemlet::bindings::in_python([&] {
    const pybind11::object type = pybind11::module_::import("gemlet.errors").attr(name);
    // Text from the environment or a file may not be UTF-8.
    const auto text = pybind11::reinterpret_steal<pybind11::object>(
        PyUnicode_DecodeUTF8(message, static_cast<Py_ssize_t>(std::strlen(message)), "backslashreplace"));
    if (text) PyErr_SetObject(type.ptr(), text.ptr());
  });
}

// `Class.__new__(Class)` would give an object without its part in C++. Python refuses it for a class whose tp_new is
// not that of the base class; a call of the class goes through either.
void make_only_by_calling(const pybind11::module_& m) {
  static const newfunc base_new = pybind11::detail::pybind11_object_new;
  for (const auto& [name, value] : m.attr("__dict__").cast<pybind11::dict>()) {
    if (!PyType_Check(value.ptr())) continue;
    auto* const type = reinterpret_cast<PyTypeObject*>(value.ptr());
    if (type->tp_new != base_new) continue;
    type->tp_new = [](PyTypeObject* made, PyObject* args, PyObject* kwargs) { return base_new(made, args, kwargs); };
    PyType_Modified(type);
  }
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The C++ core of gemlet. Private: use the gemlet package.";
  m.attr("__version__") = GEMLET_VERSION;
  pybind11::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const gemlet::Error& error) {
      raise_gemlet_error(python_name(error.code()), error.what());
    } catch (const std::bad_alloc&) {
      raise_gemlet_error("MemoryLimitError",
                         "out of memory; use a smaller model, fewer bits per weight or a shorter context");
    }
  });
  pybind11::module_ testing = m.def_submodule("testing", "What only tests and benchmarks use.");
  gemlet::bindings::register_system(m, testing);
  gemlet::bindings::register_pieces(m);
  gemlet::bindings::register_facts(m);
  gemlet::bindings::register_config(m);
  gemlet::bindings::register_model(m);
  gemlet::bindings::register_audio(m, testing);
  gemlet::bindings::register_sampler(m);
  gemlet::bindings::register_engine(m);
  gemlet::bindings::register_prefix_cache(m);
  gemlet::bindings::register_requests(m);
  gemlet::bindings::register_measure(m, testing);
  gemlet::bindings::register_kernels(testing);
  gemlet::bindings::register_testing(testing);
  gemlet::bindings::register_batch(testing);
  gemlet::bindings::register_drafts(testing);
  gemlet::bindings::register_scheduler(testing);
  gemlet::bindings::register_vision(m, testing);
  make_only_by_calling(m);
  make_only_by_calling(testing);
}

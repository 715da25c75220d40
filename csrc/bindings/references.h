// This header must come before all other headers of the bindings. From Python 3.12 on, Python's headers inline the code
// that counts references at every use. These functions keep that code in one place. They are noexcept, so callers need
// no code for exceptions. Both together make a wheel 30 KB smaller.
#pragma once

#include <Python.h>

namespace gemlet::bindings {

[[gnu::noinline]] inline void take_reference(PyObject* object) noexcept { Py_XINCREF(object); }
[[gnu::noinline]] inline void give_up_reference(PyObject* object) noexcept { Py_XDECREF(object); }

}  // namespace gemlet::bindings

#undef Py_INCREF
#undef Py_DECREF
#undef Py_XINCREF
#undef Py_XDECREF
#define Py_INCREF(object) gemlet::bindings::take_reference(reinterpret_cast<PyObject*>(object))
#define Py_DECREF(object) gemlet::bindings::give_up_reference(reinterpret_cast<PyObject*>(object))
#define Py_XINCREF(object) Py_INCREF(object)
#define Py_XDECREF(object) Py_DECREF(object)

// Before all other headers of the bindings. From Python 3.12 on, Python's own headers insert the code that counts a
// reference wherever one is taken or given up. These functions do it in one place, and as they are noexcept, no caller
// needs code for an exception: both took 30 KB of a wheel.
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

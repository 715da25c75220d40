// A backend for tests. It works like another one, but only its operations can use its memory.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace gemlet {

// The result gives out addresses of pages that can never be read or written, so any access crashes the process.
// Operations translate them to the memory of `backend`. They throw kInternal if what they are going to use does not lie
// inside of one allocation.
std::unique_ptr<Backend> make_guarded_backend(std::unique_ptr<Backend> backend);

}  // namespace gemlet

// Linked where CUDA is not built.
#include "backend/backend.h"
#include "base/error.h"

namespace gemlet {

std::unique_ptr<Backend> make_cuda_backend() {
  fail(ErrorCode::kUnsupported, "device 'cuda': this gemlet was built without CUDA; use device='cpu'");
}

}  // namespace gemlet

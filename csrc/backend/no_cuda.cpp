// Takes the place of the CUDA backend in builds without it.
#include "backend/backend.h"
#include "base/error.h"

namespace gemlet {

void check_cuda() {
  fail(ErrorCode::kUnsupported, "device is 'cuda', but ", cuda_info().refusal, "; use device='cpu'");
}

CudaInfo cuda_info() { return {"this gemlet was built without CUDA", 0, {}}; }

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions&) {
  check_cuda();
  return nullptr;
}

}  // namespace gemlet

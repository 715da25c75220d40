#include "kernels/cuda/emulated/cuda.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/emulated/stacks.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace gemlet::cuda::emulated {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr unsigned kWarp = 32;

// A place where `expected` fibers meet. The last one to arrive lets the others go on.
struct Meeting {
  unsigned expected = 0, arrived = 0, generation = 0;
};

struct Warp {
  Meeting meeting;
  unsigned operation[kWarp] = {};
  Given given[2][kWarp];  // used alternately, so that one meeting for each operation is enough
};

struct Fiber {
  Place place;
  std::unique_ptr<unsigned char[]> stack;
  SavedStack saved;
  const Meeting* waits_for = nullptr;
  unsigned generation = 0;
  bool done = false;
  void* fake_stack = nullptr;  // the stack that AddressSanitizer uses for this fiber
};

// Memory of `bytes` bytes that ends at a page that nobody can read or write.
class Shared {
 public:
  unsigned char* resize(size_t bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t rounded = (bytes + page - 1) / page * page;
    if (rounded > size_) {
      free();
      void* const pages = mmap(nullptr, rounded + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (pages == MAP_FAILED || mprotect(pages, rounded, PROT_READ | PROT_WRITE) != 0) {
        fail(ErrorCode::kMemory, "there is no memory for the shared memory of an emulated GPU");
      }
      pages_ = static_cast<unsigned char*>(pages);
      size_ = rounded;
      mapped_ = rounded + page;
    }
    return pages_ + size_ - (bytes + 15) / 16 * 16;
  }
  ~Shared() { free(); }

 private:
  void free() {
    if (pages_) munmap(pages_, mapped_);
    pages_ = nullptr;
  }
  unsigned char* pages_ = nullptr;
  size_t size_ = 0, mapped_ = 0;
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned> order;
  Meeting meeting;
  Shared shared_pages;
  unsigned char* shared = nullptr;
  Fiber* running = nullptr;
  SavedStack scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  void (*kernel)(const void*) = nullptr;
  const void* args = nullptr;
};
thread_local Block* block = nullptr;

void switch_to(Fiber& fiber) {
  block->running = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fiber.stack.get(), kStackBytes);
#endif
  switch_stacks(block->scheduler, fiber.saved);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void leave(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fiber.fake_stack, block->scheduler_stack,
                                 block->scheduler_stack_bytes);
#endif
  switch_stacks(fiber.saved, block->scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &block->scheduler_stack, &block->scheduler_stack_bytes);
#endif
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_stack_bytes);
#endif
  block->kernel(block->args);
  block->running->done = true;
  leave(*block->running);
}

void meet(Meeting& meeting) {
  Fiber& self = *block->running;
  self.generation = meeting.generation;
  if (++meeting.arrived == meeting.expected) {
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  self.waits_for = &meeting;
  leave(self);
  self.waits_for = nullptr;
}

void run_block(const Index& index, const Launch& launch, std::mt19937_64& random) {
  const unsigned threads = launch.threads;
  block->meeting = {threads, 0, 0};
  block->warps.assign(threads / kWarp, Warp{});
  for (Warp& warp : block->warps) warp.meeting.expected = kWarp;
  block->shared = block->shared_pages.resize(launch.shared_bytes);
  std::fill_n(block->shared, launch.shared_bytes, static_cast<unsigned char>(0xff));  // NaN
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = *block->fibers[i];
    fiber.place = {{i, 0, 0}, index, {threads, 1, 1}, launch.blocks};
    fiber.done = false;
    fiber.waits_for = nullptr;
    begin_stack(fiber.saved, fiber.stack.get(), kStackBytes, fiber_main);
  }
  std::shuffle(block->order.begin(), block->order.end(), random);
  for (unsigned left = threads; left > 0;) {
    bool moved = false;
    for (const unsigned i : block->order) {
      Fiber& fiber = *block->fibers[i];
      if (fiber.done || (fiber.waits_for && fiber.waits_for->generation == fiber.generation)) continue;
      switch_to(fiber);
      moved = true;
      left -= fiber.done ? 1 : 0;
    }
    if (!moved) fail(ErrorCode::kInternal, "threads of a kernel wait at a barrier that the others do not reach");
  }
}

}  // namespace

const Place& place() { return block->running->place; }

unsigned char* shared_memory() { return block->shared; }

void meet_block() { meet(block->meeting); }

const Given* meet_warp(const void* given, size_t bytes) {
  const unsigned thread = place().thread.x, lane = thread % kWarp;
  Warp& warp = block->warps[thread / kWarp];
  Given* const all = warp.given[warp.operation[lane]++ % 2];
  memcpy(all[lane].bytes, given, bytes);
  meet(warp.meeting);
  return all;
}

void run(void (*kernel)(const void* args), const void* args, const Launch& launch) {
  static thread_local Block own;
  block = &own;
  own.kernel = kernel;
  own.args = args;
  while (own.fibers.size() < launch.threads) {
    own.fibers.push_back(std::make_unique<Fiber>());
    own.fibers.back()->stack = std::make_unique<unsigned char[]>(kStackBytes);
  }
  own.order.resize(launch.threads);
  std::iota(own.order.begin(), own.order.end(), 0u);
  std::mt19937_64 random(launch.seed);
  for (unsigned z = 0; z < launch.blocks.z; ++z) {
    for (unsigned y = 0; y < launch.blocks.y; ++y) {
      for (unsigned x = 0; x < launch.blocks.x; ++x) run_block({x, y, z}, launch, random);
    }
  }
}

float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, exponent = half >> 10 & 31u,
                 fraction = half & 1023u;
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
  return __builtin_bit_cast(float, bits);
}

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  // a is copied, because the bytes of an operation do not stay valid after the next one, which exchanges b.
  Given as[kWarp];
  memcpy(as, meet_warp(a, sizeof a), sizeof as);
  const Given* const bs = meet_warp(b, sizeof b);
  const auto bf16_at = [](const Given& given, int word, int half) {
    uint32_t pair;
    memcpy(&pair, given.bytes + 4 * word, 4);
    return __builtin_bit_cast(float, half ? pair & 0xffff0000u : pair << 16);
  };
  const int lane = static_cast<int>(place().thread.x % kWarp);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
    double sum = 0;
    for (int k = 0; k < 16; ++k) {
      const Given& of_a = as[row % 8 * 4 + k % 8 / 2];
      const Given& of_b = bs[column * 4 + k % 8 / 2];
      sum += static_cast<double>(bf16_at(of_a, (row >= 8 ? 1 : 0) + (k >= 8 ? 2 : 0), k % 2)) *
             static_cast<double>(bf16_at(of_b, k >= 8 ? 1 : 0, k % 2));
    }
    d[i] = static_cast<float>(static_cast<double>(d[i]) + sum);
  }
}

void ldmatrix_x4(uint32_t (&out)[4], const void* row) {
  const Given* const rows = meet_warp(&row, sizeof row);
  const unsigned lane = place().thread.x % kWarp;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned char* from;
    memcpy(&from, rows[8 * i + lane / 4].bytes, sizeof from);
    memcpy(&out[i], from + 4 * (lane % 4), 4);
  }
}

}  // namespace gemlet::cuda::emulated

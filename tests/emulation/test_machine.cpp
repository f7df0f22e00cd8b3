// The emulated device itself: counters, facts, what it stands in for of the CUDA runtime, and that
// a launch that went wrong leaves nothing to the next.
#include <cmath>
#include <thread>

#include "device_test.h"
#include "faults/faults.h"

namespace {

using device_test::Buffer;

#ifdef CUEMU_RACE
constexpr bool kSeesBytes = true;
#else
constexpr bool kSeesBytes = false;
#endif

bool sums_are_right(int fault) {
  const int rows = 3, cols = 200;
  const Buffer<float> x(std::vector<float>(rows * cols, 2.f), "x"), out(rows, "out");
  const cudaError_t error = faults::row_sums(fault, x.data(), out.data(), rows, cols);
  return error == cudaSuccess && out.read() == std::vector<float>(rows, 4.f * cols);
}

void test_counters() {
  emu::clear_reports();
  CHECK(sums_are_right(0), "row sums");
  emu::Counters counters = emu::counters();
  CHECK(counters.launches == 1 && counters.blocks == 3, "%d launches", int(counters.launches));
  CHECK(counters.bytes_loaded == (kSeesBytes ? 3 * 200 * 4 : 0), "%d", int(counters.bytes_loaded));
  CHECK(counters.bytes_stored == (kSeesBytes ? 3 * 4 : 0), "%d", int(counters.bytes_stored));

  const int n = 72;
  const Buffer<bf16> a(std::vector<bf16>(n * n, __float2bfloat16(1.f)), "a"), c(n * n, "c");
  emu::clear_reports();
  CHECK(faults::symmetric_product(0, a.data(), c.data(), n, 1.f, 0.f) == cudaSuccess, "launch");
  counters = emu::counters();
  // Three tiles of 64 x 64, three steps of 32.
  CHECK(counters.mma_flops == 3 * 2 * 64 * 64 * 96, "%d", int(counters.mma_flops));
  CHECK(counters.conflicts == 0 && emu::conflicts() == 0, "%d", int(counters.conflicts));

  const Buffer<float> d(n * n, "d");
  dev::TensorMap map{};
  dev::make_map(&map, {a.data(), dev::Element::kBFloat16, 2, {n, n}, {n * 2}, {64, 64}, 128});
  emu::clear_reports();
  CHECK(faults::gram(0, map, d.data(), n, n) == cudaSuccess, "launch");
  counters = emu::counters();
  CHECK(counters.wgmma_flops == 3 * 2 * 64 * 64 * 128, "%d", int(counters.wgmma_flops));
  emu::clear_reports();
}

void test_facts() {
  int value = 0;
  emu::device = {80, 7, 1000};
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess, "-");
  CHECK(value == 8, "%d", value);
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess, "-");
  CHECK(value == 7, "%d", value);
  const Buffer<bf16> x(48 * 80, "x");
  CHECK(faults::small_chain(0, x.data(), x.data(), 1) == cudaErrorInvalidValue, "too much shared");
  CHECK(cudaPeekAtLastError() == cudaErrorInvalidValue, "last error");
  CHECK(cudaGetLastError() == cudaErrorInvalidValue, "last error");
  CHECK(cudaGetLastError() == cudaSuccess, "last error is told once");
  emu::device = {};
  CHECK(faults::row_sums(0, nullptr, nullptr, 0, 5) == cudaErrorInvalidConfiguration, "empty grid");
  cudaGetLastError();
}

void test_runtime() {
  const Buffer<int> a(std::vector<int>{1, 2, 3}, "a"), b(3, "b");
  CHECK(cudaMemcpyAsync(b.data(), a.data(), 12, cudaMemcpyDeviceToDevice, nullptr) == cudaSuccess,
        "copy");
  CHECK(b.read() == a.read(), "copied");
  CHECK(cudaMemsetAsync(b.data() + 1, 0, 8, nullptr) == cudaSuccess, "fill");
  CHECK(b.read() == (std::vector<int>{1, 0, 0}), "filled");
  emu::clear_reports();
  emu::opt.max_reports = 0;
  CHECK(cudaMemsetAsync(b.data() + 1, 0, 12, nullptr) == cudaErrorInvalidValue, "past the end");
  CHECK(emu::reports() == 1, "%d reports", emu::reports());
  emu::opt.max_reports = 12;
  emu::clear_reports();
  cudaGetLastError();
}

// A deadlock leaves fibers in the middle of a kernel, and a race cells that look wrong.
void test_recovery() {
  emu::opt.max_reports = 0;
  for (int fault : {13, 7, 11, 12}) {
    emu::clear_reports();
    sums_are_right(fault);
    emu::clear_reports();
    CHECK(sums_are_right(0), "after fault %d", fault);
    CHECK(emu::reports() == 0, "after fault %d: %d reports", fault, emu::reports());
  }
  emu::opt.max_reports = 12;
  cudaGetLastError();
}

// Threads of the host take turns; bytes they touch meanwhile are none of the kernel's.
void test_host_threads() {
  emu::clear_reports();
  const Buffer<float> x(std::vector<float>(600, 2.f), "x"), left(3, "left"), right(3, "right");
  const auto launch = [&](const Buffer<float>& out) {
    for (int i = 0; i < 20; ++i) faults::row_sums(0, x.data(), out.data(), 3, 200);
  };
  std::thread other([&] { launch(left); });
  launch(right);
  other.join();
  CHECK(left.read() == right.read() && left.read()[2] == 800.f, "sums");
  CHECK(emu::reports() == 0, "%d reports", emu::reports());
}

}  // namespace

int main() {
  test_counters();
  test_facts();
  test_runtime();
  test_recovery();
  test_host_threads();
  return check::finish();
}

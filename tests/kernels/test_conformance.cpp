// Each wrapper of device.h alone, on distinct integers, compared exactly with what PTX says. What
// the emulation and a kernel both misunderstand shows only here, on a GPU.
#include <numeric>

#include "device_test.h"

namespace {

using device_test::Buffer;

bf16 narrow(bf16, int value) { return __float2bfloat16(static_cast<float>(value)); }
__half narrow(__half, int value) { return __float2half(static_cast<float>(value)); }

template <class T>
std::vector<T> count_from(int first, size_t size) {
  std::vector<T> values(size);
  for (size_t i = 0; i < size; ++i) values[i] = static_cast<T>(first + static_cast<int>(i));
  return values;
}

// ---- ldmatrix: 32 rows of eight elements in shared memory, row addresses in another order ----

constexpr int kRowPitch = 24;  // elements: 48 bytes

__global__ void __launch_bounds__(32)
    ldmatrix_kernel(const uint16_t* in, uint32_t* out, int count, bool trans) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  uint16_t* tile = sm.take<uint16_t>(32 * kRowPitch);
  const int lane = threadIdx.x;
  for (int e = 0; e < 8; ++e) tile[lane * kRowPitch + e] = in[lane * 8 + e];
  __syncwarp();
  const uint16_t* row = tile + (lane * 5 + 3) % 32 * kRowPitch;
  uint32_t r[4] = {};
  uint32_t(&two)[2] = *reinterpret_cast<uint32_t(*)[2]>(r);
  if (count == 1) trans ? dev::ldmatrix_x1_trans(r[0], row) : dev::ldmatrix_x1(r[0], row);
  if (count == 2) trans ? dev::ldmatrix_x2_trans(two, row) : dev::ldmatrix_x2(two, row);
  if (count == 4) trans ? dev::ldmatrix_x4_trans(r, row) : dev::ldmatrix_x4(r, row);
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = r[i];
}

void check_ldmatrix(int count, bool trans) {
  const std::vector<uint16_t> in = count_from<uint16_t>(1, 256);
  const Buffer<uint16_t> from(in, "in");
  const Buffer<uint32_t> to(128, "out");
  CHECK(dev::launch(ldmatrix_kernel, dim3(1), dim3(32), 32 * kRowPitch * 2, nullptr, from.data(),
                    to.data(), count, trans) == cudaSuccess,
        "launch");
  const std::vector<uint32_t> out = to.read();
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const auto element = [&](int r, int c) -> uint32_t {
        const int giver = i * 8 + (trans ? c : r);
        return in[(giver * 5 + 3) % 32 * 8 + (trans ? r : c)];
      };
      const int r = lane / 4, c = lane % 4 * 2;
      const uint32_t truth = i < count ? element(r, c) | element(r, c + 1) << 16 : 0;
      CHECK(out[lane * 4 + i] == truth, "x%d%s, lane %d, register %d: %08x, not %08x", count,
            trans ? ".trans" : "", lane, i, out[lane * 4 + i], truth);
    }
  }
}

// ---- mma: every element of a and of b has a value of its own ----

// Fragments as PTX has them for m16n8k16.
template <class T>
__global__ void __launch_bounds__(32)
    mma_kernel(const uint16_t* a, const uint16_t* b, const float* c, float* d) {
  const int lane = threadIdx.x, group = lane / 4, in_group = lane % 4;
  const auto pair = [](const uint16_t* p, int step) { return p[0] | uint32_t{p[step]} << 16; };
  uint32_t of_a[4];
  for (int i = 0; i < 4; ++i) {
    const int row = group + (i & 1) * 8, col = in_group * 2 + (i >> 1) * 8;
    of_a[i] = pair(a + row * 16 + col, 1);
  }
  const uint32_t b0 = pair(b + in_group * 2 * 8 + group, 8);
  const uint32_t b1 = pair(b + (in_group * 2 + 8) * 8 + group, 8);
  float sums[4];
  for (int i = 0; i < 4; ++i) {
    sums[i] = c[(group + (i >> 1) * 8) * 8 + in_group * 2 + (i & 1)];
  }
  dev::mma<T>(sums, of_a, b0, b1);
  for (int i = 0; i < 4; ++i) {
    d[(group + (i >> 1) * 8) * 8 + in_group * 2 + (i & 1)] = sums[i];
  }
}

template <class T>
void check_mma() {
  std::vector<uint16_t> a(256), b(128);
  std::vector<float> c(128);
  for (int i = 0; i < 256; ++i) {
    const T value = narrow(T(), i - 128);
    std::memcpy(&a[i], &value, 2);
  }
  for (int i = 0; i < 128; ++i) {
    const T value = narrow(T(), 64 - i);
    std::memcpy(&b[i], &value, 2);
    c[i] = static_cast<float>(i * 1000);
  }
  const Buffer<uint16_t> of_a(a, "a"), of_b(b, "b");
  const Buffer<float> of_c(c, "c"), of_d(128, "d");
  CHECK(dev::launch(mma_kernel<T>, dim3(1), dim3(32), 0, nullptr, of_a.data(), of_b.data(),
                    of_c.data(), of_d.data()) == cudaSuccess,
        "launch");
  const std::vector<float> d = of_d.read();
  for (int r = 0; r < 16; ++r) {
    for (int j = 0; j < 8; ++j) {
      int truth = (r * 8 + j) * 1000;
      for (int k = 0; k < 16; ++k) truth += (r * 16 + k - 128) * (64 - (k * 8 + j));
      CHECK(d[r * 8 + j] == static_cast<float>(truth), "%s, (%d, %d): %g, not %d",
            dev::kIsHalf<T> ? "fp16" : "bf16", r, j, d[r * 8 + j], truth);
    }
  }
}

// ---- cp.async: sizes, valid bytes, groups ----

__global__ void __launch_bounds__(32)
    cp_async_kernel(const unsigned char* in, unsigned char* out, int size) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  unsigned char* tile = sm.take<unsigned char>(2 * 32 * 16);
  const int lane = threadIdx.x, valid = lane % (size + 1);
  for (int group = 0; group < 2; ++group) {
    unsigned char* to = tile + (group * 32 + lane) * 16;
    const unsigned char* from = in + (group * 32 + lane) * 16;
    if (size == 16) dev::cp_async16(to, from, valid);
    if (size == 8) dev::cp_async8(to, from, valid);
    if (size == 4) dev::cp_async4(to, from, valid);
    dev::cp_async_commit();
  }
  dev::cp_async_wait<1>();  // the first group has come
  for (int i = 0; i < size; ++i) out[lane * 16 + i] = tile[lane * 16 + i];
  dev::cp_async_wait<0>();
  for (int i = 0; i < size; ++i) out[(32 + lane) * 16 + i] = tile[(32 + lane) * 16 + i];
}

void check_cp_async(int size) {
  std::vector<unsigned char> in(1024);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<unsigned char>(i * 7 % 251 + 1);
  const Buffer<unsigned char> from(in, "in"), to(in.size(), "out");
  CHECK(dev::launch(cp_async_kernel, dim3(1), dim3(32), 1024, nullptr, from.data(), to.data(),
                    size) == cudaSuccess,
        "launch");
  const std::vector<unsigned char> out = to.read();
  for (int row = 0; row < 64; ++row) {
    for (int i = 0; i < size; ++i) {
      const int truth = i < row % 32 % (size + 1) ? in[row * 16 + i] : 0;
      CHECK(out[row * 16 + i] == truth, "%d bytes, row %d, byte %d: %d, not %d", size, row, i,
            out[row * 16 + i], truth);
    }
  }
}

// ---- shuffles and votes ----

constexpr int kShuffles = 9;

__global__ void __launch_bounds__(64) shuffle_kernel(int* out) {
  const int t = threadIdx.x, lane = t % 32;
  int* own = out + t * kShuffles;
  own[0] = __shfl_sync(~0u, t, 5);
  own[1] = __shfl_sync(~0u, t, 3, 8);
  own[2] = __shfl_xor_sync(~0u, t, 9);
  own[3] = __shfl_down_sync(~0u, t, 3);
  own[4] = __shfl_up_sync(~0u, t, 2, 16);
  own[5] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
  own[6] = __any_sync(~0u, t == 40) * 2 + __all_sync(~0u, t < 32);
  own[7] = __syncthreads_or(t == 33);
  own[8] = lane < 16 ? __shfl_xor_sync(0xFFFFu, t, 1) : __shfl_xor_sync(0xFFFF0000u, t, 2);
}

void check_shuffles() {
  const Buffer<int> to(64 * kShuffles, "out");
  CHECK(dev::launch(shuffle_kernel, dim3(1), dim3(64), 0, nullptr, to.data()) == cudaSuccess,
        "launch");
  const std::vector<int> out = to.read();
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32, warp = t - lane;
    const int truth[kShuffles] = {warp + 5,
                                  t / 8 * 8 + 3,
                                  warp + (lane ^ 9),
                                  lane + 3 < 32 ? t + 3 : t,
                                  t % 16 >= 2 ? t - 2 : t,
                                  0x49249249,
                                  warp == 0 ? 1 : 2,
                                  1,
                                  lane < 16 ? t ^ 1 : t ^ 2};
    for (int i = 0; i < kShuffles; ++i) {
      const int got = out[t * kShuffles + i];
      CHECK((i == 7 ? got != 0 : got) == truth[i], "thread %d, shuffle %d: %d, not %d", t, i, got,
            truth[i]);
    }
  }
}

// ---- named barriers: one warp gives, one takes, five times over one slot ----

__global__ void __launch_bounds__(96) named_barrier_kernel(int* out) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  int* slot = sm.take<int>(32);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = 0; i < 5; ++i) {
    if (warp == 0) {
      if (i) dev::bar_sync(2, 64);  // the slot is free
      slot[lane] = i * 100 + lane;
      dev::bar_arrive(1, 64);
    } else if (warp == 2) {
      dev::bar_sync(1, 64);
      out[i * 32 + lane] = slot[lane ^ 1];
      if (i < 4) dev::bar_arrive(2, 64);
    }
  }
}

void check_named_barriers() {
  const Buffer<int> to(5 * 32, "out");
  CHECK(
      dev::launch(named_barrier_kernel, dim3(1), dim3(96), 128, nullptr, to.data()) == cudaSuccess,
      "launch");
  const std::vector<int> out = to.read();
  for (int i = 0; i < 5 * 32; ++i) {
    const int truth = i / 32 * 100 + (i % 32 ^ 1);
    CHECK(out[i] == truth, "round %d, lane %d: %d, not %d", i / 32, i % 32, out[i], truth);
  }
}

// ---- launches: more shared memory than 48 KB, and more than there is ----

__global__ void __launch_bounds__(32) touch_shared_kernel(int* out, int size) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  int* values = sm.take<int>(size);
  values[size - 1] = 17 + blockIdx.y;
  out[blockIdx.x + gridDim.x * blockIdx.y] = values[size - 1];
}

void check_launch() {
  int device = 0, most = 0;
  CHECK(dev::current_device(&device) == cudaSuccess, "device");
  CHECK(dev::attribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess,
        "attribute");
  const Buffer<int> to(6, "out");
  CHECK(dev::launch(touch_shared_kernel, dim3(3, 2), dim3(1), most, nullptr, to.data(), most / 4) ==
            cudaSuccess,
        "launch of %d bytes", most);
  CHECK(to.read()[5] == 18 && to.read()[2] == 17, "blocks of a grid of two dimensions");
  CHECK(dev::launch(touch_shared_kernel, dim3(1), dim3(1), most + 1024, nullptr, to.data(), 1) !=
            cudaSuccess,
        "too much shared memory must be refused");
  CHECK(dev::launch(touch_shared_kernel, dim3(1), dim3(2048), 16, nullptr, to.data(), 1) !=
            cudaSuccess,
        "too many threads must be refused");
  cudaGetLastError();
}

void check_all() {
  for (int count : {1, 2, 4}) {
    check_ldmatrix(count, false);
    check_ldmatrix(count, true);
  }
  check_mma<bf16>();
  check_mma<__half>();
  for (int size : {4, 8, 16}) check_cp_async(size);
  check_shuffles();
  check_named_barriers();
  check_launch();
}

}  // namespace

int main(int argc, char** argv) { return device_test::run(argc, argv, check_all); }

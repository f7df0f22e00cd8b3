// As test_conformance.cpp, for what Hopper has alone; on another device nothing runs.
#include "device_test.h"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_BODY 1
#endif

namespace {

using device_test::Buffer;

bf16 narrow(bf16, int value) { return __float2bfloat16(static_cast<float>(value)); }
__half narrow(__half, int value) { return __float2half(static_cast<float>(value)); }

template <class T>
const char* name_of() {
  return dev::kIsHalf<T> ? "fp16" : "bf16";
}

// ---- stmatrix: registers of distinct halves ----

__global__ void __launch_bounds__(32) stmatrix_kernel(uint16_t* out, bool trans) {
#ifdef HOPPER_BODY
  DYN_SMEM(base);
  dev::Carve sm{base};
  uint16_t* tile = sm.take<uint16_t>(32 * 8);
  const uint32_t lane = threadIdx.x;
  uint32_t r[4];
  for (uint32_t i = 0; i < 4; ++i) r[i] = (i * 64 + lane * 2) | (i * 64 + lane * 2 + 1) << 16;
  uint16_t* row = tile + (lane * 7 + 1) % 32 * 8;
  trans ? dev::stmatrix_x4_trans(row, r) : dev::stmatrix_x4(row, r);
  __syncwarp();
  for (int e = 0; e < 8; ++e) out[lane * 8 + e] = tile[lane * 8 + e];
#endif
}

void check_stmatrix(bool trans) {
  const Buffer<uint16_t> to(256, "out");
  CHECK(dev::launch(stmatrix_kernel, dim3(1), dim3(32), 512, nullptr, to.data(), trans) ==
            cudaSuccess,
        "launch");
  const std::vector<uint16_t> out = to.read();
  for (int lane = 0; lane < 32; ++lane) {
    for (int e = 0; e < 8; ++e) {
      const int r = trans ? e : lane % 8, c = trans ? lane % 8 : e;
      const int holder = r * 4 + c / 2;
      const int truth = lane / 8 * 64 + holder * 2 + c % 2;
      const int got = out[(lane * 7 + 1) % 32 * 8 + e];
      CHECK(got == truth, "trans %d, row of lane %d, element %d: %d, not %d", trans, lane, e, got,
            truth);
    }
  }
}

// ---- mbarrier: two warps pass numbers through one slot, seven phases ----

__global__ void __launch_bounds__(64) mbarrier_kernel(int* out) {
#ifdef HOPPER_BODY
  DYN_SMEM(base);
  dev::Carve sm{base};
  int* slot = sm.take<int>(32);
  uint64_t* full = sm.take<uint64_t>(1, 8);
  uint64_t* empty = sm.take<uint64_t>(1, 8);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    dev::mbar_init(full, 32);
    dev::mbar_init(empty, 32);
    dev::fence_barrier_init();
  }
  __syncthreads();
  for (int i = 0; i < 7; ++i) {
    if (warp == 0) {
      dev::mbar_wait(empty, (i & 1) ^ 1);
      slot[lane] = i * 1000 + lane;
      dev::mbar_arrive(full);
    } else {
      dev::mbar_wait(full, i & 1);
      out[i * 32 + lane] = slot[lane ^ 3];
      dev::mbar_arrive(empty);
    }
  }
#endif
}

void check_mbarrier() {
  const Buffer<int> to(7 * 32, "out");
  CHECK(dev::launch(mbarrier_kernel, dim3(1), dim3(64), 256, nullptr, to.data()) == cudaSuccess,
        "launch");
  const std::vector<int> out = to.read();
  for (int i = 0; i < 7 * 32; ++i) {
    CHECK(out[i] == i / 32 * 1000 + (i % 32 ^ 3), "phase %d, lane %d: %d", i / 32, i % 32, out[i]);
  }
}

// ---- boxes: loaded and seen as they lie in shared memory; stored and seen in the tensor ----

struct Corner {
  int c0, c1, c2;
};

__global__ void __launch_bounds__(32)
    load_box_kernel(const __grid_constant__ dev::TensorMap map, int rank, Corner at, int words,
                    uint32_t* out) {
#ifdef HOPPER_BODY
  DYN_SMEM(base);
  dev::Carve sm{base};
  uint32_t* tile = sm.take<uint32_t>(words, 1024);
  uint64_t* full = sm.take<uint64_t>(1, 8);
  if (threadIdx.x == 0) {
    dev::prefetch_map(&map);
    dev::mbar_init(full, 1);
    dev::fence_barrier_init();
    dev::mbar_expect(full, words * 4);
    if (rank == 2) {
      dev::tma_load_2d(tile, &map, full, at.c0, at.c1);
    } else {
      dev::tma_load_3d(tile, &map, full, at.c0, at.c1, at.c2);
    }
  }
  __syncthreads();
  dev::mbar_wait(full, 0);
  for (int i = threadIdx.x; i < words; i += 32) out[i] = tile[i];
#endif
}

__global__ void __launch_bounds__(32)
    store_box_kernel(const __grid_constant__ dev::TensorMap map, int rank, Corner at, int words) {
#ifdef HOPPER_BODY
  DYN_SMEM(base);
  dev::Carve sm{base};
  uint32_t* tile = sm.take<uint32_t>(words, 1024);
  for (int i = threadIdx.x; i < words; i += 32) tile[i] = 100000 + i;
  dev::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (rank == 2) {
      dev::tma_store_2d(&map, tile, at.c0, at.c1);
    } else {
      dev::tma_store_3d(&map, tile, at.c0, at.c1, at.c2);
    }
    dev::bulk_commit();
    dev::bulk_wait<0>();
  }
#endif
}

// So many that every bit of an address that a swizzle looks at is seen.
constexpr int kBoxRows = 16;

// A tensor (depth, rows, cols) of words in rows of `pitch` words; a box is two deep in rank 3.
struct Tensor {
  int cols = 37, rows = 9, depth = 3, pitch = 40;
  int words() const { return depth * rows * pitch; }
  bool inside(int x, int y, int z) const {
    return x >= 0 && x < cols && y >= 0 && y < rows && z >= 0 && z < depth;
  }
  int at(int x, int y, int z) const { return (z * rows + y) * pitch + x; }
};

void check_box(int rank, int swizzle, Corner corner) {
  const Tensor tensor;
  const int wide = swizzle ? swizzle / 4 : 48, deep = rank == 3 ? 2 : 1,
            words = wide * kBoxRows * deep;
  if (rank == 2) corner.c2 = 0;
  std::vector<uint32_t> in(tensor.words());
  for (size_t i = 0; i < in.size(); ++i) in[i] = 1 + static_cast<uint32_t>(i);
  const Buffer<uint32_t> from(in, "in"), tile(words, "tile");
  dev::TensorMap map{};
  const uint64_t pitch = tensor.pitch * 4;
  const dev::TensorShape shape{
      from.data(),
      dev::Element::kFloat32,
      rank,
      {static_cast<uint64_t>(tensor.cols), static_cast<uint64_t>(tensor.rows),
       static_cast<uint64_t>(tensor.depth)},
      {pitch, pitch * tensor.rows},
      {static_cast<uint32_t>(wide), kBoxRows, static_cast<uint32_t>(deep)},
      swizzle};
  CHECK(dev::make_map(&map, shape) == cudaSuccess, "map");
  const auto place = [&](int x, int y, int z) {  // in the tile: sixteen-byte chunks are permuted
    const int byte = ((z * kBoxRows + y) * wide + x) * 4;
    const int mask = swizzle ? swizzle / 16 - 1 : 0;
    return (byte ^ (byte >> 7 & mask) << 4) / 4;
  };

  CHECK(dev::launch(load_box_kernel, dim3(1), dim3(32), words * 4 + 1024 + 16, nullptr, map, rank,
                    corner, words, tile.data()) == cudaSuccess,
        "launch");
  const std::vector<uint32_t> loaded = tile.read();
  CHECK(dev::launch(store_box_kernel, dim3(1), dim3(32), words * 4 + 1024, nullptr, map, rank,
                    corner, words) == cudaSuccess,
        "launch");
  const std::vector<uint32_t> stored = from.read();
  std::vector<uint32_t> truth = in;
  for (int z = 0; z < deep; ++z) {
    for (int y = 0; y < kBoxRows; ++y) {
      for (int x = 0; x < wide; ++x) {
        const int gx = corner.c0 + x, gy = corner.c1 + y, gz = corner.c2 + z;
        const bool inside = tensor.inside(gx, gy, gz);
        const uint32_t expected = inside ? in[tensor.at(gx, gy, gz)] : 0;
        CHECK(loaded[place(x, y, z)] == expected, "rank %d, swizzle %d, (%d, %d, %d): %u, not %u",
              rank, swizzle, x, y, z, loaded[place(x, y, z)], expected);
        if (inside) truth[tensor.at(gx, gy, gz)] = 100000 + place(x, y, z);
      }
    }
  }
  for (size_t i = 0; i < truth.size(); ++i) {
    CHECK(stored[i] == truth[i], "stored, rank %d, swizzle %d, word %zu: %u, not %u", rank, swizzle,
          i, stored[i], truth[i]);
  }
}

// What the driver refuses, so that no launch is tried with it.
void check_refused_maps() {
  const Buffer<uint32_t> data(64 * 64, "data");
  const dev::TensorShape good{data.data(), dev::Element::kFloat32, 2, {64, 64}, {256}, {32, 8},
                              128};
  dev::TensorMap map{};
  CHECK(dev::make_map(&map, good) == cudaSuccess, "map");
  dev::TensorShape bad = good;
  bad.strides[0] = 248;
  CHECK(dev::make_map(&map, bad) != cudaSuccess, "pitch not a multiple of 16 bytes");
  bad = good;
  bad.data = data.data() + 1;
  CHECK(dev::make_map(&map, bad) != cudaSuccess, "base not aligned to 16 bytes");
  bad = good;
  bad.box[0] = 64;
  CHECK(dev::make_map(&map, bad) != cudaSuccess, "box wider than its swizzle");
}

// ---- wgmma: operands laid out by hand ----

constexpr int kDepth = 32;  // two products of 16

// a (64 x 32) and b (n x 32) with entries of their own; d = a b' (+ 1000 where accumulating).
template <class T, int n, bool kRowMajorB>
__global__ void __launch_bounds__(128)
    wgmma_kernel(const T* a, const T* b, int accumulate, float* d) {
#ifdef HOPPER_BODY
  DYN_SMEM(base);
  dev::Carve sm{base};
  // K-major: rows of 64 elements (half of them used), chunks of 8 XORed with the row.
  T* of_a = sm.take<T>(64 * 64, 1024);
  T* of_b = sm.take<T>(128 * 64, 1024);
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
  for (int i = t; i < 64 * kDepth; i += 128) {
    const int r = i / kDepth, k = i % kDepth;
    of_a[r * 64 + (k / 8 ^ r % 8) * 8 + k % 8] = a[i];
  }
  for (int i = t; i < n * kDepth; i += 128) {
    const int j = i / kDepth, k = i % kDepth;
    // MN-major: boxes of 64 columns, in them rows along k.
    const int at = kRowMajorB ? j / 64 * 64 * kDepth + k * 64 + (j % 64 / 8 ^ k % 8) * 8 + j % 8
                              : j * 64 + (k / 8 ^ j % 8) * 8 + k % 8;
    of_b[at] = b[i];
  }
  dev::fence_proxy_async();
  __syncthreads();
  float sums[n / 2];
  for (int i = 0; i < n / 2; ++i) sums[i] = 1000.f;
  dev::wgmma_settle(sums);
  dev::wgmma_fence();
  for (int k = 0; k < kDepth; k += 16) {
    const uint64_t from_a = dev::desc_k_sw128(of_a + k);
    const uint64_t from_b = kRowMajorB ? dev::desc_mn_sw128(of_b + k * 64, 64 * kDepth * 2)
                                       : dev::desc_k_sw128(of_b + k);
    if constexpr (n == 64) {
      dev::wgmma_m64n64k16<T, kRowMajorB>(sums, from_a, from_b, accumulate || k);
    } else {
      dev::wgmma_m64n128k16<T, kRowMajorB>(sums, from_a, from_b, accumulate || k);
    }
  }
  dev::wgmma_commit();
  dev::wgmma_wait<0>();
  dev::wgmma_settle(sums);
  for (int i = 0; i < n / 2; ++i) {
    const int row = warp * 16 + lane / 4 + i % 4 / 2 * 8, col = i / 4 * 8 + lane % 4 * 2 + i % 2;
    d[row * n + col] = sums[i];
  }
#endif
}

template <class T, int n, bool kRowMajorB>
void check_wgmma() {
  const auto a_at = [](int r, int k) { return (r * 29 + k * 3) % 251 - 125; };
  const auto b_at = [](int j, int k) { return (j * 31 + k * 7) % 241 - 120; };
  std::vector<T> a(64 * kDepth), b(n * kDepth);
  for (int i = 0; i < 64 * kDepth; ++i) a[i] = narrow(T(), a_at(i / kDepth, i % kDepth));
  for (int i = 0; i < n * kDepth; ++i) b[i] = narrow(T(), b_at(i / kDepth, i % kDepth));
  const Buffer<T> of_a(a, "a"), of_b(b, "b");
  for (int accumulate = 0; accumulate < 2; ++accumulate) {
    const Buffer<float> of_d(64 * n, "d");
    CHECK(
        dev::launch(wgmma_kernel<T, n, kRowMajorB>, dim3(1), dim3(128), (64 + 128) * 64 * 2 + 1024,
                    nullptr, of_a.data(), of_b.data(), accumulate, of_d.data()) == cudaSuccess,
        "launch");
    const std::vector<float> d = of_d.read();
    for (int i = 0; i < 64 * n; ++i) {
      int truth = accumulate * 1000;
      for (int k = 0; k < kDepth; ++k) truth += a_at(i / n, k) * b_at(i % n, k);
      CHECK(d[i] == static_cast<float>(truth), "%s n %d row-major b %d, (%d, %d): %g, not %d",
            name_of<T>(), n, kRowMajorB, i / n, i % n, d[i], truth);
    }
  }
}

template <class T>
void check_wgmma_shapes() {
  check_wgmma<T, 64, false>();
  check_wgmma<T, 64, true>();
  check_wgmma<T, 128, false>();
  check_wgmma<T, 128, true>();
}

void check_all() {
  int device = 0, major = 0;
  CHECK(dev::current_device(&device) == cudaSuccess, "device");
  CHECK(dev::attribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess, "facts");
  if (major != 9) return;
  check_stmatrix(false);
  check_stmatrix(true);
  check_mbarrier();
  check_refused_maps();
  for (int rank : {2, 3}) {
    for (int swizzle : {0, 32, 64, 128}) {
      for (const Corner& corner : {Corner{0, 0, 0}, Corner{32, 7, 2}, Corner{-3, -2, -1}}) {
        check_box(rank, swizzle, corner);
      }
    }
  }
  check_wgmma_shapes<bf16>();
  check_wgmma_shapes<__half>();
}

}  // namespace

int main(int argc, char** argv) { return device_test::run(argc, argv, check_all); }

// Faults 1, 5, 9, 10, 15: barriers of blocks and warps, ldmatrix rows, arrays, alignment.
#include "faults.h"

namespace faults {
namespace {

constexpr int kRows = 48, kCols = 80, kWarps = kRows / 16, kSteps = 3;
constexpr int kPitch = kCols + 8, kSquarePitch = kRows + 8;  // no bank conflicts

DEV void store_pair(bf16* p, float x, float y) {
  *reinterpret_cast<__nv_bfloat162*>(p) = __floats2bfloat162_rn(x, y);
}
DEV float2 load_pair(const bf16* p) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(p));
}

// sums (16 x 8n) of rows r0 of a with n * 8 rows of b, both along k.
template <int n>
DEV void multiply_rows(float (&sums)[n][4], const bf16* a, int a_pitch, const bf16* b, int b_pitch,
                       int r0, int depth, bool wrong_row) {
  const int lane = threadIdx.x % 32;
  const int a_row = wrong_row ? lane % 8 : lane % 16, a_col = lane / 16 * 8;
  const int b_row = lane % 8 + lane / 16 * 8, b_col = lane / 8 % 2 * 8;
  for (int k = 0; k < depth; k += 16) {
    uint32_t of_a[4], of_b[4];
    dev::ldmatrix_x4(of_a, a + (r0 + a_row) * a_pitch + k + a_col);
    for (int j = 0; j < n; j += 2) {
      dev::ldmatrix_x4(of_b, b + (j * 8 + b_row) * b_pitch + k + b_col);
      dev::mma<bf16>(sums[j], of_a, of_b[0], of_b[1]);
      dev::mma<bf16>(sums[j + 1], of_a, of_b[2], of_b[3]);
    }
  }
}

// One block a matrix, a warp for sixteen rows.
__global__ void __launch_bounds__(kWarps * 32)
    small_chain_kernel(int fault, const bf16* in, bf16* out) {
  DYN_SMEM(base);
  dev::Carve sm{base};
  bf16* x = sm.take<bf16>(kRows * kPitch);
  bf16* a = sm.take<bf16>(kRows * kSquarePitch);
  bf16* b = sm.take<bf16>(kRows * kSquarePitch);
  float* part = sm.take<float>(kWarps);
  const int t = threadIdx.x, warp = t / 32, lane = t % 32;
  const int r0 = warp * 16, row = r0 + lane / 4, col = lane % 4 * 2;
  const bf16* from = in + static_cast<size_t>(blockIdx.x) * kRows * kCols;
  float sum = 0.f;
  for (int i = t; i < kRows * kCols / 8; i += blockDim.x) {
    const int r = i / (kCols / 8), c = i % (kCols / 8) * 8;
    const bf16* p = from + r * kCols + c - (fault == 15 && i ? 4 : 0);
    const uint4 eight = *reinterpret_cast<const uint4*>(p);
    *reinterpret_cast<uint4*>(x + r * kPitch + c) = eight;
    const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&eight);
    for (int j = 0; j < 4; ++j) {
      const float2 two = __bfloat1622float2(pairs[j]);
      sum += two.x * two.x + two.y * two.y;
    }
  }
  for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  if (lane == 0) part[warp] = sum;
  __syncthreads();
  const float inverse = rsqrtf(part[0] + part[1] + part[2]);
  for (int i = t; i < kRows * kCols / 2; i += blockDim.x) {
    bf16* p = x + i / (kCols / 2) * kPitch + i % (kCols / 2) * 2;
    const float2 two = load_pair(p);
    store_pair(p, two.x * inverse, two.y * inverse);
  }
  __syncthreads();
  for (int step = 0; step < kSteps; ++step) {
    float gram[kRows / 8][4] = {};
    multiply_rows(gram, x, kPitch, x, kPitch, r0, kCols, fault == 5);
    for (int j = 0; j < kRows / 8; ++j) {
      store_pair(a + row * kSquarePitch + j * 8 + col, gram[j][0], gram[j][1]);
      store_pair(a + (row + 8 + (fault == 10)) * kSquarePitch + j * 8 + col, gram[j][2],
                 gram[j][3]);
    }
    __syncthreads();
    float square[kRows / 8][4] = {};
    multiply_rows(square, a, kSquarePitch, a, kSquarePitch, r0, kRows, fault == 5);
    for (int j = 0; j < kRows / 8; ++j) {
      for (int h = 0; h < 2; ++h) {
        const int at = (row + h * 8) * kSquarePitch + j * 8 + col;
        const float2 two = load_pair(a + at);
        store_pair(b + at, -4.5f * two.x + 2.f * square[j][h * 2],
                   -4.5f * two.y + 2.f * square[j][h * 2 + 1]);
      }
    }
    if (fault != 9) __syncwarp();  // a warp reads back its own rows of b only
    float moved[kCols / 8][4] = {};
    for (int k = 0; k < kRows; k += 16) {
      uint32_t of_b[4], of_x[4];
      dev::ldmatrix_x4(of_b, b + (r0 + lane % 16) * kSquarePitch + k + lane / 16 * 8);
      for (int j = 0; j < kCols / 8; j += 2) {
        dev::ldmatrix_x4_trans(of_x, x + (k + lane % 16) * kPitch + j * 8 + lane / 16 * 8);
        dev::mma<bf16>(moved[j], of_b, of_x[0], of_x[1]);
        dev::mma<bf16>(moved[j + 1], of_b, of_x[2], of_x[3]);
      }
    }
    if (fault != 1) __syncthreads();  // all have read x
    for (int j = 0; j < kCols / 8; ++j) {
      for (int h = 0; h < 2; ++h) {
        bf16* p = x + (row + h * 8) * kPitch + j * 8 + col;
        const float2 two = load_pair(p);
        store_pair(p, 3.5f * two.x + moved[j][h * 2], 3.5f * two.y + moved[j][h * 2 + 1]);
      }
    }
    __syncthreads();
  }
  bf16* to = out + static_cast<size_t>(blockIdx.x) * kRows * kCols;
  for (int i = t; i < kRows * kCols / 8; i += blockDim.x) {
    const int r = i / (kCols / 8), c = i % (kCols / 8) * 8;
    *reinterpret_cast<uint4*>(to + r * kCols + c) =
        *reinterpret_cast<const uint4*>(x + r * kPitch + c);
  }
}

}  // namespace

cudaError_t small_chain(int fault, const bf16* in, bf16* out, int batch) {
  const size_t bytes = (kRows * kPitch + 2 * kRows * kSquarePitch) * sizeof(bf16) + 16;
  return dev::launch(small_chain_kernel, dim3(batch), dim3(kWarps * 32), bytes, nullptr, fault, in,
                     out);
}

}  // namespace faults

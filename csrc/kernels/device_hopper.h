// The wrappers that Hopper has alone: mbarriers, bulk copies of tensors, stmatrix, wgmma. Part of
// device.h, which includes it. They are read for every architecture, and may be called where the
// body of a kernel stands under
//   #if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#pragma once

#ifdef __CUDACC__
#include <atomic>
#endif

#include "device.h"

namespace dev {

#ifdef __CUDACC__
using TensorMap = CUtensorMap;
#else
using emu::TensorMap;
#endif
static_assert(sizeof(TensorMap) == 128 && alignof(TensorMap) % 64 == 0, "as the driver has it");

// ---- mbarrier ----

DEV_CALL void mbar_init(uint64_t* barrier, int count) {
  DEV_EITHER(asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem_u32(barrier)), "r"(count)
                          : "memory"),
             emu::mbar_init(barrier, count, CUEMU_PC));
}
DEV_CALL void mbar_arrive(uint64_t* barrier) {
  DEV_EITHER(asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(smem_u32(barrier))
                          : "memory"),
             emu::mbar_arrive(barrier, 0, CUEMU_PC));
}
// Arrives, and announces bytes that bulk copies will bring in this phase.
DEV_CALL void mbar_expect(uint64_t* barrier, int bytes) {
  DEV_EITHER(
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(smem_u32(barrier)),
                   "r"(bytes)
                   : "memory"),
      emu::mbar_arrive(barrier, bytes, CUEMU_PC));
}
// Until the phase of this parity has ended: the present one, or the one before (then at once). Of a
// new barrier the phase before has parity 1.
DEV_CALL void mbar_wait(uint64_t* barrier, int parity) {
  DEV_EITHER(asm volatile("{\n.reg .pred p;\nL%=:\n"
                          "mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n@!p bra L%=;\n}" ::"r"(
                              smem_u32(barrier)),
                          "r"(parity)
                          : "memory"),
             emu::mbar_wait(barrier, parity, CUEMU_PC));
}
// After mbar_init, before the barrier's first use by bulk copies.
DEV_CALL void fence_barrier_init() {
  DEV_EITHER(asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"), (void)0);
}
// Between ordinary writes of shared memory and reads of them by wgmma or bulk copies.
DEV_CALL void fence_proxy_async() {
  DEV_EITHER(asm volatile("fence.proxy.async.shared::cta;" ::: "memory"), emu::fence_proxy_async());
}

// ---- boxes of tensors, at coordinates c0 (innermost), c1, c2 ----

DEV_CALL void prefetch_map(const TensorMap* map) {
  DEV_EITHER(asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"), (void)map);
}
DEV_CALL void tma_load_2d(void* to, const TensorMap* map, uint64_t* barrier, int c0, int c1) {
  DEV_EITHER(
      asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                   "[%0], [%1, {%3, %4}], [%2];" ::"r"(smem_u32(to)),
                   "l"(map), "r"(smem_u32(barrier)), "r"(c0), "r"(c1)
                   : "memory"),
      emu::tma_load(to, map, barrier, c0, c1, 0, CUEMU_PC));
}
DEV_CALL void tma_load_3d(void* to, const TensorMap* map, uint64_t* barrier, int c0, int c1,
                          int c2) {
  DEV_EITHER(
      asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                   "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(smem_u32(to)),
                   "l"(map), "r"(smem_u32(barrier)), "r"(c0), "r"(c1), "r"(c2)
                   : "memory"),
      emu::tma_load(to, map, barrier, c0, c1, c2, CUEMU_PC));
}
DEV_CALL void tma_store_2d(const TensorMap* map, const void* from, int c0, int c1) {
  DEV_EITHER(asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group "
                          "[%0, {%2, %3}], [%1];" ::"l"(map),
                          "r"(smem_u32(from)), "r"(c0), "r"(c1)
                          : "memory"),
             emu::tma_store(map, from, c0, c1, 0, CUEMU_PC));
}
DEV_CALL void tma_store_3d(const TensorMap* map, const void* from, int c0, int c1, int c2) {
  DEV_EITHER(asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group "
                          "[%0, {%2, %3, %4}], [%1];" ::"l"(map),
                          "r"(smem_u32(from)), "r"(c0), "r"(c1), "r"(c2)
                          : "memory"),
             emu::tma_store(map, from, c0, c1, c2, CUEMU_PC));
}
DEV_CALL void bulk_commit() {
  DEV_EITHER(asm volatile("cp.async.bulk.commit_group;" ::: "memory"), emu::bulk_commit());
}
// Until all but N of the own groups of stores are written; _read: have been read from shared
// memory.
template <int N>
DEV_CALL void bulk_wait() {
  DEV_EITHER(asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory"), emu::bulk_wait(N));
}
template <int N>
DEV_CALL void bulk_wait_read() {
  DEV_EITHER(asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N)
                          : "memory"),
             emu::bulk_wait(N));
}

// ---- stmatrix: ldmatrix the other way ----

DEV_CALL void stmatrix_x4(void* row, const uint32_t (&r)[4]) {
  DEV_EITHER(asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                              smem_u32(row)),
                          "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                          : "memory"),
             emu::stmatrix(row, r, 4, false, CUEMU_PC));
}
DEV_CALL void stmatrix_x4_trans(void* row, const uint32_t (&r)[4]) {
  DEV_EITHER(
      asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                       smem_u32(row)),
                   "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                   : "memory"),
      emu::stmatrix(row, r, 4, true, CUEMU_PC));
}

// ---- wgmma: d (64 x n) = a (64 x 16) b (16 x n) + (accumulate ? d : 0) by a warpgroup ----

template <int R>
DEV_CALL void setmaxnreg_inc() {
  static_assert(R >= 24 && R <= 256 && R % 8 == 0, "as PTX has it");
  DEV_EITHER(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(R)),
             emu::setmaxnreg(R, CUEMU_PC));
}
template <int R>
DEV_CALL void setmaxnreg_dec() {
  static_assert(R >= 24 && R <= 256 && R % 8 == 0, "as PTX has it");
  DEV_EITHER(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(R)),
             emu::setmaxnreg(R, CUEMU_PC));
}
DEV_CALL void wgmma_fence() {
  DEV_EITHER(asm volatile("wgmma.fence.sync.aligned;" ::: "memory"), emu::wgmma_fence(CUEMU_PC));
}
DEV_CALL void wgmma_commit() {
  DEV_EITHER(asm volatile("wgmma.commit_group.sync.aligned;" ::
                              : "memory"),
             emu::wgmma_commit(CUEMU_PC));
}
template <int N>
DEV_CALL void wgmma_wait() {
  DEV_EITHER(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N)
                          : "memory"),
             emu::wgmma_wait(N, CUEMU_PC));
}
// After the last wait, and where accumulators were written before the first fence: the compiler may
// not take uses of them past it, which a clobber of memory alone would let it do.
template <int N>
DEV void wgmma_settle([[maybe_unused]] float (&sums)[N]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(sums[i])::"memory");
#endif
}

#ifdef __CUDACC__
#define DEV_OUT4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define DEV_OUT16(i) DEV_OUT4(i), DEV_OUT4(i + 4), DEV_OUT4(i + 8), DEV_OUT4(i + 12)
#define DEV_OUT32 DEV_OUT16(0), DEV_OUT16(16)
#define DEV_OUT64 DEV_OUT16(0), DEV_OUT16(16), DEV_OUT16(32), DEV_OUT16(48)
#define DEV_REGISTERS32                                    \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define DEV_REGISTERS64                                               \
  DEV_REGISTERS32                                                     \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
// operands: "a, b, accumulate?" by number, the numbers that follow those of the registers.
#define DEV_WGMMA(n, type, registers, outputs, a_, b_, predicate, b_major)                   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " predicate                                 \
               ", 0;\n"                                                                      \
               "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" registers \
               "}, " a_ ", " b_ ", p, 1, 1, 0, " b_major ";\n}"                              \
               : outputs                                                                     \
               : "l"(a), "l"(b), "r"(accumulate), "n"(kRowMajorB))
#define DEV_WGMMA64(type) \
  DEV_WGMMA("64", type, DEV_REGISTERS32, DEV_OUT32, "%32", "%33", "%34", "%35")
#define DEV_WGMMA128(type) \
  DEV_WGMMA("128", type, DEV_REGISTERS64, DEV_OUT64, "%64", "%65", "%66", "%67")
#endif

// n = 64. The accumulators may be the first half of those of a product with n = 128: its columns 0
// to 63. B is K-major (rows along k, desc_k_sw128), or MN-major: a row-major (k, n) matrix
// (desc_mn_sw128).
template <class T, bool kRowMajorB = false, int kRegisters>
DEV_CALL void wgmma_m64n64k16(float (&d)[kRegisters], uint64_t a, uint64_t b, int accumulate) {
  static_assert(kIsTwoByte<T> && kRegisters >= 32, "two-byte operands; 64 x 64 over 128 threads");
#ifdef __CUDACC__
  if constexpr (kIsHalf<T>) {
    DEV_WGMMA64("f16");
  } else {
    DEV_WGMMA64("bf16");
  }
#else
  emu::wgmma_issue({d, 64, a, b, accumulate != 0, false, kRowMajorB, kIsHalf<T>}, CUEMU_PC);
#endif
}

template <class T, bool kRowMajorB = false>
DEV_CALL void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  static_assert(kIsTwoByte<T>, "two-byte operands");
#ifdef __CUDACC__
  if constexpr (kIsHalf<T>) {
    DEV_WGMMA128("f16");
  } else {
    DEV_WGMMA128("bf16");
  }
#else
  emu::wgmma_issue({d, 128, a, b, accumulate != 0, false, kRowMajorB, kIsHalf<T>}, CUEMU_PC);
#endif
}

// The same by their operands' names.
template <class T>
DEV void wgmma_m64n64k16_half(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  wgmma_m64n64k16<T>(d, a, b, accumulate);
}
template <class T>
DEV void wgmma_m64n128k16_row_major_b(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  wgmma_m64n128k16<T, true>(d, a, b, accumulate);
}

#undef DEV_WGMMA128
#undef DEV_WGMMA64
#undef DEV_WGMMA
#undef DEV_REGISTERS64
#undef DEV_REGISTERS32
#undef DEV_OUT64
#undef DEV_OUT32
#undef DEV_OUT16
#undef DEV_OUT4

// Descriptor of an operand in shared memory: start, leading and stride offsets in sixteen bytes,
// swizzle of 128 bytes.
DEV uint64_t descriptor_sw128(const void* data, uint32_t leading_bytes, uint32_t stride_bytes) {
  return static_cast<uint64_t>((smem_u32(data) & 0x3FFFF) >> 4) |
         static_cast<uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<uint64_t>(stride_bytes >> 4) << 32 | uint64_t{1} << 62;
}
// K-major: rows of 64 elements, eight of them (1024 bytes) an atom. 16 elements along k are 32
// bytes.
DEV uint64_t desc_k_sw128(const void* data) { return descriptor_sw128(data, 16, 1024); }
// MN-major: boxes of 64 elements along m or n, box_bytes apart; in a box rows of 64 along k, eight
// of them (1024 bytes) an atom.
DEV uint64_t desc_mn_sw128(const void* data, int box_bytes) {
  return descriptor_sw128(data, box_bytes, 1024);
}

// ---- host: maps ----

enum class Element { kFloat16, kBFloat16, kFloat32 };
struct TensorShape {
  const void* data;
  Element element;
  int rank;             // 2 or 3
  uint64_t dims[3];     // elements, innermost first
  uint64_t strides[2];  // bytes, of dims 1 and 2; multiples of 16
  uint32_t box[3];      // elements
  int swizzle;          // bytes: 0, 32, 64, 128; a row of the box is no longer
};

inline cudaError_t make_map(TensorMap* map, const TensorShape& shape) {
#ifdef __CUDACC__
  // Looked up, so that nothing links libcuda; again where that failed.
  static std::atomic<void*> found{nullptr};
  void* function = found;
  if (function == nullptr) {
    cudaDriverEntryPointQueryResult result;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &result);
    if (error != cudaSuccess) return error;
    if (result != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
    found = function;
  }
  const CUtensorMapDataType type =
      shape.element == Element::kFloat16    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
      : shape.element == Element::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                            : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  const CUtensorMapSwizzle swizzle = shape.swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : shape.swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : shape.swizzle == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                           : CU_TENSOR_MAP_SWIZZLE_NONE;
  const cuuint64_t dims[3] = {shape.dims[0], shape.dims[1], shape.dims[2]};
  const cuuint64_t strides[2] = {shape.strides[0], shape.strides[1]};
  const cuuint32_t one[3] = {1, 1, 1};
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  const CUresult result =
      encode(map, type, shape.rank, const_cast<void*>(shape.data), dims, strides, shape.box, one,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
#else
  TensorMap wanted{shape.data,   {}, {}, {}, shape.rank, shape.element == Element::kFloat32 ? 4 : 2,
                   shape.swizzle};
  std::memcpy(wanted.dims, shape.dims, sizeof wanted.dims);
  std::memcpy(wanted.strides, shape.strides, sizeof wanted.strides);
  std::memcpy(wanted.box, shape.box, sizeof wanted.box);
  return emu::make_tensor_map(map, wanted);
#endif
}

// A batch of row-major matrices of two-byte elements, swizzle of 128 bytes, boxes of 64 columns by
// box_rows. ld and matrix count elements.
template <class T>
cudaError_t make_map_3d(TensorMap* map, const T* data, int cols, int rows, int batch, size_t ld,
                        size_t matrix, int box_rows) {
  static_assert(kIsTwoByte<T>, "two-byte elements");
  return make_map(map, {data,
                        kIsHalf<T> ? Element::kFloat16 : Element::kBFloat16,
                        3,
                        {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows),
                         static_cast<uint64_t>(batch)},
                        {ld * sizeof(T), matrix * sizeof(T)},
                        {64, static_cast<uint32_t>(box_rows), 1},
                        128});
}

}  // namespace dev

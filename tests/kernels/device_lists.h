// Lists of strided matrices of any dtype on the device.
#pragma once

#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../formats.h"
#include "device_test.h"
#include "dtype.h"

namespace lists {

using schattor::cuda::Dtype;
using schattor::cuda::size_of;
using schattor::cuda::View;

constexpr Dtype kDtypes[] = {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16};

using Bytes = std::vector<unsigned char>;

template <class T>
T load(const Bytes& bytes, int64_t at) {
  T x;
  std::memcpy(&x, bytes.data() + at * sizeof(T), sizeof(T));
  return x;
}

inline double get(const Bytes& bytes, Dtype dtype, int64_t at) {
  if (dtype == Dtype::kFloat64) return load<double>(bytes, at);
  if (dtype == Dtype::kFloat32) return load<float>(bytes, at);
  return half_value(load<uint16_t>(bytes, at), dtype);
}

inline void set(Bytes& bytes, Dtype dtype, int64_t at, double x) {
  const float single = static_cast<float>(x);
  const uint16_t half = size_of(dtype) == 2 ? half_bits(x, dtype) : 0;
  const void* from = &half;
  if (dtype == Dtype::kFloat64) from = &x;
  if (dtype == Dtype::kFloat32) from = &single;
  std::memcpy(bytes.data() + at * size_of(dtype), from, size_of(dtype));
}

// Gaps of eight keep lines aligned to 16 bytes, gaps of three do not; kOffset begins one entry
// late.
enum class Layout {
  kContiguous,
  kTransposed,
  kRowGaps,
  kColumnGaps,
  kOddRowGaps,
  kOddColumnGaps,
  kScattered,
  kOffset,
};
constexpr Layout kLayouts[] = {Layout::kContiguous, Layout::kTransposed, Layout::kRowGaps,
                               Layout::kColumnGaps, Layout::kOddRowGaps, Layout::kOddColumnGaps,
                               Layout::kScattered,  Layout::kOffset};

// A batch of (rows, cols) matrices of one layout: a copy on the host, and each in memory of its own
// on the device.
class List {
 public:
  List(int64_t batch, int64_t rows, int64_t cols, Dtype dtype, Layout layout)
      : rows(rows), cols(cols), row_stride(cols), col_stride(1), dtype(dtype) {
    const auto is = [&](Layout one, Layout other) { return layout == one || layout == other; };
    if (is(Layout::kRowGaps, Layout::kOddRowGaps)) {
      row_stride = (cols + 7) / 8 * 8 + (layout == Layout::kRowGaps ? 8 : 3);
    } else if (is(Layout::kColumnGaps, Layout::kOddColumnGaps)) {
      row_stride = 1;
      col_stride = (rows + 7) / 8 * 8 + (layout == Layout::kColumnGaps ? 8 : 3);
    } else if (layout == Layout::kTransposed) {
      row_stride = 1, col_stride = rows;
    } else if (layout == Layout::kScattered) {
      row_stride = 2 * cols + 1, col_stride = 2;
    }
    begin = layout == Layout::kOffset ? 1 : 0;
    const int64_t span = (rows - 1) * row_stride + (cols - 1) * col_stride + 1;
    const int64_t extent = begin + (rows * cols == 0 ? 0 : span);
    for (int64_t i = 0; i < batch; ++i) host.emplace_back(extent * size_of(dtype));
  }

  // Every element, gaps included, uniform in [-size, size].
  void fill(uint64_t seed, double size = 1) {
    std::mt19937_64 random(seed);
    std::uniform_real_distribution<double> uniform(-size, size);
    for (Bytes& bytes : host) {
      const int64_t count = bytes.size() / size_of(dtype);
      for (int64_t k = 0; k < count; ++k) lists::set(bytes, dtype, k, uniform(random));
    }
  }

  int64_t offset(int64_t r, int64_t c) const { return begin + r * row_stride + c * col_stride; }
  double at(int64_t i, int64_t r, int64_t c) const { return get(host[i], dtype, offset(r, c)); }
  void set(int64_t i, int64_t r, int64_t c, double x) {
    lists::set(host[i], dtype, offset(r, c), x);
  }

  // Views of fresh copies on the device.
  const View* upload() {
    device.clear(), views.clear();
    for (const Bytes& bytes : host) {
      device.push_back(std::make_shared<device_test::Buffer<unsigned char>>(bytes, "list"));
      views.push_back({device.back()->data() + begin * size_of(dtype), row_stride, col_stride});
    }
    return views.data();
  }
  void download() {
    for (size_t i = 0; i < host.size(); ++i) host[i] = device[i]->read();
  }

  int64_t rows, cols, row_stride, col_stride, begin;
  Dtype dtype;
  std::vector<Bytes> host;
  std::vector<std::shared_ptr<device_test::Buffer<unsigned char>>> device;
  std::vector<View> views;
};

// Long loops over launches and tiles are left out where everything takes long: they have no more
// accesses to check than short ones.
#if defined(CUEMU_RACE) || defined(__SANITIZE_ADDRESS__)
constexpr bool kLong = false;
#else
constexpr bool kLong = true;
#endif

// Where a test runs in five orders, cases are dealt out to them: each order has its fifth.
inline int parts = 1, run_number = 0, case_number = 0;
inline void deal_out(int argc) {
#ifndef __CUDACC__
  if (argc < 2) parts = 5;
#endif
  (void)argc;
}
inline void next_run() { ++run_number, case_number = 0; }
inline bool its_turn() { return case_number++ % parts == run_number % parts; }

}  // namespace lists

// Products of small integers with their memory and their truth, for test_tiles. All sums are exact
// in float, so that results are compared bit by bit with what float64 gives, rounded.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "device_test.h"
#include "product.h"

namespace product_jobs {

using device_test::Buffer;
using schattor::cuda::Dtype;
using schattor::cuda::Operand;
using schattor::cuda::Product;

inline double widened(__half x) { return __half2float(x); }
inline double widened(bf16 x) { return __bfloat162float(x); }
inline double widened(float x) { return x; }
inline double widened(double x) { return x; }

template <typename T>
T rounded(double x) {
  if constexpr (sizeof(T) == 8) {
    return x;
  } else {
    return static_cast<T>(static_cast<float>(x));
  }
}

template <typename T>
constexpr Dtype kDtype = std::is_same<T, double>::value  ? Dtype::kFloat64
                         : std::is_same<T, float>::value ? Dtype::kFloat32
                         : std::is_same<T, bf16>::value  ? Dtype::kBFloat16
                                                         : Dtype::kFloat16;

struct Random {
  uint64_t state;
  // One of -most .. most.
  int integer(int most) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<int>((state >> 33) % (2 * most + 1)) - most;
  }
  double real() { return integer(1 << 20) / double{1 << 20}; }
};

enum class Form { kGram, kSymmetric, kTransposed, kRowMajor };

struct Case {
  Form form;
  int rows, cols, inner, batch;
  // d: D apart; i: D in C's place; s: S; z: S with gamma 0, not to be read; q: squares; n: C is not
  // stored; u: nothing is aligned; r: real numbers, no truth.
  const char* options;

  bool has(char option) const { return std::strchr(options, option) != nullptr; }
  bool symmetric() const { return form == Form::kGram || form == Form::kSymmetric; }
  bool mixes() const { return has('s') || has('z'); }
};

// Matrices in device memory with gaps of NaN between rows and matrices.
template <typename T>
class Matrices {
 public:
  Matrices(int batch, int rows, int cols, bool aligned, const char* name)
      : batch_(batch),
        rows_(rows),
        cols_(cols),
        ld_(aligned ? (cols + 7) / 8 * 8 + 8 : cols + 3),
        stride_(static_cast<int64_t>(ld_) * rows + (aligned ? 16 : 5)),
        first_(aligned ? 0 : 1),
        values_(first_ + stride_ * batch),
        buffer_(values_.size(), name) {
    if (!values_.empty())
      std::memset(static_cast<void*>(&values_[0]), 0xFF, values_.size() * sizeof(T));
  }

  T& at(int b, int i, int j) {
    return values_[first_ + b * stride_ + static_cast<int64_t>(i) * ld_ + j];
  }
  template <typename Value>
  void fill(const Value& value, bool symmetric = false) {
    for (int b = 0; b < batch_; ++b) {
      for (int i = 0; i < rows_; ++i) {
        for (int j = 0; j < cols_; ++j) {
          at(b, i, j) = symmetric && j > i ? T() : rounded<T>(value());
          if (symmetric && j < i) at(b, j, i) = at(b, i, j);
        }
      }
    }
    if (symmetric) mirror();
  }
  void upload() { buffer_.write(values_); }
  Operand operand(int first = 0) const {
    return {buffer_.data() + first_ + first * stride_, ld_, stride_};
  }
  std::vector<T> read() const { return buffer_.read(); }
  const std::vector<T>& values() const { return values_; }

 private:
  void mirror() {
    for (int b = 0; b < batch_; ++b) {
      for (int i = 0; i < rows_; ++i) {
        for (int j = i + 1; j < cols_; ++j) at(b, i, j) = at(b, j, i);
      }
    }
  }

  const int batch_, rows_, cols_;
  const int64_t ld_, stride_, first_;
  std::vector<T> values_;
  Buffer<T> buffer_;
};

// Entries that differ in any bit: everything between the matrices counts too.
template <typename T>
int different(const std::vector<T>& x, const std::vector<T>& y) {
  int count = 0;
  for (size_t i = 0; i < x.size(); ++i) count += std::memcmp(&x[i], &y[i], sizeof(T)) != 0;
  return count;
}

template <typename T>
class Job {
 public:
  Job(const Case& each, uint64_t seed)
      : case_(each),
        a_(each.batch, each.rows, each.inner, !each.has('u'), "a"),
        b_(each.batch, each.form == Form::kRowMajor ? each.inner : each.cols,
           each.form == Form::kRowMajor ? each.cols : each.inner, !each.has('u'), "b"),
        c_(each.batch, each.rows, each.cols, !each.has('u'), "c"),
        d_(each.batch, each.rows, each.cols, !each.has('u'), "d"),
        s_(each.batch, each.rows, each.cols, !each.has('u'), "s"),
        numbers_(3 * each.batch + 1, "numbers"),
        squares_(each.batch, "squares") {
    Random random{seed};
    const auto small = [&] { return each.has('r') ? random.real() : random.integer(1); };
    const auto even = [&] { return each.has('r') ? random.real() : 2 * random.integer(3); };
    a_.fill(small), b_.fill(small);
    if (each.has('i')) c_.fill(even, each.symmetric());
    if (each.has('d')) d_.fill(even, each.symmetric());
    if (each.has('s')) s_.fill(even);
    for (int b = 0; b < each.batch; ++b) {
      for (const double x : {1. + b % 2, 1. - b, 2. - b}) host_numbers_.push_back(x);
    }
    host_numbers_.push_back(each.has('z') ? 0 : 0.5);
    upload();
  }

  void upload() {
    a_.upload(), b_.upload(), c_.upload(), d_.upload(), s_.upload();
    numbers_.write(host_numbers_);
    squares_.write(std::vector<double>(case_.batch, -1.));
  }

  // Matrices first .. first + batch.
  Product product(int first, int batch) const {
    Product x{};
    x.dtype = kDtype<T>;
    x.batch = batch, x.rows = case_.rows, x.cols = case_.cols, x.inner = case_.inner;
    x.transposed_b = case_.form != Form::kRowMajor;
    x.symmetric = case_.symmetric();
    x.a = a_.operand(first);
    x.b = case_.form == Form::kGram ? x.a : b_.operand(first);
    if (!case_.has('n')) x.c = c_.operand(first);
    if (case_.has('d')) x.d = d_.operand(first);
    if (case_.has('i')) x.d = c_.operand(first);
    if (case_.mixes()) x.s = s_.operand(first);
    x.alpha = {numbers_.data() + 3 * first, 3, -100};
    x.beta = {numbers_.data() + 3 * first + 1, 3, -100};
    x.gamma = {numbers_.data() + 3 * case_.batch, 0, -100};  // shared
    x.weight = {numbers_.data() + 3 * first + 2, 3, -100};
    if (case_.has('q')) x.squares = squares_.data() + first;
    return x;
  }
  Product product() const { return product(0, case_.batch); }

  void check(const std::string& name) {
    std::vector<double> squares(case_.batch, -1.);
    Matrices<T> c(case_.batch, case_.rows, case_.cols, !case_.has('u'), "truth of c");
    Matrices<T> s(case_.batch, case_.rows, case_.cols, !case_.has('u'), "truth of s");
    for (int b = 0; b < case_.batch; ++b) compute(b, c, s, squares[b]);
    const int wrong_c = different(c_.read(), case_.has('n') ? c_.values() : c.values());
    CHECK(wrong_c == 0, "%s, C: %d entries", name.c_str(), wrong_c);
    const int wrong_s = different(s_.read(), s.values());
    CHECK(wrong_s == 0, "%s, S: %d entries", name.c_str(), wrong_s);
    if (!case_.has('q')) return;
    for (int b = 0; b < case_.batch; ++b) {
      const double square = squares_.read()[b];
      CHECK(square == squares[b], "%s, squares: %.9g, not %.9g", name.c_str(), square, squares[b]);
    }
  }

  // Of every bit of the results.
  uint64_t hash() const {
    uint64_t hash = 1469598103934665603ull;
    const auto eat = [&](const auto& values) {
      const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
      for (size_t i = 0; i < values.size() * sizeof(values[0]); ++i) {
        hash = (hash ^ bytes[i]) * 1099511628211ull;
      }
    };
    eat(c_.read()), eat(s_.read()), eat(squares_.read());
    return hash;
  }

  Matrices<T>& a() { return a_; }
  Matrices<T>& b() { return b_; }
  Matrices<T>& c() { return c_; }
  Matrices<T>& d() { return d_; }
  Matrices<T>& s() { return s_; }
  std::vector<double> squares() const { return squares_.read(); }

 private:
  // Entry (i, j), which in a symmetric product is one of the lower half.
  double entry(int b, int i, int j) {
    if (case_.symmetric() && j > i) std::swap(i, j);
    double sum = 0;
    for (int k = 0; k < case_.inner; ++k) {
      const T right = case_.form == Form::kGram       ? a_.at(b, j, k)
                      : case_.form == Form::kRowMajor ? b_.at(b, k, j)
                                                      : b_.at(b, j, k);
      sum += widened(a_.at(b, i, k)) * widened(right);
    }
    sum *= host_numbers_[3 * b];
    if (case_.has('d')) sum += host_numbers_[3 * b + 1] * widened(d_.at(b, i, j));
    if (case_.has('i')) sum += host_numbers_[3 * b + 1] * widened(c_.at(b, i, j));
    return sum;
  }

  void compute(int b, Matrices<T>& c, Matrices<T>& s, double& squares) {
    squares = 0;
    for (int i = 0; i < case_.rows; ++i) {
      for (int j = 0; j < case_.cols; ++j) {
        const double value = entry(b, i, j);
        c.at(b, i, j) = rounded<T>(value);
        squares += widened(c.at(b, i, j)) * widened(c.at(b, i, j));
        double mixture = host_numbers_[3 * b + 2] * value;
        if (case_.has('s')) mixture += host_numbers_.back() * widened(s_.at(b, i, j));
        if (case_.mixes()) s.at(b, i, j) = rounded<T>(mixture);
      }
    }
  }

  const Case case_;
  Matrices<T> a_, b_, c_, d_, s_;
  std::vector<double> host_numbers_;  // alpha, beta, weight of each matrix, and gamma
  Buffer<double> numbers_;
  Buffer<double> squares_;
};

}  // namespace product_jobs

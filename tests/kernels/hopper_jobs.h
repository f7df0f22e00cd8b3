// Products with their memory and their truth in float64, for test_hopper.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "device_test.h"
#include "product.h"

namespace hopper_jobs {

using device_test::Buffer;
using schattor::cuda::Dtype;
using schattor::cuda::Operand;
using schattor::cuda::Product;

inline double to_double(__half x) { return __half2float(x); }
inline double to_double(bf16 x) { return __bfloat162float(x); }
template <class T>
T rounded(double x) {
  return static_cast<T>(static_cast<float>(x));
}
template <class T>
constexpr Dtype kDtype = std::is_same<T, __half>::value ? Dtype::kFloat16 : Dtype::kBFloat16;
// Half a unit in the last place of the largest element, and a little for the sums.
template <class T>
constexpr double kTolerance = std::is_same<T, __half>::value ? 6e-4 : 5e-3;

struct Random {
  uint64_t state;
  double operator()() {  // in (-1, 1)
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<double>(static_cast<int64_t>(state) >> 11) / (1ull << 52);
  }
};

enum class Form { kGram, kSymmetric, kTransposed, kRowMajor };

struct Shape {
  Form form;
  int rows, cols, inner, batch;
  // d: D apart; i: D in C's place; s: S; z: S with gamma 0; q: squares; n: C is not stored.
  const char* options;
  bool has(char option) const { return std::strchr(options, option) != nullptr; }
  bool symmetric() const { return form == Form::kGram || form == Form::kSymmetric; }
};

// Padded matrices in device memory; the padding is NaN, and must stay as it is.
template <class T>
class Matrices {
 public:
  Matrices(int batch, int rows, int cols, const char* name)
      : batch_(batch),
        rows_(rows),
        cols_(cols),
        ld_((cols + 7) / 8 * 8 + 8),
        stride_(static_cast<int64_t>(ld_) * rows + 16),
        values(stride_ * batch),
        buffer_(stride_ * batch, name) {
    std::memset(static_cast<void*>(values.data()), 0xFF, values.size() * sizeof(T));
  }
  T& at(int b, int i, int j) { return values[b * stride_ + static_cast<int64_t>(i) * ld_ + j]; }
  double operator()(int b, int i, int j) { return to_double(at(b, i, j)); }
  void fill(Random& random, double scale, bool symmetric) {
    for (int b = 0; b < batch_; ++b) {
      for (int i = 0; i < rows_; ++i) {
        for (int j = 0; j < (symmetric ? i + 1 : cols_); ++j) {
          at(b, i, j) = rounded<T>(scale * random());
          if (symmetric) at(b, j, i) = at(b, i, j);
        }
      }
    }
  }
  void upload() { buffer_.write(values); }
  void download() { values = buffer_.read(); }
  Operand operand() const { return {buffer_.data(), ld_, stride_}; }
  // How many elements outside of the matrices are not the bytes they began as.
  int padding_touched() {
    std::vector<bool> inside(values.size());
    for (int b = 0; b < batch_; ++b) {
      for (int i = 0; i < rows_; ++i) {
        for (int j = 0; j < cols_; ++j) {
          inside[b * stride_ + static_cast<int64_t>(i) * ld_ + j] = true;
        }
      }
    }
    int touched = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      uint16_t bits;
      std::memcpy(&bits, &values[i], 2);
      if (!inside[i] && bits != 0xFFFF) ++touched;
    }
    return touched;
  }

 private:
  int batch_, rows_, cols_;
  int64_t ld_, stride_;

 public:
  std::vector<T> values;

 private:
  Buffer<T> buffer_;
};

class Bits {
 public:
  template <class T>
  void eat(const std::vector<T>& values) {
    const unsigned char* bytes = reinterpret_cast<const unsigned char*>(values.data());
    for (size_t i = 0; i < values.size() * sizeof(T); ++i) {
      hash_ = (hash_ ^ bytes[i]) * 1099511628211ull;
    }
  }
  uint64_t hash() const { return hash_; }

 private:
  uint64_t hash_ = 1469598103934665603ull;
};

// One product with its memory and its truth.
template <class T>
class Job {
 public:
  Job(const Shape& shape, uint64_t seed)
      : shape_(shape),
        a_(shape.batch, shape.rows, shape.inner, "a"),
        b_(shape.batch, shape.form == Form::kRowMajor ? shape.inner : shape.cols,
           shape.form == Form::kRowMajor ? shape.cols : shape.inner, "b"),
        c_(shape.batch, shape.rows, shape.cols, "c"),
        d_(shape.batch, shape.rows, shape.cols, "d"),
        s_(shape.batch, shape.rows, shape.cols, "s"),
        numbers_(4 * shape.batch, "numbers"),
        squares_(shape.batch, "squares") {
    Random random{seed};
    const bool symmetric = shape.symmetric();
    a_.fill(random, 0.8, false);
    b_.fill(random, 0.8, false);
    if (shape.form == Form::kGram) b_.values = a_.values;
    if (shape.has('i')) c_.fill(random, 2., symmetric);
    if (shape.has('d')) d_.fill(random, 2., symmetric);
    if (shape.has('s')) s_.fill(random, 2., symmetric);
    for (int b = 0; b < shape.batch; ++b) {
      for (const float x :
           {0.7f + b, -1.3f + 0.5f * b, shape.has('z') ? 0.f : 0.6f - b, 0.4f + b}) {
        numbers.push_back(x);
      }
    }
  }

  void upload() {
    a_.upload(), b_.upload(), c_.upload(), d_.upload(), s_.upload();
    numbers_.write(numbers);
    squares_.write(std::vector<double>(shape_.batch, -1.));
  }

  // Matrices first .. first + batch.
  Product product(int first, int batch) const {
    Product x{};
    x.dtype = kDtype<T>;
    x.batch = batch;
    x.rows = shape_.rows, x.cols = shape_.cols, x.inner = shape_.inner;
    x.transposed_b = shape_.form != Form::kRowMajor;
    x.symmetric = shape_.symmetric();
    x.a = from(a_, first);
    x.b = shape_.form == Form::kGram ? x.a : from(b_, first);
    if (!shape_.has('n')) x.c = from(c_, first);
    if (shape_.has('d')) x.d = from(d_, first);
    if (shape_.has('i')) x.d = from(c_, first);
    if (shape_.has('s') || shape_.has('z')) x.s = from(s_, first);
    x.alpha = {numbers_.data() + 4 * first, 4, -1e9};
    x.beta = {numbers_.data() + 4 * first + 1, 4, -1e9};
    x.gamma = {numbers_.data() + 4 * first + 2, 4, -1e9};
    x.weight = {numbers_.data() + 4 * first + 3, 4, -1e9};
    if (shape_.has('q')) x.squares = squares_.data() + first;
    return x;
  }

  void check(const std::string& name) {
    const std::vector<T> old_c = c_.values, old_s = s_.values;
    download();
    for (int b = 0; b < shape_.batch; ++b) check_matrix(name, b, old_c, old_s);
    CHECK(c_.padding_touched() + s_.padding_touched() == 0, "%s", name.c_str());
    c_.values = old_c, s_.values = old_s;
  }

  uint64_t bits() {
    const std::vector<T> old_c = c_.values, old_s = s_.values;
    download();
    Bits bits;
    bits.eat(c_.values), bits.eat(s_.values), bits.eat(squares_.read());
    c_.values = old_c, s_.values = old_s;
    return bits.hash();
  }

  Matrices<T>& a() { return a_; }
  Matrices<T>& b() { return b_; }
  Matrices<T>& c() { return c_; }
  Matrices<T>& d() { return d_; }
  Matrices<T>& s() { return s_; }
  std::vector<double> squares() const { return squares_.read(); }
  void download() { c_.download(), s_.download(); }
  std::vector<double> numbers;  // alpha, beta, gamma, weight of each matrix

 private:
  static Operand from(const Matrices<T>& x, int first) {
    Operand operand = x.operand();
    operand.data = static_cast<T*>(operand.data) + first * operand.stride;
    return operand;
  }

  double dot(int b, int i, int j) {
    double sum = 0.;
    for (int k = 0; k < shape_.inner; ++k) {
      sum += a_(b, i, k) * (shape_.form == Form::kRowMajor ? b_(b, k, j) : b_(b, j, k));
    }
    return sum;
  }

  void check_matrix(const std::string& name, int b, const std::vector<T>& old_c,
                    const std::vector<T>& old_s) {
    const double* x = &numbers[4 * b];
    const Operand place = c_.operand();
    double most_c = 0., most_s = 0., wrong_c = 0., wrong_s = 0., squares = 0.;
    int asymmetric = 0;
    const auto worse = [](double wrong, double error) { return error <= wrong ? wrong : error; };
    for (int i = 0; i < shape_.rows; ++i) {
      for (int j = 0; j < (shape_.symmetric() ? i + 1 : shape_.cols); ++j) {
        const size_t at = b * place.stride + i * place.ld + j;
        double c = x[0] * dot(b, i, j);
        if (shape_.has('d')) c += x[1] * d_(b, i, j);
        if (shape_.has('i')) c += x[1] * to_double(old_c[at]);
        double s = x[3] * c;
        if (shape_.has('s')) s += x[2] * to_double(old_s[at]);
        most_c = std::max(most_c, std::fabs(c)), most_s = std::max(most_s, std::fabs(s));
        wrong_c = worse(wrong_c, std::fabs(c_(b, i, j) - c));
        wrong_s = worse(wrong_s, std::fabs(s_(b, i, j) - s));
        squares += (shape_.symmetric() && i != j ? 2 : 1) * c * c;
        if (shape_.symmetric()) {
          asymmetric += std::memcmp(&c_.at(b, i, j), &c_.at(b, j, i), 2) != 0;
          asymmetric += std::memcmp(&s_.at(b, i, j), &s_.at(b, j, i), 2) != 0;
        }
      }
    }
    CHECK(asymmetric == 0, "%s: %d elements", name.c_str(), asymmetric);
    if (!shape_.has('n')) {
      CHECK(wrong_c <= kTolerance<T> * most_c, "%s, C: %g", name.c_str(), wrong_c / most_c);
    }
    if (shape_.has('s') || shape_.has('z')) {
      CHECK(wrong_s <= kTolerance<T> * most_s, "%s, S: %g", name.c_str(), wrong_s / most_s);
    }
    if (shape_.has('q')) {
      const double got = squares_.read()[b];
      CHECK(std::fabs(got - squares) <= 1e-5 * squares, "%s, squares: %.9g, not %.9g", name.c_str(),
            got, squares);
    }
  }

  Shape shape_;
  Matrices<T> a_, b_, c_, d_, s_;
  Buffer<double> numbers_;
  Buffer<double> squares_;
};

}  // namespace hopper_jobs

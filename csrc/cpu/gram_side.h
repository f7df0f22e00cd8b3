// A matrix X that is met only through its Gram matrix X X' and through products S X with symmetric
// S: ThinSide for few long rows, StripSide for any. Both serve matrix after matrix, each by
//   begin(input), gram(R), and finish(S, direction).
#pragma once

#include <cstdint>

#include "strips.h"

namespace schattor::cpu {

// X is read twice, some columns at a time, as it lies.
template <typename T>
class ThinSide {
 public:
  ThinSide(int64_t rows, int64_t cols, Dtype dtype, bool advances, Team team, Arena& arena);

  using Element = T;
  static constexpr bool kAdvances = false;
  // Whether this is the side to take: measured on shapes from (8, 8) to (64, 4096).
  static bool suits(int64_t rows, int64_t cols) { return rows <= 64 && cols >= 16 * rows; }
  static bool divides(int64_t, int64_t) { return false; }

  const StripLayout& layout() const { return layout_; }
  void prepare();
  void begin(const char* input) { input_ = input; }
  void gram(T* gram);
  Overlap finish(const T* s, char* direction);

 private:
  int64_t load(int64_t begin);
  void expect(const char* direction, int64_t count) const;

  int64_t rows_, cols_;
  Dtype dtype_;
  StripLayout layout_;
  int64_t padded_, stride_;  // of the columns at hand: rows, and elements in a row
  T *columns_, *results_, *sums_;
  const char* input_ = nullptr;
};

// X comes tall, as Y = X' (cols, rows), and lies as one strip does: nothing is moved, and only
// where it is replaced anything of its size is held.
template <typename T>
class TallSide {
 public:
  TallSide(int64_t rows, int64_t cols, Dtype dtype, bool advances, Team team, Arena& arena);

  using Element = T;
  static constexpr bool kAdvances = true;
  static bool suits(int64_t rows, int64_t cols, Dtype dtype) {
    const StripLayout layout = strip_layout<T>(rows);
    return dtype == kStoredAs<T> && layout.width == rows && layout.padded_rows(cols) == cols;
  }
  static bool divides(int64_t, int64_t) { return false; }

  const StripLayout& layout() const { return layout_; }
  void prepare() {}
  void begin(const char* input);
  void gram(T* gram);
  void advance(const T* s, const T* q, double scale);
  Overlap finish(const T* s, char* direction);

 private:
  Product<T> times(const T* square, T* result) const;

  int64_t rows_, cols_;
  Team team_;
  StripLayout layout_;
  T *next_, *other_, *sum_;  // (cols, rows), null where X never advances
  const T *input_ = nullptr, *y_ = nullptr;
  bool begins_ = true;  // nothing is in sum
};

// X is held, as Y = X' (cols, rows), and can be replaced by Q X on the way.
template <typename T>
class StripSide {
 public:
  // advances: whether advance() will be called.
  StripSide(int64_t rows, int64_t cols, Dtype dtype, bool advances, Team team, Arena& arena);

  using Element = T;
  static constexpr bool kAdvances = true;
  static bool divides(int64_t rows, int64_t cols) { return worth_dividing(rows, cols); }

  const StripLayout& layout() const { return layout_; }
  void prepare();
  void begin(const char* input);
  void gram(T* gram);
  // direction += S X, where S is not null, and then X <- scale Q X.
  void advance(const T* s, const T* q, double scale);
  Overlap finish(const T* s, char* direction);

 private:
  Product<T> times(const T* square, T* result) const;
  void add(const T* s);

  int64_t rows_, cols_;
  Team team_;
  StripLayout layout_;
  Transposer<T> transposer_;
  T *y_, *direction_;
  T* next_;  // null where X never advances
  const char* input_ = nullptr;
  bool begins_ = true;  // nothing is in direction yet
};

}  // namespace schattor::cpu

// A matrix X that is met only through its Gram matrix X X' and through products S X with symmetric
// S: ThinSide for few long rows, StripSide for any. Both serve matrix after matrix, each by
//   begin(input, direction), gram(R), and finish(S).
#pragma once

#include <cstdint>
#include <type_traits>

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
  void begin(const char* input, char* direction) { input_ = input, direction_ = direction; }
  void gram(T* gram);
  Overlap finish(const T* s);

 private:
  int64_t load(int64_t begin);
  void expect(const char* direction, int64_t count) const;

  int64_t rows_, cols_;
  Dtype dtype_;
  StripLayout layout_;
  int64_t padded_, stride_;  // of the columns at hand: rows, and elements in a row
  T *columns_, *results_, *sums_;
  const char* input_ = nullptr;
  char* direction_ = nullptr;
};

// In place of a Transposer, where X comes tall, X' (cols, rows), and lies as one strip does.
template <typename T>
class AsItLies {
 public:
  AsItLies(const StripLayout& layout, int64_t length, Dtype, Team, Arena&)
      : size_(layout.size(length)) {}

  static bool suits(int64_t rows, int64_t cols, Dtype dtype) {
    const StripLayout layout = strip_layout<T>(rows);
    return dtype == kStoredAs<T> && layout.width == rows && layout.padded_rows(cols) == cols;
  }

  Overlap store(const T* strips, const char* matrix, char*) const;

 private:
  int64_t size_;
};

// X is met as Y = X' (cols, rows), and can be replaced by Q X on the way. Where a Transposer moves
// it, it is held; as it lies, nothing of its size is, until it is replaced.
template <typename T, typename Mover = Transposer<T>>
class StripSide {
 public:
  // advances: whether advance() will be called.
  StripSide(int64_t rows, int64_t cols, Dtype dtype, bool advances, Team team, Arena& arena);

  using Element = T;
  static constexpr bool kAdvances = true;
  static bool divides(int64_t rows, int64_t cols) { return kMoves && worth_dividing(rows, cols); }

  const StripLayout& layout() const { return layout_; }
  void prepare();
  void begin(const char* input, char* direction);
  void gram(T* gram);
  // direction += S X, where S is not null, and then X <- scale Q X.
  void advance(const T* s, const T* q, double scale);
  Overlap finish(const T* s);

 private:
  static constexpr bool kMoves = std::is_same_v<Mover, Transposer<T>>;

  Product<T> times(const T* square, T* result) const;
  void add(const T* s);

  int64_t rows_, cols_;
  Team team_;
  StripLayout layout_;
  Mover mover_;
  T *next_, *other_;  // where Y will be next, and where it was; null where it never is
  T* sum_;            // of directions; as it lies, the direction itself
  const T* y_ = nullptr;
  const char* input_ = nullptr;
  char* direction_ = nullptr;
  bool begins_ = true;  // nothing is in the sum yet
};

template <typename T>
using TallSide = StripSide<T, AsItLies<T>>;

}  // namespace schattor::cpu

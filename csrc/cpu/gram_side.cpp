#include "gram_side.h"

#include <algorithm>
#include <utility>

#include "levels.h"

namespace schattor::cpu {
namespace {

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Columns at a time, so that they stay in the first-level cache.
template <typename T>
int64_t columns_at_once(int64_t padded_rows, int64_t cols, int64_t lanes) {
  constexpr int64_t kBytes = 16384;
  const int64_t step = kMaxStripVectors * lanes;
  const int64_t fitting = kBytes / static_cast<int64_t>(sizeof(T)) / padded_rows / step * step;
  return std::min(std::max(fitting, 2 * step), round_up(cols, lanes));
}

}  // namespace

template <typename T>
ThinSide<T>::ThinSide(int64_t rows, int64_t cols, Dtype dtype, bool, Team, Arena& arena)
    : rows_(rows),
      cols_(cols),
      dtype_(dtype),
      layout_(strip_layout<T>(rows)),
      padded_(round_up(rows, kThinRows)),
      stride_(columns_at_once<T>(padded_, cols, layout_.lanes)),
      columns_(arena.take<T>(padded_ * stride_)),
      results_(arena.take<T>(padded_ * stride_)),
      sums_(arena.take<T>(kernels().products.thin<T>().sums(rows))) {}

template <typename T>
void ThinSide<T>::prepare() {
  std::fill(columns_, columns_ + padded_ * stride_, T{0});
}

// The columns from begin on; those past the last are zero. Returns how many there are.
template <typename T>
int64_t ThinSide<T>::load(int64_t begin) {
  const RowLoops<T>& rows = kernels().rows.in<T>();
  const int64_t count = std::min(stride_, cols_ - begin);
  for (int64_t r = 0; r < rows_; ++r) {
    T* to = columns_ + r * stride_;
    rows.load(dtype_, input_ + (r * cols_ + begin) * size_of(dtype_), 1, count, to);
    std::fill(to + count, to + round_up(count, layout_.lanes), T{0});
  }
  return count;
}

template <typename T>
void ThinSide<T>::gram(T* gram) {
  const ThinProducts<T>& products = kernels().products.thin<T>();
  std::fill(sums_, sums_ + products.sums(rows_), T{0});
  for (int64_t begin = 0; begin < cols_; begin += stride_) {
    const int64_t count = load(begin);
    products.gram(columns_, stride_, rows_, round_up(count, layout_.lanes), sums_);
  }
  products.total(layout_, sums_, gram);
}

// Asks for the lines that are about to be written.
template <typename T>
void ThinSide<T>::expect(const char* direction, int64_t count) const {
  constexpr int64_t kLine = 64;
  const int64_t stride = cols_ * size_of(dtype_), bytes = count * size_of(dtype_);
  for (int64_t r = 0; r < rows_; ++r, direction += stride) {
    for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(direction + at, 1, 3);
  }
}

template <typename T>
Overlap ThinSide<T>::finish(const T* s) {
  const ThinProducts<T>& products = kernels().products.thin<T>();
  // Where nothing is rounded or padded, results are written where they belong.
  const bool in_place = dtype_ == kStoredAs<T> && padded_ == rows_ && cols_ % layout_.lanes == 0;
  Overlap overlap, unrounded;
  for (int64_t begin = 0; begin < cols_; begin += stride_) {
    const int64_t count = load(begin), padded = round_up(count, layout_.lanes);
    char* to = direction_ + begin * size_of(dtype_);
    expect(to, count);
    if (in_place) {
      products.apply(layout_, s, columns_, stride_, padded, reinterpret_cast<T*>(to), cols_,
                     &overlap.inner, &overlap.square);
    } else {
      products.apply(layout_, s, columns_, stride_, padded, results_, stride_, &unrounded.inner,
                     &unrounded.square);
      put_direction<T>({columns_, stride_}, {results_, stride_}, rows_, count, dtype_, to, cols_,
                       overlap);
    }
  }
  return overlap;
}

template <typename T>
Overlap AsItLies<T>::store(const T* strips, const char* matrix, char*) const {
  Overlap overlap;
  kernels().products.in<T>().overlap(reinterpret_cast<const T*>(matrix), size_, strips, size_, 1,
                                     size_, &overlap.inner, &overlap.square);
  return overlap;
}

template <typename T, typename Mover>
StripSide<T, Mover>::StripSide(int64_t rows, int64_t cols, Dtype dtype, bool advances, Team team,
                               Arena& arena)
    : rows_(rows),
      cols_(cols),
      team_(team),
      layout_(strip_layout<T>(rows)),
      mover_(layout_, cols, dtype, team, arena),
      next_(advances ? arena.take<T>(layout_.size(cols)) : nullptr),
      other_(kMoves || advances ? arena.take<T>(layout_.size(cols)) : nullptr),
      sum_(kMoves ? arena.take<T>(layout_.size(cols)) : nullptr) {}

template <typename T, typename Mover>
void StripSide<T, Mover>::prepare() {
  for (T* matrix : {next_, other_, sum_}) {
    if (matrix != nullptr) clear_padding(layout_, cols_, matrix);
  }
}

template <typename T, typename Mover>
void StripSide<T, Mover>::begin(const char* input, char* direction) {
  input_ = input, direction_ = direction;
  begins_ = true;
  if constexpr (kMoves) {
    mover_.load(input, other_);
    y_ = other_;
  } else {
    y_ = reinterpret_cast<const T*>(input);
    sum_ = reinterpret_cast<T*>(direction);
  }
}

template <typename T, typename Mover>
void StripSide<T, Mover>::gram(T* gram) {
  multiply(Product<T>{layout_, rows_, cols_, y_, y_, true, true, gram}, team_);
}

template <typename T, typename Mover>
Product<T> StripSide<T, Mover>::times(const T* square, T* result) const {
  return {layout_, cols_, rows_, y_, square, false, false, result};
}

template <typename T, typename Mover>
void StripSide<T, Mover>::add(const T* s) {
  Product<T> product = times(s, begins_ ? sum_ : next_);
  if (!begins_) {
    product.sum = sum_;
    product.result_weight = 1;
  }
  multiply(product, team_);
  begins_ = false;
}

template <typename T, typename Mover>
void StripSide<T, Mover>::advance(const T* s, const T* q, double scale) {
  if (s != nullptr) add(s);
  Product<T> product = times(q, next_);
  product.scale = static_cast<T>(scale);
  multiply(product, team_);
  y_ = next_;
  std::swap(next_, other_);
}

template <typename T, typename Mover>
Overlap StripSide<T, Mover>::finish(const T* s) {
  add(s);
  return mover_.store(sum_, input_, direction_);
}

template class ThinSide<float>;
template class ThinSide<double>;
template class AsItLies<float>;
template class AsItLies<double>;
template class StripSide<float>;
template class StripSide<double>;
template class StripSide<float, AsItLies<float>>;
template class StripSide<double, AsItLies<double>>;

}  // namespace schattor::cpu

// Matrices in other bases, Q_L' X Q_R and back: both products in strips, one after the other while
// what is between them is in cache.
#include <algorithm>
#include <utility>

#include "levels.h"
#include "strips.h"

namespace schattor::cpu {
namespace {

template <typename T>
class Rotation {
 public:
  Rotation(const RotateArgs& args, Team team, Arena& arena)
      : args_(args),
        team_(team),
        layout_(strip_layout<T>(args.cols)),
        left_layout_(layout_),
        transposer_(layout_, args.cols, args.dtype, team, arena),
        here_(arena.take<T>(layout_.size(args.rows))),
        there_(arena.take<T>(layout_.size(args.rows))) {
    // Of the same width as the others, as products have it.
    left_layout_.columns = args.rows;
    left_layout_.strips = (args.rows + layout_.width - 1) / layout_.width;
    if (args.left != nullptr) left_ = arena.take<T>(left_layout_.size(args.rows));
    if (args.right != nullptr) right_ = arena.take<T>(layout_.size(args.cols));
  }

  static bool divides(const RotateArgs& args) {
    return args.right ? worth_dividing(args.cols, args.rows) : worth_dividing(args.rows, args.cols);
  }

  void prepare() {
    clear_padding(layout_, args_.rows, here_);
    clear_padding(layout_, args_.rows, there_);
    if (args_.left != nullptr) clear_padding(left_layout_, args_.rows, left_);
    if (args_.right != nullptr) clear_padding(layout_, args_.cols, right_);
  }

  void solve(int64_t index) {
    const int64_t rows = args_.rows, cols = args_.cols;
    load_rows(layout_, rows, matrix(args_.x, index, rows, cols), here_, team_);
    if (args_.left != nullptr) {
      load_rows(left_layout_, rows, matrix(args_.left, index, rows, rows), left_, team_);
      multiply(rows, left_, here_, !args_.back);
    }
    if (args_.right != nullptr) {
      const T* right = matrix(args_.right, index, cols, cols);
      if (args_.back) {
        transposer_.load(reinterpret_cast<const char*>(right), right_);
      } else {
        load_rows(layout_, cols, right, right_, team_);
      }
      multiply(cols, here_, right_, false);
    }
    store(index);
  }

 private:
  static const T* matrix(const void* batch, int64_t index, int64_t rows, int64_t cols) {
    return static_cast<const T*>(batch) + index * rows * cols;
  }

  void multiply(int64_t depth, const T* left, const T* right, bool transposed) {
    schattor::cpu::multiply(
        Product<T>{layout_, args_.rows, depth, left, right, transposed, false, there_}, team_);
    std::swap(here_, there_);
  }

  void store(int64_t index) const {
    const T least = args_.least == nullptr ? T{-1} : static_cast<T>(args_.least[index]);
    const T scale = args_.scale == nullptr ? T{1} : static_cast<T>(args_.scale[index]);
    T* const rotated = static_cast<T*>(args_.rotated) + index * args_.rows * args_.cols;
    store_rows(layout_, args_.rows, here_, least, scale, rotated, team_);
  }

  const RotateArgs& args_;
  const Team team_;
  const StripLayout layout_;
  StripLayout left_layout_;
  const Transposer<T> transposer_;
  T *here_, *there_;  // (rows, cols): the matrix, and where its next product goes
  T *left_ = nullptr, *right_ = nullptr;
};

template <typename T>
using Rotations = Batch<Rotation<T>, RotateArgs>;

}  // namespace

void rotate(const RotateArgs& args, const Parallel& parallel) {
  if (args.rows * args.cols == 0) return;
  if (args.dtype == Dtype::kFloat64) return Rotations<double>(args, parallel).solve();
  Rotations<float>(args, parallel).solve();
}

}  // namespace schattor::cpu

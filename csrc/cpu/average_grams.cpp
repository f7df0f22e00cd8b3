// Running averages of X X' and X'X, block by block of the upper triangle: a block's product is
// still in cache when it is added to its factor and to the mirrored place.
#include <algorithm>

#include "levels.h"
#include "strips.h"

namespace schattor::cpu {
namespace {

// X X' is Y'Y of Y = X', and X'X is that of Y = X.
template <typename T>
class GramAverage {
 public:
  GramAverage(const AverageGramsArgs& args, Team team, Arena& arena)
      : args_(args),
        team_(team),
        side_(args.right ? args.cols : args.rows),
        depth_(args.right ? args.rows : args.cols),
        layout_(strip_layout<T>(side_)),
        panel_strips_(std::clamp<int64_t>(kPanel / layout_.width, 1, layout_.strips)),
        transposer_(layout_, args.cols, args.dtype, team, arena),
        y_(arena.take<T>(layout_.size(depth_))),
        block_(arena.take<T>(panel_strips_ * layout_.stride(panel_strips_ * layout_.width))) {}

  static bool divides(const AverageGramsArgs& args) {
    return args.right ? worth_dividing(args.cols, args.rows) : worth_dividing(args.rows, args.cols);
  }

  void prepare() { clear_padding(layout_, depth_, y_); }

  void solve(int64_t index) {
    const T* x = static_cast<const T*>(args_.wide) + index * args_.rows * args_.cols;
    if (args_.right) {
      load_rows(layout_, depth_, x, y_, team_);
    } else {
      transposer_.load(reinterpret_cast<const char*>(x), y_);
    }
    for (int64_t right = 0; right < layout_.strips; right += panel_strips_) {
      for (int64_t left = 0; left <= right; left += panel_strips_) {
        multiply(panel(left), panel(right));
        average(index, panel(left), panel(right));
      }
    }
  }

 private:
  // Columns of Y: a block has so many rows, or columns. Two panels of a few hundred terms and the
  // block stay in the second-level cache.
  static constexpr int64_t kPanel = 384;

  struct Panel {
    int64_t strip, begin;  // the first strip, the first column
    StripLayout layout;
  };

  Panel panel(int64_t strip) const {
    const int64_t begin = strip * layout_.width;
    StripLayout layout = layout_;
    layout.columns = std::min(panel_strips_ * layout_.width, side_ - begin);
    layout.strips = std::min(panel_strips_, layout_.strips - strip);
    return {strip, begin, layout};
  }

  const T* terms_of(const Panel& panel) const { return y_ + panel.strip * layout_.stride(depth_); }

  void multiply(const Panel& left, const Panel& right) const {
    const int64_t rows = left.layout.columns;
    if (depth_ == 0) std::fill(block_, block_ + right.layout.size(rows), T{0});
    schattor::cpu::multiply(Product<T>{right.layout, rows, depth_, terms_of(left), terms_of(right),
                                       true, left.strip == right.strip, block_},
                            team_);
  }

  // A few rows of the block at a time: into the factor's rows, and from there into its columns.
  void average(int64_t index, const Panel& left, const Panel& right) const {
    constexpr int64_t kRows = 96;
    const RowLoops<T>& loops = kernels().rows.in<T>();
    T* const factor = static_cast<T*>(args_.factors) + index * side_ * side_;
    const int64_t rows = left.layout.columns, cols = right.layout.columns;
    const int64_t groups = (rows + kRows - 1) / kRows;
    team_.run([&](Share share) {
      for (int64_t group = share.begin(groups); group < share.end(groups); ++group) {
        const int64_t begin = group * kRows, end = std::min(begin + kRows, rows);
        T* const to = factor + (left.begin + begin) * side_ + right.begin;
        for (int64_t r = begin; r < end; ++r)
          add_row(index, right, rows, r, to + (r - begin) * side_);
        if (left.strip == right.strip) continue;
        loops.transpose(to, side_, end - begin, cols,
                        factor + right.begin * side_ + left.begin + begin, side_);
      }
    });
  }

  // to <- decay to + share of one row of the block.
  void add_row(int64_t index, const Panel& right, int64_t rows, int64_t r, T* to) const {
    const RowLoops<T>& loops = kernels().rows.in<T>();
    const Blend<T> blend{static_cast<T>(args_.decay[index]), static_cast<T>(args_.share[index])};
    const StripLayout& layout = right.layout;
    const T* from = block_ + r * layout.width;
    for (int64_t c = 0; c < layout.columns; c += layout.width, from += layout.stride(rows)) {
      loops.blend(blend, to + c, from, std::min(layout.width, layout.columns - c), to + c);
    }
  }

  const AverageGramsArgs& args_;
  const Team team_;
  const int64_t side_, depth_;
  const StripLayout layout_;
  const int64_t panel_strips_;
  const Transposer<T> transposer_;
  T* y_;      // (depth, side)
  T* block_;  // of two panels
};

template <typename T>
using GramBatch = Batch<GramAverage<T>, AverageGramsArgs>;

}  // namespace

void average_grams(const AverageGramsArgs& args, const Parallel& parallel) {
  if ((args.right ? args.cols : args.rows) == 0) return;
  if (args.dtype == Dtype::kFloat64) return GramBatch<double>(args, parallel).solve();
  GramBatch<float>(args, parallel).solve();
}

}  // namespace schattor::cpu

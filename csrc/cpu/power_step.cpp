// One step of subspace iteration, the Q of F Q, in strips: the product, the order of its columns,
// and Householder's QR strip by strip, with H_1 .. H_k = I - V T V' for the columns of each.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "levels.h"
#include "strips.h"

namespace schattor::cpu {
namespace {

template <typename T>
class PowerStep {
 public:
  PowerStep(const PowerStepArgs& args, Team team, Arena& arena)
      : args_(args),
        team_(team),
        size_(args.size),
        layout_(strip_layout<T>(size_)),
        square_(layout_.width * layout_.width),
        factor_(arena.take<T>(layout_.size(size_))),
        basis_(arena.take<T>(layout_.size(size_))),
        product_(arena.take<T>(layout_.size(size_))),
        t_(arena.take<T>(layout_.strips * square_)),
        scratch_(arena.take<T>(team.workers() * 2 * square_)),
        row_(arena.take<T>(size_)),
        numbers_(arena.take<T>(size_)),
        order_(arena.take<int64_t>(size_)) {}

  static bool divides(const PowerStepArgs& args) { return worth_dividing(args.size, args.size); }

  void prepare() {
    for (T* matrix : {factor_, basis_, product_}) clear_padding(layout_, size_, matrix);
  }

  void solve(int64_t index) {
    load_rows(layout_, size_, matrix(args_.factors, index), factor_, team_);
    load_rows(layout_, size_, matrix(args_.bases, index), basis_, team_);
    // Of a symmetric F: F' Q.
    multiply(Product<T>{layout_, size_, size_, factor_, basis_, true, false, product_}, team_);
    find_order(index);
    arrange();
    factorise();
    set_identity(layout_, 1, basis_);
    form();
    store_rows(layout_, size_, basis_, T{-1}, T{1},
               static_cast<T*>(args_.stepped) + index * size_ * size_, team_);
  }

 private:
  const T* matrix(const void* batch, int64_t index) const {
    return static_cast<const T*>(batch) + index * size_ * size_;
  }

  // Calls body(column, entries of both of one row from there on, how many) for all strips and rows.
  template <typename Body>
  void each_line(Body body) const {
    for (int64_t begin = 0; begin < size_; begin += layout_.width) {
      const int64_t at = begin / layout_.width * layout_.stride(size_);
      const int64_t count = std::min(layout_.width, size_ - begin);
      for (int64_t r = 0; r < size_; ++r) body(begin, at + r * layout_.width, count);
    }
  }

  // The columns as they are, or in the descending order of diag(Q' F Q), of equal ones the earlier
  // first, NaN last.
  void find_order(int64_t index) {
    std::iota(order_, order_ + size_, int64_t{0});
    if (args_.orders == nullptr) return;
    std::fill(numbers_, numbers_ + size_, T{0});
    each_line([&](int64_t column, int64_t at, int64_t count) {
      for (int64_t c = 0; c < count; ++c) {
        numbers_[column + c] += basis_[at + c] * product_[at + c];
      }
    });
    const auto rank = [&](int64_t column) {  // NaN is last: by itself it has no order
      const T value = numbers_[column];
      return std::isnan(value) ? -std::numeric_limits<T>::infinity() : value;
    };
    std::stable_sort(order_, order_ + size_,
                     [&](int64_t left, int64_t right) { return rank(left) > rank(right); });
    std::copy(order_, order_ + size_, args_.orders + index * size_);
  }

  // Columns in their order, each times the power of two that brings its largest entry to about 1:
  // it changes no Q, and keeps squares in range.
  void arrange() {
    std::fill(numbers_, numbers_ + size_, T{0});
    each_line([&](int64_t column, int64_t at, int64_t count) {
      for (int64_t c = 0; c < count; ++c) {
        numbers_[column + c] = std::max(numbers_[column + c], std::fabs(product_[at + c]));
      }
    });
    constexpr int kMost = std::numeric_limits<T>::max_exponent - 2;
    for (int64_t c = 0; c < size_; ++c) {
      const T most = numbers_[c];
      const bool scales = most > 0 && std::isfinite(most);
      numbers_[c] = scales ? std::ldexp(T{1}, std::min(-std::ilogb(most), kMost)) : T{1};
    }
    const int64_t width = layout_.width, stride = layout_.stride(size_);
    for (int64_t r = 0; r < size_; ++r) {
      T* const line = product_ + r * width;
      for (int64_t c = 0; c < size_; c += width) {
        const T* from = line + c / width * stride;
        std::copy(from, from + std::min(width, size_ - c), row_ + c);
      }
      for (int64_t c = 0; c < size_; ++c) {
        line[c / width * stride + c % width] = row_[order_[c]] * numbers_[order_[c]];
      }
    }
  }

  int64_t columns(int64_t strip) const {
    return std::min(layout_.width, size_ - strip * layout_.width);
  }
  // Of a strip, from the row of a strip's first pivot on.
  T* part(T* matrix, int64_t strip, int64_t pivots) const {
    return matrix + strip * layout_.stride(size_) + pivots * square_;
  }

  void factorise() const {
    const ProductKernels& products = kernels().products;
    for (int64_t strip = 0; strip < layout_.strips; ++strip) {
      products.reflections<T>()(layout_, size_ - strip * layout_.width, columns(strip),
                                part(product_, strip, strip), t_ + strip * square_);
      apply(strip, strip + 1, product_, false);
    }
  }

  // H_1 .. H_n of the identity: of each strip's, what comes before it is zero yet.
  void form() const {
    for (int64_t strip = layout_.strips - 1; strip >= 0; --strip) apply(strip, strip, basis_, true);
  }

  // (I - V T V') A, forward, or (I - V T' V') A, of the strips of A from `first` on.
  void apply(int64_t strip, int64_t first, T* a, bool forward) const {
    const Products<T>& products = kernels().products.in<T>();
    const int64_t rows = size_ - strip * layout_.width, width = layout_.width;
    const T *const v = part(product_, strip, strip), *const t = t_ + strip * square_;
    team_.run([&](Share share) {
      T* const overlaps = scratch_ + share.worker * 2 * square_;
      T* const shares = overlaps + square_;
      const int64_t count = layout_.strips - first;
      for (int64_t each = share.begin(count); each < share.end(count); ++each) {
        T* const x = part(a, first + each, strip);
        const StripLayout one{columns(first + each), layout_.lanes, width, 1};
        const Share alone{0, 1};
        products.multiply({one, width, rows, v, x, true, false, overlaps}, alone);
        products.multiply({one, width, width, t, overlaps, forward, false, shares}, alone);
        Product<T> rest{one, rows, width, v, shares, false, false, x};
        rest.scale = -1;
        rest.addend = x;
        rest.addend_scale = 1;
        products.multiply(rest, alone);
      }
    });
  }

  const PowerStepArgs& args_;
  const Team team_;
  const int64_t size_;
  const StripLayout layout_;
  const int64_t square_;               // entries of T, and of a strip's overlap with V
  T *factor_, *basis_, *product_;      // in strips
  T *t_, *scratch_, *row_, *numbers_;  // T' of each strip; two for each worker; of each column
  int64_t* order_;
};

template <typename T>
using PowerSteps = Batch<PowerStep<T>, PowerStepArgs>;

}  // namespace

void power_step(const PowerStepArgs& args, const Parallel& parallel) {
  if (args.size == 0) return;
  if (args.dtype == Dtype::kFloat64) return PowerSteps<double>(args, parallel).solve();
  PowerSteps<float>(args, parallel).solve();
}

}  // namespace schattor::cpu

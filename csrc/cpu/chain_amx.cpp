#include "chain_amx.h"

#include "amx_algebra.h"

#if SCHATTOR_AMX
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "chain.h"

SCHATTOR_AMX_BEGIN
namespace schattor::cpu {
namespace amx {
namespace {

// Below this many block products in X X' a matrix stays on one thread: the others would take longer
// to call than to compute.
constexpr int64_t kWorthDividing = 16 * 16 * 16;

// Grids as large as the matrix that are in use at a time: on the Gram side two for each segment,
// and else the iterates with a weight and two at work.
int64_t wide_grids(const ChainArgs& args) {
  if (args.gram) return 2 * (args.restart_count + 1);
  int64_t most = 0;
  for (int64_t index = 0; index < args.batch; ++index) {
    const double* weights = args.weights + index * (args.depth + 1);
    const int64_t zeros = std::count(weights, weights + args.depth + 1, 0.0);
    most = std::max(most, args.depth + 1 - zeros);
  }
  return std::min(args.depth + 1, most + 2);
}

// Where the segment that begins after step `begin` ends.
int64_t segment_end(const ChainArgs& args, int64_t begin, int64_t last) {
  const int64_t* restarts = args.restarts;
  const int64_t* next = std::upper_bound(restarts, restarts + args.restart_count, begin);
  return next == restarts + args.restart_count ? last : std::min(last, *next);
}

// Square grids in use at a time.
int64_t square_grids(const ChainArgs& args) {
  if (!args.gram) return 2;  // A and B
  int64_t longest = 0;
  for (int64_t begin = 0, end; begin < args.depth; begin = end) {
    end = segment_end(args, begin, args.depth);
    longest = std::max(longest, end - begin);
  }
  return 4 + longest;  // R, Z, Z R, the mixture, and the segment's Q
}

// The chain of one matrix after the other, as a Solver of team.h.
class MatrixChain {
 public:
  MatrixChain(const ChainArgs& args, Team team, Arena& arena)
      : args_(args),
        shape_{args.rows, args.cols},
        algebra_(blocks(args.rows), blocks(args.cols), team, arena),
        wide_(take_grids(wide_grids(args), blocks(args.cols), arena)),
        square_(take_grids(square_grids(args), blocks(args.rows), arena)),
        largest_(blocks(args.rows)) {}

  static bool divides(const ChainArgs& args) {
    return blocks(args.rows) * blocks(args.rows) * blocks(args.cols) >= kWorthDividing;
  }

  void prepare() {}

  void solve(int64_t index) {
    input_ = reinterpret_cast<const Element*>(input_of(args_, index));
    const float largest = largest_entry();
    if (!is_regular<float>(args_, index, largest)) return;
    const int64_t last = Mixture(args_, index, 1).depth();
    if (last < 0) return put_constant<float>(args_, index, 0);
    weights_ = args_.weights + index * (args_.depth + 1);
    wide_free_ = wide_;
    square_free_ = square_;
    terms_.clear();
    const int exponent = gather_input(largest);
    if (args_.gram) {
      iterate_gram(last);
    } else {
      iterate_wide(last);
    }
    write_direction(index, exponent);
  }

 private:
  // ---- The two sides ----

  // A = X X', B = b A + c A^2, X <- a X + B X.
  void iterate_wide(int64_t last) {
    const Grid a = take(square_free_), b = take(square_free_);
    algebra_.multiply_symmetric(x_, x_, a);
    measure(a);
    for (int64_t k = 0; k < last; ++k) {
      if (k > 0) algebra_.multiply_symmetric(x_, x_, a);
      const Step step = step_at(k);
      multiply_polynomial(a, step, b);
      const Grid next = take(wide_free_);
      algebra_.multiply_wide(b, x_, next, x_, static_cast<float>(step.a));
      keep(x_, weight_at(k));
      x_ = next;
    }
    keep(x_, weight_at(last));
  }

  // Segments between restarts, each with its own R = X X' and Q from the identity.
  void iterate_gram(int64_t last) {
    const Grid r = take(square_free_), zr = take(square_free_), mixture = take(square_free_);
    int64_t begin = 0;
    do {
      algebra_.multiply_symmetric(x_, x_, r);
      if (begin == 0) measure(r);
      const int64_t end = segment_end(args_, begin, last);
      const std::vector<Grid> q = iterate_segment(begin, end, r, zr);
      // The X that the segment begins with, and the next one's, are terms of their own.
      mix_segment(begin, end == last ? end : end - 1, q, mixture);
      const Grid before = x_;
      if (end < last) {
        x_ = take(wide_free_);
        algebra_.multiply_wide(q.back(), before, x_);
      }
      keep(before, weight_at(begin));
      square_free_.insert(square_free_.end(), q.begin(), q.end());
      begin = end;
    } while (begin < last);
  }

  // Q after each of the steps begin .. end - 1: Z = a I + b R + c R^2, Q <- Q Z, R <- Z R Z. The Z
  // of Q and of R must be the same to the last bit: what its rounding does to Q is then seen in R,
  // and mended by later steps.
  std::vector<Grid> iterate_segment(int64_t begin, int64_t end, const Grid& r, const Grid& zr) {
    std::vector<Grid> q;
    for (int64_t k = begin; k < end; ++k) {
      const Step step = step_at(k);
      const Grid z = take(square_free_);
      multiply_polynomial(r, step, z);
      algebra_.add_to_diagonal(z, static_cast<float>(step.a));
      if (k + 1 < end) {
        algebra_.multiply_symmetric(z, r, zr);
        algebra_.multiply_symmetric(zr, z, r);
      }
      if (q.empty()) {
        q.push_back(z);
      } else {
        q.push_back(take(square_free_));
        algebra_.multiply_symmetric(q[q.size() - 2], z, q.back());
        square_free_.push_back(z);
      }
    }
    return q;
  }

  // The term (w_(begin+1) Q_1 + ... + w_last Q_(last-begin)) X.
  void mix_segment(int64_t begin, int64_t last, const std::vector<Grid>& q, const Grid& mixture) {
    std::vector<Term> terms;
    for (int64_t k = begin + 1; k <= last; ++k) {
      const double weight = weight_at(k);
      if (weight != 0) terms.push_back({q[k - begin - 1], static_cast<float>(weight)});
    }
    if (terms.empty()) return;
    algebra_.combine(terms, mixture);
    const Grid product = take(wide_free_);
    algebra_.multiply_wide(mixture, x_, product);
    keep(product, 1);
  }

  // result = b A + c A^2.
  void multiply_polynomial(const Grid& a, const Step& step, const Grid& result) {
    algebra_.multiply_symmetric(a, a, result, static_cast<float>(step.c), a,
                                static_cast<float>(step.b));
  }

  // ---- Passes ----

  // The largest magnitude of the input; NaN where it has one.
  float largest_entry() {
    algebra_.for_block_rows([&](int64_t i) { largest_[i] = largest_bits(input_, shape_, i); });
    const uint32_t bits = uint32_t(*std::max_element(largest_.begin(), largest_.end())) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }

  // X_0 = 2^-exponent input, its entries about 1 at most: no square of it leaves the range of
  // float, whatever the scale of the input.
  int gather_input(float largest) {
    int exponent;
    std::frexp(largest, &exponent);
    exponent = std::clamp(exponent, -126, 126);  // the power of two must be a normal float
    const float factor = std::ldexp(1.0f, -exponent);
    x_ = take(wide_free_);
    algebra_.for_block_rows([&](int64_t i) { gather_row(input_, shape_, factor, x_, i); });
    return exponent;
  }

  // tau, the Schatten-4 norm of X_0, from its Gram matrix. X_0 is not divided by it: the first step
  // and the weight of X_0 are.
  void measure(const Grid& gram) { tau_ = std::sqrt(std::sqrt(algebra_.sum_of_squares(gram))); }

  void write_direction(int64_t index, int exponent) {
    const double factor = std::pow(std::ldexp(tau_, exponent), args_.powers[index]);
    for (Term& term : terms_) term.weight = static_cast<float>(factor * term.weight);
    Element* direction = reinterpret_cast<Element*>(direction_of(args_, index));
    put_overlap(args_, index, algebra_.sum_rows([&](int64_t i) {
      return scatter_row(terms_.data(), terms_.size(), input_, shape_, direction, i);
    }));
  }

  // ---- Coefficients ----

  Step step_at(int64_t k) const {
    const Step step = step_of(args_, k);
    return k == 0 ? step.scaled(1 / tau_) : step;
  }
  double weight_at(int64_t k) const { return k == 0 ? weights_[0] / tau_ : weights_[k]; }

  // ---- Grids ----

  std::vector<Grid> take_grids(int64_t count, int64_t columns, Arena& arena) const {
    std::vector<Grid> grids;
    for (int64_t i = 0; i < count; ++i) {
      grids.push_back({arena.take<Element>(blocks(args_.rows) * columns * kBlock), columns});
    }
    return grids;
  }

  static Grid take(std::vector<Grid>& free) {
    const Grid grid = free.back();
    free.pop_back();
    return grid;
  }

  // A term of the direction, or memory for the next steps.
  void keep(const Grid& grid, double weight) {
    if (weight != 0) {
      terms_.push_back({grid, static_cast<float>(weight)});
    } else {
      wide_free_.push_back(grid);
    }
  }

  const ChainArgs& args_;
  const RowMajor shape_;
  GridAlgebra algebra_;
  const std::vector<Grid> wide_, square_;
  std::vector<Element> largest_;  // of the block rows

  // Of the matrix at hand.
  const Element* input_ = nullptr;
  const double* weights_ = nullptr;
  double tau_ = 1;
  Grid x_;
  std::vector<Term> terms_;
  std::vector<Grid> wide_free_, square_free_;
};

}  // namespace
}  // namespace amx

bool amx_chain_applies(const ChainArgs& args) { return args.dtype == Dtype::kBFloat16; }

void chain_direction_amx(const ChainArgs& args, const Parallel& parallel) {
  Batch<amx::MatrixChain, ChainArgs>(args, parallel).solve();
}

int64_t amx_workspace_bytes(const ChainArgs& args, int threads) {
  Parallel parallel;
  parallel.threads = threads;
  return Batch<amx::MatrixChain, ChainArgs>(args, parallel).bytes();
}

}  // namespace schattor::cpu
SCHATTOR_AMX_END

#else

namespace schattor::cpu {

bool amx_chain_applies(const ChainArgs&) { return false; }
void chain_direction_amx(const ChainArgs&, const Parallel&) {}
int64_t amx_workspace_bytes(const ChainArgs&, int) { return 0; }

}  // namespace schattor::cpu
#endif

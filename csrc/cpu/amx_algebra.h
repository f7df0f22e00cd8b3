// Whole products and passes over grids of blocks, shared out among a team. Every block and every
// sum is computed in one way, whoever does it.
#pragma once

#include "amx_products.h"

#if SCHATTOR_AMX
#include <vector>

#include "team.h"

SCHATTOR_AMX_BEGIN
namespace schattor::cpu::amx {

// For wide grids of block_rows x block_columns and square ones of block_rows x block_rows.
class GridAlgebra {
 public:
  GridAlgebra(int64_t block_rows, int64_t block_columns, Team team, Arena& arena)
      : block_rows_(block_rows), block_columns_(block_columns), team_(team), partials_(block_rows) {
    for (int64_t worker = 0; worker < team.workers(); ++worker) {
      scratch_.push_back({arena.take<Element>(kPanelBlocks * kBlock), arena.take<Element>(kBlock),
                          arena.take<float>(block_rows * kBlock)});
    }
    if (is_cut(block_columns)) all_sums_ = arena.take<float>(block_rows * block_rows * kBlock);
  }

  // result = alpha left right' + beta addend, symmetric; without an addend alpha is 1.
  void multiply_symmetric(const Grid& left, const Grid& right, const Grid& result, float alpha = 1,
                          const Grid& addend = {}, float beta = 0) {
    multiply<true>(
        {left, right, result, addend, alpha, beta, block_rows_, left.columns, block_rows_});
  }

  // result = left right + beta addend, left square, the others wide.
  void multiply_wide(const Grid& left, const Grid& right, const Grid& result,
                     const Grid& addend = {}, float beta = 0) {
    multiply<false>(
        {left, right, result, addend, 1, beta, block_rows_, block_rows_, block_columns_});
  }

  void combine(const std::vector<Term>& terms, const Grid& result) {
    for_block_rows([&](int64_t i) { combine_row(terms.data(), terms.size(), result, i); });
  }

  void add_to_diagonal(const Grid& grid, float value) {
    for_block_rows([&](int64_t i) { add_to_block_diagonal(grid.at(i, i), value); });
  }

  double sum_of_squares(const Grid& grid) {
    return sum_rows([&](int64_t i) { return Overlap{0, row_sum_of_squares(grid, i)}; }).square;
  }

  template <class Body>
  void for_block_rows(const Body& body) {
    team_.run([&](Share share) {
      for (int64_t i = share.begin(block_rows_); i < share.end(block_rows_); ++i) body(i);
    });
  }

  // The sums of what body gives for each block row, in the order of the rows.
  template <class Body>
  Overlap sum_rows(const Body& body) {
    for_block_rows([&](int64_t i) { partials_[i] = body(i); });
    Overlap sum{0, 0};
    for (const Overlap& partial : partials_) {
      sum.inner += partial.inner;
      sum.square += partial.square;
    }
    return sum;
  }

 private:
  template <bool kSymmetric>
  void multiply(const BlockProduct& product) {
    team_.run([&](Share share) {
      const TileSession tiles;
      multiply_columns<kSymmetric>(product, share.begin(product.columns),
                                   share.end(product.columns), all_sums_, scratch_[share.worker]);
    });
  }

  const int64_t block_rows_, block_columns_;
  const Team team_;
  std::vector<Overlap> partials_;
  std::vector<Scratch> scratch_;  // of the workers
  float* all_sums_ = nullptr;     // of a product that is cut
};

}  // namespace schattor::cpu::amx
SCHATTOR_AMX_END
#endif

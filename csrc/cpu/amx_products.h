// Products of grids of blocks on AMX tiles: result = alpha left right + beta addend.
//
// Tiles: four of sums (a block of float32), two of the left and two of the right operand, so four
// loads for four multiplications. The left tiles come from the second level of cache as they are
// stored, the right ones from a panel packed into the first. Sums that wait for the next chunk of
// the inner dimension are stored as floats.
//
// Finishing a block (scaling, rounding, mirroring) is cut into units that run between the tile
// instructions of the next block.
#pragma once

#include "amx_blocks.h"

#if SCHATTOR_AMX
SCHATTOR_AMX_BEGIN
namespace schattor::cpu::amx {

// Blocks of the inner dimension in a panel: 16 KiB, a third of the first level of cache, for a
// panel is used again only after as many left tiles and the sums have passed through.
constexpr int64_t kPanelBlocks = 8;
// Blocks of the inner dimension after which a symmetric product turns to the next columns: of a
// wide matrix, a stretch of 768 columns of every row stays in the second level of cache.
constexpr int64_t kStretchBlocks = 24;
static_assert(kStretchBlocks % kPanelBlocks == 0, "a stretch is whole panels");
inline bool is_cut(int64_t inner) { return inner > kStretchBlocks; }

// Sizes in blocks. A symmetric product computes the blocks on and below the diagonal and mirrors
// the others; its right operand is given transposed: by itself for the Gram matrix X X', and by
// its own symmetry otherwise.
struct BlockProduct {
  Grid left, right, result;
  Grid addend;  // without data: none, and alpha is 1
  float alpha, beta;
  int64_t rows, inner, columns;
};

// The floats of a tile of sums.
constexpr int64_t kSumTile = kTileBytes / sizeof(float);

// A thread's own memory.
struct Scratch {
  Element* panel;   // kPanelBlocks blocks
  Element* mirror;  // one block
  float* sums;      // a column of blocks
};

// The unfinished part of one block.
class Finish {
 public:
  void begin(const float* sums, const BlockProduct& product, int64_t i, int64_t j, bool mirrored,
             Element* scratch) {
    sums_ = sums;
    alpha_ = product.alpha;
    beta_ = product.beta;
    addend_ = product.addend.data != nullptr ? product.addend.at(i, j) : nullptr;
    result_ = product.result.at(i, j);
    mirror_ = mirrored ? product.result.at(j, i) : nullptr;
    scratch_ = scratch;
    done_ = 0;
    units_ = mirrored ? kRowUnits + kMirrorUnits : kRowUnits;
  }

  // How many units each of `count` calls has to do.
  int share(int count) const { return (units_ - done_ + count - 1) / count; }

  void advance(int units) {
    for (const int target = std::min(done_ + units, units_); done_ < target; ++done_) {
      if (done_ < kRowUnits) {
        finish_rows(done_);
      } else {
        write_mirror(done_ - kRowUnits);
      }
    }
  }
  void complete() { advance(units_); }

 private:
  static constexpr int kRowUnits = kSide / 2, kMirrorUnits = 2;

  // Rows 2 pair and 2 pair + 1.
  void finish_rows(int64_t pair) {
    const __m512i even = finish_row(2 * pair), odd = finish_row(2 * pair + 1);
    if (mirror_ != nullptr) interleave(even, odd, pair, scratch_);
  }

  __m512i finish_row(int64_t r) {
    // The sums lie as four tiles of 16 rows of 16, [half of the rows][half of the columns].
    const float* sums = sums_ + 16 * (r + (r & 16));
    __m512 low = _mm512_load_ps(sums), high = _mm512_load_ps(sums + kSumTile);
    if (addend_ != nullptr) {
      const __m512i row = _mm512_load_si512(addend_ + r * kSide);
      const __m512 alpha = _mm512_set1_ps(alpha_), beta = _mm512_set1_ps(beta_);
      low = _mm512_fmadd_ps(alpha, low, _mm512_mul_ps(beta, low_floats(row)));
      high = _mm512_fmadd_ps(alpha, high, _mm512_mul_ps(beta, high_floats(row)));
    }
    const __m512i rounded = round_to_bfloat16(low, high);
    _mm512_store_si512(result_ + r * kSide, rounded);
    return rounded;
  }

  // Interleaved rows are right-hand tiles, and the transpose of those is the transposed block.
  void write_mirror(int64_t half) {
    transpose_pairs(scratch_ + half * kHalf, mirror_ + half * kHalf);
  }

  const float* sums_ = nullptr;
  const Element* addend_ = nullptr;
  Element *result_ = nullptr, *mirror_ = nullptr, *scratch_ = nullptr;
  float alpha_ = 1, beta_ = 0;
  int done_ = 0, units_ = 0;  // equal: nothing waits
};

// sums (+)= a row of `count` left blocks times the panel, while the block before is finished.
inline void multiply_block(const Element* left, const Element* panel, int count, float* sums,
                           bool first, Finish& before) {
  const int units = before.share(count);
  if (first) {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  } else {
    tile_load<0>(sums);
    tile_load<1>(sums + kSumTile);
    tile_load<2>(sums + 2 * kSumTile);
    tile_load<3>(sums + 3 * kSumTile);
  }
  for (int k = 0; k < count; ++k) {
    tile_load<6>(panel + k * kBlock);
    tile_load<4>(left + k * kBlock);
    tile_multiply_add<0, 4, 6>();
    tile_load<7>(panel + k * kBlock + kHalf);
    tile_multiply_add<1, 4, 7>();
    tile_load<5>(left + k * kBlock + kHalf);
    tile_multiply_add<2, 5, 6>();
    tile_multiply_add<3, 5, 7>();
    before.advance(units);
  }
  tile_store<0>(sums);
  tile_store<1>(sums + kSumTile);
  tile_store<2>(sums + 2 * kSumTile);
  tile_store<3>(sums + 3 * kSumTile);
}

template <bool kSymmetric>
void pack_panel(const Grid& right, int64_t k, int count, int64_t j, Element* panel) {
  for (int i = 0; i < count; ++i) {
    if constexpr (kSymmetric) {
      pack_transposed(right.at(j, k + i), panel + i * kBlock);
    } else {
      pack(right.at(k + i, j), panel + i * kBlock);
    }
  }
}

// Columns in an order in which equal ranges hold about equal work: those of a symmetric product
// have from 1 to `columns` blocks, and take turns from both ends.
template <bool kSymmetric>
int64_t column_at(int64_t position, int64_t columns) {
  if (!kSymmetric) return position;
  return position % 2 == 0 ? position / 2 : columns - 1 - position / 2;
}

// Columns begin .. end - 1 (of the order above) of a product. `all_sums` has room for the sums of
// the whole result where the inner dimension is cut into stretches.
template <bool kSymmetric>
void multiply_columns(const BlockProduct& p, int64_t begin, int64_t end, float* all_sums,
                      const Scratch& scratch) {
  const bool cut = kSymmetric && is_cut(p.inner);
  const int64_t stretch = cut ? kStretchBlocks : p.inner;
  Finish finish;
  for (int64_t k0 = 0; k0 < p.inner; k0 += stretch) {
    const int64_t k1 = std::min(p.inner, k0 + stretch);
    for (int64_t position = begin; position < end; ++position) {
      const int64_t j = column_at<kSymmetric>(position, p.columns);
      float* column = cut ? all_sums + j * p.rows * kBlock : scratch.sums;
      for (int64_t k = k0; k < k1; k += kPanelBlocks) {
        const int count = static_cast<int>(std::min(kPanelBlocks, k1 - k));
        pack_panel<kSymmetric>(p.right, k, count, j, scratch.panel);
        for (int64_t i = kSymmetric ? j : 0; i < p.rows; ++i) {
          float* sums = column + i * kBlock;
          multiply_block(p.left.at(i, k), scratch.panel, count, sums, k == 0, finish);
          if (k + count == p.inner) {
            finish.begin(sums, p, i, j, kSymmetric && i != j, scratch.mirror);
          }
        }
      }
    }
  }
  finish.complete();
}

}  // namespace schattor::cpu::amx
SCHATTOR_AMX_END
#endif

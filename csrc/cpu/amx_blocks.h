// Matrices as grids of 32x32 blocks of bfloat16, the only form that the AMX chain stores.
//
// A block is 32 rows of 64 bytes, that is two left-hand tiles as they lie. The right-hand operand
// is packed from blocks on the fly, into a panel that stays in the first level of cache; a stored
// second form would double the traffic beyond the second level. Sizes are filled up with zeros.
#pragma once

#include "amx_tiles.h"

#if SCHATTOR_AMX
#include <algorithm>
#include <array>
#include <cstdint>

#include "strips.h"

SCHATTOR_AMX_BEGIN
namespace schattor::cpu::amx {

using Element = uint16_t;  // a bfloat16, as its bits

constexpr int64_t kSide = 32;  // of a block
constexpr int64_t kBlock = kSide * kSide;
constexpr int64_t kHalf = kBlock / 2;  // the elements of a tile

inline int64_t blocks(int64_t size) { return (size + kSide - 1) / kSide; }

// A row-major grid of blocks.
struct Grid {
  Element* data = nullptr;
  int64_t columns = 0;  // of blocks
  Element* at(int64_t i, int64_t j) const { return data + (i * columns + j) * kBlock; }
};

// Lanes 0..15 and 16..31 of a row of a block.
inline __m512 low_floats(__m512i row) {
  const __m256i half = _mm512_castsi512_si256(row);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline __m512 high_floats(__m512i row) {
  const __m256i half = _mm512_extracti64x4_epi64(row, 1);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Transposes 16 rows of 16 pairs. The first two of the four stages are done by loads of 128 bits
// into lanes, which spares the one port that shuffles.
inline void transpose_pairs(const Element* from, Element* to) {
  const auto quarter = [from](int row, int column) {
    return _mm_load_si128(reinterpret_cast<const __m128i*>(from + row * kSide) + column);
  };
  for (int column = 0; column < 4; ++column) {
    __m512i rows[4];  // lane m of rows[i] is row 4 m + i
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm512_castsi128_si512(quarter(i, column));
      rows[i] = _mm512_inserti32x4(rows[i], quarter(4 + i, column), 1);
      rows[i] = _mm512_inserti32x4(rows[i], quarter(8 + i, column), 2);
      rows[i] = _mm512_inserti32x4(rows[i], quarter(12 + i, column), 3);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(rows[0], rows[1]);
    const __m512i high01 = _mm512_unpackhi_epi32(rows[0], rows[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(rows[2], rows[3]);
    const __m512i high23 = _mm512_unpackhi_epi32(rows[2], rows[3]);
    Element* target = to + 4 * column * kSide;
    _mm512_store_si512(target, _mm512_unpacklo_epi64(low01, low23));
    _mm512_store_si512(target + kSide, _mm512_unpackhi_epi64(low01, low23));
    _mm512_store_si512(target + 2 * kSide, _mm512_unpacklo_epi64(high01, high23));
    _mm512_store_si512(target + 3 * kSide, _mm512_unpackhi_epi64(high01, high23));
  }
}

// Which of 64 elements (a row and the next) go into the interleaved columns first .. first + 15.
constexpr std::array<uint16_t, 32> interleaving(uint16_t first) {
  std::array<uint16_t, 32> order{};
  for (uint16_t i = 0; i < 16; ++i) {
    order[2 * i] = first + i;
    order[2 * i + 1] = kSide + first + i;
  }
  return order;
}
alignas(64) constexpr std::array<uint16_t, 32> kLowColumns = interleaving(0);
alignas(64) constexpr std::array<uint16_t, 32> kHighColumns = interleaving(16);

// Row pair `pair` of the two right-hand tiles of a block, from rows 2 pair and 2 pair + 1.
inline void interleave(__m512i even, __m512i odd, int64_t pair, Element* tiles) {
  const __m512i low = _mm512_load_si512(kLowColumns.data());
  const __m512i high = _mm512_load_si512(kHighColumns.data());
  _mm512_store_si512(tiles + pair * kSide, _mm512_permutex2var_epi16(even, low, odd));
  _mm512_store_si512(tiles + kHalf + pair * kSide, _mm512_permutex2var_epi16(even, high, odd));
}

// The right-hand tiles of a block, and of the transpose of a block.
inline void pack(const Element* block, Element* tiles) {
  for (int64_t pair = 0; pair < kSide / 2; ++pair) {
    interleave(_mm512_load_si512(block + 2 * pair * kSide),
               _mm512_load_si512(block + (2 * pair + 1) * kSide), pair, tiles);
  }
}
inline void pack_transposed(const Element* block, Element* tiles) {
  transpose_pairs(block, tiles);
  transpose_pairs(block + kHalf, tiles + kHalf);
}

// A contiguous row-major matrix outside, and the mask of a block's columns that exist.
struct RowMajor {
  int64_t rows, cols;
  int64_t offset(int64_t i, int64_t block_column) const { return i * cols + block_column * kSide; }
  __mmask32 mask(int64_t block_column) const {
    const int64_t width = std::min(kSide, cols - block_column * kSide);
    return static_cast<__mmask32>(~uint32_t(0) >> (kSide - width));
  }
  int64_t last_row(int64_t block_row) const { return std::min(rows, (block_row + 1) * kSide); }
};

// The largest magnitude in a block row, as bits: magnitudes order as their bits do, NaN above all.
inline Element largest_bits(const Element* matrix, const RowMajor& shape, int64_t block_row) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t i = block_row * kSide; i < shape.last_row(block_row); ++i) {
    for (int64_t j = 0; j < blocks(shape.cols); ++j) {
      const __m512i row = _mm512_maskz_loadu_epi16(shape.mask(j), matrix + shape.offset(i, j));
      largest = _mm512_max_epu16(largest, _mm512_and_si512(row, magnitude));
    }
  }
  alignas(64) Element lanes[kSide];
  _mm512_store_si512(lanes, largest);
  return *std::max_element(lanes, lanes + kSide);
}

// One block row of grid = factor matrix.
inline void gather_row(const Element* matrix, const RowMajor& shape, float factor, const Grid& grid,
                       int64_t block_row) {
  const __m512 scale = _mm512_set1_ps(factor);
  const int64_t last = shape.last_row(block_row);
  for (int64_t r = 0; r < kSide; ++r) {
    const int64_t i = block_row * kSide + r;
    for (int64_t j = 0; j < grid.columns; ++j) {
      __m512i row = _mm512_setzero_si512();
      if (i < last) row = _mm512_maskz_loadu_epi16(shape.mask(j), matrix + shape.offset(i, j));
      row = round_to_bfloat16(_mm512_mul_ps(scale, low_floats(row)),
                              _mm512_mul_ps(scale, high_floats(row)));
      _mm512_store_si512(grid.at(block_row, j) + r * kSide, row);
    }
  }
}

// A sum of products in double, in lanes.
class LaneSum {
 public:
  // Spelt out, for a constructor that the compiler writes is not compiled for this target.
  LaneSum() : low_(_mm512_setzero_pd()), high_(_mm512_setzero_pd()) {}
  void add(__m512 x, __m512 y) {
    low_ = _mm512_fmadd_pd(widened(x, 0), widened(y, 0), low_);
    high_ = _mm512_fmadd_pd(widened(x, 1), widened(y, 1), high_);
  }
  double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low_, high_)); }

 private:
  static __m512d widened(__m512 x, int half) {
    return _mm512_cvtps_pd(half == 0 ? _mm512_castps512_ps256(x) : _mm512_extractf32x8_ps(x, 1));
  }
  __m512d low_, high_;
};

// The sum of the squares of a block row.
inline double row_sum_of_squares(const Grid& grid, int64_t block_row) {
  LaneSum sum;
  const Element* data = grid.at(block_row, 0);
  for (int64_t i = 0; i < grid.columns * kBlock; i += kSide) {
    const __m512i row = _mm512_load_si512(data + i);
    sum.add(low_floats(row), low_floats(row));
    sum.add(high_floats(row), high_floats(row));
  }
  return sum.total();
}

// A term of a weighted sum of grids of one size.
struct Term {
  Grid grid;
  float weight;
};

// One row of a block of the sum, rounded.
inline __m512i weighted_row(const Term* terms, int64_t count, int64_t offset) {
  __m512 low = _mm512_setzero_ps(), high = low;
  for (int64_t t = 0; t < count; ++t) {
    const __m512 weight = _mm512_set1_ps(terms[t].weight);
    const __m512i row = _mm512_load_si512(terms[t].grid.data + offset);
    low = _mm512_fmadd_ps(weight, low_floats(row), low);
    high = _mm512_fmadd_ps(weight, high_floats(row), high);
  }
  return round_to_bfloat16(low, high);
}

// One block row of grid = the weighted sum.
inline void combine_row(const Term* terms, int64_t count, const Grid& grid, int64_t block_row) {
  const int64_t begin = block_row * grid.columns * kBlock;
  for (int64_t offset = begin; offset < begin + grid.columns * kBlock; offset += kSide) {
    _mm512_store_si512(grid.data + offset, weighted_row(terms, count, offset));
  }
}

// Adds to the diagonal of one block.
inline void add_to_block_diagonal(Element* block, float value) {
  const __m512i positions = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512 addend = _mm512_set1_ps(value);
  for (int r = 0; r < kSide; ++r) {
    const __mmask16 low = _mm512_cmpeq_epi32_mask(positions, _mm512_set1_epi32(r));
    const __mmask16 high = _mm512_cmpeq_epi32_mask(positions, _mm512_set1_epi32(r - 16));
    const __m512i row = _mm512_load_si512(block + r * kSide);
    const __m512 low_sum = _mm512_mask_add_ps(low_floats(row), low, low_floats(row), addend);
    const __m512 high_sum = _mm512_mask_add_ps(high_floats(row), high, high_floats(row), addend);
    _mm512_store_si512(block + r * kSide, round_to_bfloat16(low_sum, high_sum));
  }
}

// One block row of the weighted sum, to the row-major `out`, with <wide, out> and |out|^2 of it.
// One sequential pass over all terms at the end: to keep a running sum of floats through the chain
// would move four times the bytes.
inline Overlap scatter_row(const Term* terms, int64_t count, const Element* wide,
                           const RowMajor& shape, Element* out, int64_t block_row) {
  LaneSum inner, square;
  const int64_t first = block_row * kSide, columns = blocks(shape.cols);
  for (int64_t j = 0; j < columns; ++j) {
    const __mmask32 mask = shape.mask(j);
    const int64_t block = (block_row * columns + j) * kBlock;
    for (int64_t i = first; i < shape.last_row(block_row); ++i) {
      const __m512i row = weighted_row(terms, count, block + (i - first) * kSide);
      const __m512i input = _mm512_maskz_loadu_epi16(mask, wide + shape.offset(i, j));
      _mm512_mask_storeu_epi16(out + shape.offset(i, j), mask, row);
      inner.add(low_floats(input), low_floats(row));
      inner.add(high_floats(input), high_floats(row));
      square.add(low_floats(row), low_floats(row));
      square.add(high_floats(row), high_floats(row));
    }
  }
  return {inner.total(), square.total()};
}

}  // namespace schattor::cpu::amx
SCHATTOR_AMX_END
#endif

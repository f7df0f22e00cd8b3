// Rounding to bfloat16 up or down at random, with the chances that keep the mean.
#pragma once

#include "views.cuh"

namespace schattor::cuda {

struct Random4 {
  uint32_t word[4];
};

// Philox 4x32-10 (Salmon et al. 2011): random bits as a function of a counter and a key, no state.
constexpr Random4 philox(Random4 counter, uint32_t key0, uint32_t key1) {
  uint32_t a = counter.word[0], b = counter.word[1], c = counter.word[2], d = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53u} * a, second = uint64_t{0xCD9E8D57u} * c;
    a = static_cast<uint32_t>(second >> 32) ^ b ^ key0;
    b = static_cast<uint32_t>(second);
    c = static_cast<uint32_t>(first >> 32) ^ d ^ key1;
    d = static_cast<uint32_t>(first);
    key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
  }
  return {{a, b, c, d}};
}

// Sixteen random bits for each of eight entries in a row, the first of which is `entry`: one call
// gives the bits of eight, so entries that begin between two calls take a part of each.
struct RandomUnit {
  uint32_t word[4];  // two entries each, the first in the lower half

  DEV RandomUnit(int64_t seed, int64_t matrix, int64_t entry) {
    uint32_t w[8] = {};
    const int skipped = static_cast<int>(entry % kUnit);
    draw(seed, matrix, entry / kUnit, w);
    if (skipped != 0) draw(seed, matrix, entry / kUnit + 1, w + 4);
    if (skipped & 4) drop<2>(w);
    if (skipped & 2) drop<1>(w);
#pragma unroll
    for (int j = 0; j < 4; ++j) word[j] = skipped & 1 ? w[j] >> 16 | w[j + 1] << 16 : w[j];
  }
  DEV uint32_t bits(int k) const { return word[k / 2] >> (k % 2 * 16) & 0xffffu; }

 private:
  DEV static void draw(int64_t seed, int64_t matrix, int64_t call, uint32_t* w) {
    const Random4 drawn =
        philox({{low(call), high(call), low(matrix), high(matrix)}}, low(seed), high(seed));
#pragma unroll
    for (int j = 0; j < 4; ++j) w[j] = drawn.word[j];
  }
  template <int Count>
  DEV static void drop(uint32_t (&w)[8]) {
#pragma unroll
    for (int j = 0; j + Count < 8; ++j) w[j] = w[j + Count];
  }
  DEV static uint32_t low(int64_t x) { return static_cast<uint32_t>(x); }
  DEV static uint32_t high(int64_t x) { return static_cast<uint32_t>(x >> 32); }
};

// The bfloat16 number below or above x in size. The sixteen bits that are cut off are compared with
// as many random ones, so the chance is exact. Infinity and NaN stay.
DEV float round_randomly(float x, uint32_t bits) {
  const uint32_t pattern = same_bits<uint32_t>(x);
  if ((pattern & 0x7f800000u) == 0x7f800000u) return x;
  return same_bits<float>((pattern + bits) & 0xffff0000u);
}

// Entries are numbered along the grid's lines: as they lie in a parameter that is stored
// contiguously, whether it enters transposed or not, and whatever gaps it has. `matrix` is a number
// in the caller's batch, so who cuts a batch into several calls gives each a seed of its own.
template <class T>
DEV void round_randomly(Entries<T>& entries, const Grid& grid, const Tile& tile, int64_t seed,
                        int64_t matrix) {
  const int index = threadIdx.x * kUnit;
  const int64_t line = tile.line + (index >> tile.log_width);
  const int64_t place = tile.place + (index & ((1 << tile.log_width) - 1));
  const RandomUnit random(seed, matrix, line * grid.width + place);
#pragma unroll
  for (int k = 0; k < kUnit; ++k) {
    entries.x[k] = round_randomly(static_cast<float>(entries.x[k]), random.bits(k));
  }
}

}  // namespace schattor::cuda

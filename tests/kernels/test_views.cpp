// The arithmetic of views.cuh and rounding.cuh that needs no device.
#include <vector>

#include "device_test.h"
#include "rounding.cuh"
#include "views.cuh"

namespace {

using namespace schattor::cuda;

// Index arithmetic beyond the reach of int32, where there is no memory to try it on.
void large_indices() {
  const int64_t rows = int64_t{1} << 17, cols = (int64_t{1} << 18) + 8;
  for (const Cut cut : {Cut::kRows, Cut::kColumns, Cut::kFlat}) {
    const Grid tiles = grid(rows, cols, cut);
    const int64_t across = cut == Cut::kFlat ? rows * cols / kTileSize : 2048 * 4097;
    CHECK(tiles.count() == across, "%ld tiles", long(tiles.count()));
    const Side side(View{nullptr, cols, 1}, Dtype::kBFloat16, cut);
    const Tile last = tiles.tile(tiles.count() - 1);
    const int64_t end = side.offset(last, last.lines - 1, last.width - 1);
    CHECK(end == rows * cols - 1, "last entry at %ld", long(end));
    const Side transposed(View{nullptr, 1, rows}, Dtype::kBFloat16, cut);
    const int64_t other = transposed.offset(last, last.lines - 1, last.width - 1);
    CHECK(other == rows * cols - 1, "last entry at %ld", long(other));
  }
}

// Every entry of a tile has a slot of its own, and a warp's 32 of a unit's k-th entries have 32
// banks, along lines and across.
void slots() {
  std::vector<int> taken(kTileSize, 0);
  for (int k = 0; k < kTileSize; ++k) ++taken[slot(k)];
  for (const int times : taken) CHECK(times == 1, "a slot is taken %d times", times);
  for (int warp = 0; warp < kThreads / 32; ++warp) {
    for (int k = 0; k < kUnit; ++k) {
      uint32_t along = 0, across = 0;
      for (int lane = 0; lane < 32; ++lane) {
        const int index = (warp * 32 + lane) * kUnit + k, line = index / 64, place = index % 64;
        along |= 1u << slot(index) % 32;
        across |= 1u << slot(place * 64 + line) % 32;
      }
      CHECK(along == ~0u && across == ~0u, "banks %x %x", along, across);
    }
  }
}

// Answers from the authors' own test vectors.
void philox_answers() {
  const auto check = [](Random4 counter, uint32_t key0, uint32_t key1, Random4 truth) {
    const Random4 got = philox(counter, key0, key1);
    for (int j = 0; j < 4; ++j) CHECK(got.word[j] == truth.word[j], "philox %x", got.word[j]);
  };
  check({{0, 0, 0, 0}}, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  check({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  check({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0,
        {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

}  // namespace

int main() {
  large_indices();
  slots();
  philox_answers();
  return check::finish();
}

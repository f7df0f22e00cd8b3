// AMX tiles in software, for csrc/cpu/amx_tiles.h under SCHATTOR_EMULATE_AMX: the architecture's
// shapes, faults and arithmetic (Intel 64 SDM, LDTILECFG, TILELOADD, TDPBF16PS), on any processor
// with AVX-512. What would fault aborts with a message.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")

namespace amx_emulation {

inline bool runs_here() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "AMX emulation: %s\n", what);
  std::abort();
}

// One thread's tile state.
class TileUnit {
 public:
  // LDTILECFG: 64 bytes.
  void configure(const void* memory) {
    const auto* bytes = static_cast<const uint8_t*>(memory);
    require(bytes[0] == 1, "the palette must be 1");
    require(bytes[1] == 0, "the start row must be 0");
    for (int i = 2; i < 16; ++i) require(bytes[i] == 0, "reserved bytes must be zero");
    for (int tile = 0; tile < 16; ++tile) {
      uint16_t row_bytes;
      std::memcpy(&row_bytes, bytes + 16 + 2 * tile, 2);
      const uint8_t rows = bytes[48 + tile];
      require(row_bytes <= 64 && rows <= 16, "a tile has at most 16 rows of 64 bytes");
      require((row_bytes == 0) == (rows == 0), "a tile has rows and bytes, or neither");
      require(tile < 8 || rows == 0, "there are 8 tiles");
      if (tile < 8) tiles_[tile] = Tile{rows, row_bytes, {}};
    }
    configured_ = true;
  }

  void release() {
    configured_ = false;
    std::memset(tiles_, 0, sizeof(tiles_));
  }

  void zero(int index) {
    Tile& tile = at(index);
    std::memset(tile.data, 0, sizeof(tile.data));
  }

  void load(int index, const void* from, int64_t stride) {
    Tile& tile = at(index);
    std::memset(tile.data, 0, sizeof(tile.data));
    for (int row = 0; row < tile.rows; ++row) {
      std::memcpy(tile.data[row], static_cast<const char*>(from) + row * stride, tile.row_bytes);
    }
  }

  void store(int index, void* to, int64_t stride) {
    const Tile& tile = at(index);
    for (int row = 0; row < tile.rows; ++row) {
      std::memcpy(static_cast<char*>(to) + row * stride, tile.data[row], tile.row_bytes);
    }
  }

  // TDPBF16PS.
  void multiply_add(int sum_index, int left_index, int right_index) {
    Tile &sum = at(sum_index), &left = at(left_index), &right = at(right_index);
    require(sum_index != left_index && sum_index != right_index && left_index != right_index,
            "the three tiles must differ");
    require(sum.row_bytes % 4 == 0 && left.row_bytes % 4 == 0, "tiles of whole dwords");
    require(sum.rows == left.rows, "sums and left operand must have the same rows");
    require(sum.row_bytes == right.row_bytes, "sums and right operand must have the same columns");
    require(left.row_bytes / 4 == right.rows, "inner dimensions must agree");
    // To nearest even, denormals are zero and flushed to zero, whatever the thread's mode.
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(0x1f80 | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
    for (int row = 0; row < sum.rows; ++row) add_row(sum, left, right, row);
    _mm_setcsr(mode);
  }

 private:
  struct Tile {
    int rows, row_bytes;
    alignas(64) uint8_t data[16][64];
  };

  Tile& at(int index) {
    require(configured_, "used without a configuration");
    require(index >= 0 && index < 8 && tiles_[index].rows > 0, "no such tile");
    return tiles_[index];
  }

  // Even and odd terms are summed apart, each in order from zero, then together, then to the sum.
  // Not inlined: between the two changes of mode.
  __attribute__((noinline)) static void add_row(Tile& sum, const Tile& left, const Tile& right,
                                                int row) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (int k = 0; k < right.rows; ++k) {
      int32_t pair;
      std::memcpy(&pair, left.data[row] + 4 * k, 4);
      const __m512i x = _mm512_set1_epi32(pair), y = _mm512_load_si512(right.data[k]);
      even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
                             _mm512_castsi512_ps(_mm512_slli_epi32(y, 16)), even);
      odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(x, upper)),
                            _mm512_castsi512_ps(_mm512_and_si512(y, upper)), odd);
    }
    const __m512 before = _mm512_load_ps(sum.data[row]);
    const __m512 after = _mm512_add_ps(before, _mm512_add_ps(even, odd));
    const __mmask16 columns = static_cast<__mmask16>((1u << (sum.row_bytes / 4)) - 1);
    _mm512_store_ps(sum.data[row], _mm512_maskz_mov_ps(columns, after));
  }

  bool configured_ = false;
  Tile tiles_[8] = {};
};

inline TileUnit& unit() {
  thread_local TileUnit tile_unit;
  return tile_unit;
}

// VCVTNE2PS2BF16 of one half: to nearest even, denormals to zero, NaN quiet.
inline __m256i round_half(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i lowest = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(lowest, _mm512_set1_epi32(0x7fff));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  rounded = _mm512_mask_mov_epi32(rounded, nan, quiet);
  const __mmask16 denormal = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x8000));
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, denormal, sign));
}

inline __m512i round_to_bfloat16(__m512 low, __m512 high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(round_half(low)), round_half(high), 1);
}

}  // namespace amx_emulation

#pragma GCC pop_options

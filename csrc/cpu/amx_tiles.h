// The tile instructions of AMX, one function each, and nothing else of the processor.
//
// Compiled with SCHATTOR_EMULATE_AMX, the same functions run on the software tiles of
// tests/cpu/amx_emulation.h, so that the chain's own source is tested where there is no AMX.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SCHATTOR_AMX 1
// The header's own undefined vectors, which set no bit that is used (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

// Brackets around everything compiled for AMX; headers of the library stay outside of them, for the
// reason that level_headers.h gives. Every processor with AMX has the other sets as well.
#define SCHATTOR_AMX_BEGIN             \
  _Pragma("GCC push_options") _Pragma( \
      "GCC target(\"amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma\")")
#define SCHATTOR_AMX_END _Pragma("GCC pop_options")

#ifdef SCHATTOR_EMULATE_AMX
#include "amx_emulation.h"
#endif

SCHATTOR_AMX_BEGIN
namespace schattor::cpu::amx {

// A whole tile in memory: 16 rows of 64 bytes without gaps, the only layout that the chain uses.
constexpr int64_t kTileBytes = 1024;
struct __attribute__((may_alias)) TileBytes {
  uint8_t bytes[kTileBytes];
};

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

#ifdef SCHATTOR_EMULATE_AMX

inline void tile_configure(const TileConfig& config) { amx_emulation::unit().configure(&config); }
inline void tile_release() { amx_emulation::unit().release(); }
template <int kTile>
void tile_zero() {
  amx_emulation::unit().zero(kTile);
}
template <int kTile>
void tile_load(const void* from) {
  amx_emulation::unit().load(kTile, from, 64);
}
template <int kTile>
void tile_store(void* to) {
  amx_emulation::unit().store(kTile, to, 64);
}
template <int kSum, int kLeft, int kRight>
void tile_multiply_add() {
  amx_emulation::unit().multiply_add(kSum, kLeft, kRight);
}
inline __m512i round_to_bfloat16(__m512 low, __m512 high) {
  return amx_emulation::round_to_bfloat16(low, high);
}

#else

// The compiler's own intrinsics (g++ 12) say that a tile load reads nothing and that LDTILECFG
// reads 8 bytes, so that stores before them may be dropped or moved. These say what is read and
// written.

inline void tile_configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
inline void tile_release() { asm volatile("tilerelease"); }
template <int kTile>
void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
void tile_load(const void* from) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(int64_t(64)),
               "m"(*static_cast<const TileBytes*>(from)));
}
template <int kTile>
void tile_store(void* to) {
  asm volatile("tilestored %%tmm%c1, (%2,%3,1)"
               : "=m"(*static_cast<TileBytes*>(to))
               : "i"(kTile), "r"(to), "r"(int64_t(64)));
}
// sum += left right: 16x32 bfloat16 times 32x16, the right one with its rows interleaved in pairs.
template <int kSum, int kLeft, int kRight>
void tile_multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}
// 32 floats, low ones first, to bfloat16: to nearest even, denormals to zero.
inline __m512i round_to_bfloat16(__m512 low, __m512 high) {
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

#endif

// Eight whole tiles for the calling thread.
class TileSession {
 public:
  TileSession() { tile_configure(TileConfig{}); }
  ~TileSession() { tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

}  // namespace schattor::cpu::amx
SCHATTOR_AMX_END

#else
#define SCHATTOR_AMX 0
#endif

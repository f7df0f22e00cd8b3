// The software tiles against the architecture's definition, and against the processor's own
// instruction where it has that.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <random>

#ifndef SCHATTOR_EMULATE_AMX
#define SCHATTOR_EMULATE_AMX
#endif
#include "amx_tiles.h"
#include "check.h"

namespace {

std::mt19937 generator(11);

// The bfloat16 towards zero from a float, and back.
uint16_t top_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}
float from_top_half(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <class Body>
bool aborts(const Body& body) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    body();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void test_tiles() {
  using amx_emulation::TileUnit;
  schattor::cpu::amx::TileConfig config;
  TileUnit unit;
  CHECK(aborts([&] { unit.zero(0); }), "tiles without a configuration");
  unit.configure(&config);
  CHECK(!aborts([&] { unit.multiply_add(0, 1, 2); }), "a product of whole tiles");
  CHECK(aborts([&] { unit.zero(8); }), "a ninth tile");
  CHECK(aborts([&] { unit.multiply_add(0, 1, 1); }), "a product of a tile with itself");
  CHECK(aborts([&] { unit.release(), unit.zero(0); }), "tiles after their release");
  CHECK(aborts([&] { config.rows[3] = 17, unit.configure(&config); }), "17 rows");
  CHECK(aborts([&] {
          config.rows[1] = 8, unit.configure(&config);
          unit.multiply_add(0, 1, 2);
        }),
        "operands of different rows");

  // One sum: pairs apart, denormals zero, then together.
  alignas(64) uint16_t left[512] = {}, right[512] = {};
  alignas(64) float sums[256] = {};
  const double terms[] = {1, 3e-3, -1, 2e-3, 1e-3, 1e-3};
  float even = 0, odd = 0;
  for (int k = 0; k < 6; ++k) {
    left[k] = top_half(static_cast<float>(terms[k]));
    right[k / 2 * 32 + k % 2] = top_half(1.5f);
    float& part = k % 2 == 0 ? even : odd;
    part = std::fma(from_top_half(left[k]), 1.5f, part);
  }
  left[6] = 1;  // a denormal, times a large number
  right[3 * 32] = top_half(1e38f);
  sums[0] = 0.1f;
  unit.load(4, left, 64);
  unit.load(6, right, 64);
  unit.load(0, sums, 64);
  unit.multiply_add(0, 4, 6);
  unit.store(0, sums, 64);
  CHECK(sums[0] == 0.1f + (even + odd), "%.9g, not %.9g", double(sums[0]),
        double(0.1f + (even + odd)));
  CHECK(std::all_of(sums + 1, sums + 256, [](float x) { return x == 0; }), "other sums");
}

SCHATTOR_AMX_BEGIN
bool rounds_like_the_instruction(const float* values) {
  const __m512 low = _mm512_loadu_ps(values), high = _mm512_loadu_ps(values + 16);
  const __m512i emulated = amx_emulation::round_to_bfloat16(low, high);
  const __m512i native = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  return _mm512_cmpneq_epi16_mask(emulated, native) == 0;
}
SCHATTOR_AMX_END

void test_rounding() {
  if (!__builtin_cpu_supports("avx512bf16")) return;
  bool same = true;
  for (int trial = 0; trial < 20000; ++trial) {
    uint32_t bits[32];
    for (uint32_t& value : bits) {
      value = static_cast<uint32_t>(generator());
      if (trial % 4 == 1) value &= 0xffff8000u;  // ties
      if (trial % 4 == 2) value &= 0x807fffffu;  // denormals
      if (trial % 4 == 3) value |= 0x7f800000u;  // infinities and NaN
    }
    float values[32];
    std::memcpy(values, bits, sizeof(values));
    same &= rounds_like_the_instruction(values);
  }
  CHECK(same, "emulated rounding is not the processor's");
}

}  // namespace

int main() {
  if (!amx_emulation::runs_here()) {
    std::puts("skipped: needs AVX-512");
    return 0;
  }
  test_tiles();
  test_rounding();
  return check::finish();
}

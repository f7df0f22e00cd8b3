// Which instruction set is in force, and the dtypes' sizes.
#include "levels.h"

#include <atomic>

#include "level_headers.h"

#if SCHATTOR_X86_LEVELS && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace schattor::cpu {
namespace {

#if SCHATTOR_X86_LEVELS
// Tiles with bfloat16 products, the vectors that feed them, and the system's leave to use their
// state: the kernel wants to be asked once by a process, and grants it only where it saves that
// state.
bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & kBFloat16) == 0 || (edx & kTile) == 0) return false;
  if (!__builtin_cpu_supports("avx512bf16")) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_float16_vectors() {
#if SCHATTOR_FLOAT16_LEVEL
  return __builtin_cpu_supports("avx512fp16");
#else
  return false;
#endif
}

bool has_bfloat16_vectors() {
#if SCHATTOR_BFLOAT16_LEVEL
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

Level detect() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  if (!avx2) return Level::kBaseline;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx512) return Level::kAvx2;
  if (has_amx()) return Level::kAmx;
  if (has_float16_vectors()) return Level::kAvx512Fp16;
  return has_bfloat16_vectors() ? Level::kAvx512Bf16 : Level::kAvx512;
}
#else
bool has_float16_vectors() { return false; }
bool has_bfloat16_vectors() { return false; }
Level detect() { return Level::kBaseline; }
#endif

std::atomic<Level>& level_in_force() {
  static std::atomic<Level> level{detected_level()};
  return level;
}

#ifdef SCHATTOR_EMULATE_HALVES
std::atomic<bool> halves_are_emulated{false};
#endif

}  // namespace

bool has_level(Level level) {
  if (level > detected_level()) return false;
  if (level == Level::kAvx512Bf16) return has_bfloat16_vectors();
  return level != Level::kAvx512Fp16 || has_float16_vectors();
}

Level detected_level() {
  static const Level level = detect();
  return level;
}

Level level() { return level_in_force().load(std::memory_order_relaxed); }

bool force_level(Level level) {
  if (!has_level(level)) return false;
  level_in_force().store(level, std::memory_order_relaxed);
  return true;
}

#ifdef SCHATTOR_EMULATE_HALVES
void emulate_halves(bool on) { halves_are_emulated = on; }
#endif

const LevelKernels& kernels() {
#ifdef SCHATTOR_EMULATE_HALVES
  if (halves_are_emulated) return emulated_half_kernels();
#endif
#if SCHATTOR_FLOAT16_LEVEL
  static const bool has_float16 = has_level(Level::kAvx512Fp16);
  if (has_float16 && level() >= Level::kAvx512Fp16) return avx512_fp16_kernels();
#endif
#if SCHATTOR_BFLOAT16_LEVEL
  if (level() == Level::kAvx512Bf16) return avx512_bf16_kernels();
#endif
#if SCHATTOR_X86_LEVELS
  if (level() >= Level::kAvx512) return avx512_kernels();
  if (level() == Level::kAvx2) return avx2_kernels();
#endif
  return baseline_kernels();
}

int64_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return 8;
    case Dtype::kFloat32:
      return 4;
    default:
      return 2;
  }
}

}  // namespace schattor::cpu

// Matrix products of warps (mma) and of warpgroups (wgmma).
//
// Sums are added in float in order of k; the device adds and truncates in ways of its own, so
// results are compared with tolerances, never bit by bit.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "machine.h"

namespace emu {
namespace {

float widen(uint32_t bits, bool half) {
  if (half) {
    __half_raw raw;
    raw.x = static_cast<uint16_t>(bits);
    return __half2float(__half(raw));
  }
  const uint32_t word = bits << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
float low(uint32_t pair, bool half) { return widen(pair & 0xFFFF, half); }
float high(uint32_t pair, bool half) { return widen(pair >> 16, half); }

struct Mma {
  float* d;
  const uint32_t *a, *b;
  bool half;
};

// The maps of PTX's m16n8k16: lane t holds rows t/4 and t/4 + 8, columns t%4 * 2 and + 1, of a also
// those eight further on.
void multiply_warp(void** arguments, uint32_t mask, void* place) {
  if (mask != ~0u) {
    report("partial warp", place, "mma with lanes %08x", mask);
    return;
  }
  float a[16][16], b[16][8], c[16][8];
  for (int t = 0; t < 32; ++t) {
    const Mma& lane = *static_cast<Mma*>(arguments[t]);
    const int g = t / 4, k = t % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      a[g + i % 2 * 8][k + i / 2 * 8] = low(lane.a[i], lane.half);
      a[g + i % 2 * 8][k + i / 2 * 8 + 1] = high(lane.a[i], lane.half);
      c[g + i / 2 * 8][k + i % 2] = lane.d[i];
    }
    for (int i = 0; i < 2; ++i) {
      b[k + i * 8][g] = low(lane.b[i], lane.half);
      b[k + i * 8 + 1][g] = high(lane.b[i], lane.half);
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int t = 0; t < 32; ++t) {
    const Mma& lane = *static_cast<Mma*>(arguments[t]);
    for (int i = 0; i < 4; ++i) lane.d[i] = c[t / 4 + i / 2 * 8][t % 4 * 2 + i % 2];
  }
  counted.mma_flops += 2 * 16 * 8 * 16;
}

// ---- wgmma: accumulators become NaN when a product is issued, and operands are read when it is
// waited for ----

// Element (mn, k) of an operand that a descriptor gives. Start, leading (lbo) and stride (sbo) byte
// offsets count sixteen bytes; the swizzle works on the final address. K-major: rows of `span`
// bytes, eight rows an atom, sbo between atoms. MN-major: rows of `span` bytes along mn, eight k an
// atom, lbo between spans, sbo between atoms. Without swizzle atoms are 8 x 16 bytes.
const uint16_t* operand_element(uint64_t descriptor, int mn, int k, bool mn_major) {
  uint32_t address = (descriptor & 0x3FFF) << 4;
  const uint32_t lbo = (descriptor >> 16 & 0x3FFF) << 4, sbo = (descriptor >> 32 & 0x3FFF) << 4;
  const int mode = static_cast<int>(descriptor >> 62);
  const uint32_t span = mode == 1 ? 128 : mode == 2 ? 64 : mode == 3 ? 32 : 16;
  if (mn_major) {
    const int wide = span / 2;
    address += mode ? mn / wide * lbo + k / 8 * sbo + k % 8 * span + mn % wide * 2
                    : mn / 8 * sbo + k / 8 * lbo + k % 8 * 16 + mn % 8 * 2;
  } else {
    address += mn / 8 * sbo + mn % 8 * span + (mode ? k * 2 : k / 8 * lbo + k % 8 * 2);
  }
  if (mode) address ^= (address >> 7 & (span / 16 - 1)) << 4;
  return reinterpret_cast<const uint16_t*>(machine.arena + (address & 0x3FFFF));
}

// Register i of thread t: row t/32 * 16 + t%32/4 + i/2%2 * 8, column i/4 * 8 + t%4 * 2 + i%2.
int accumulator_at(int t, int i, int n) {
  return (t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8) * n + i / 4 * 8 + t % 4 * 2 + i % 2;
}

void execute(Warpgroup& group, const WgmmaOperation& operation) {
  const Wgmma& shape = operation.shape;
  const int n = shape.n;
  std::vector<float> a(64 * 16), b(16 * n), c(64 * n);
  for (int k = 0; k < 16; ++k) {
    for (int m = 0; m < 64; ++m) {
      a[m * 16 + k] = widen(*operand_element(shape.a, m, k, shape.a_mn_major), shape.half);
    }
    for (int j = 0; j < n; ++j) {
      b[k * n + j] = widen(*operand_element(shape.b, j, k, shape.b_mn_major), shape.half);
    }
  }
  for (int t = 0; t < 128 && shape.accumulate; ++t) {
    const std::vector<float>& d = group.accumulators[operation.d[t]];
    for (int i = 0; i < n / 2; ++i) c[accumulator_at(t, i, n)] = d[i];
  }
  for (int m = 0; m < 64; ++m) {
    for (int k = 0; k < 16; ++k) {
      const float factor = a[m * 16 + k];
      for (int j = 0; j < n; ++j) c[m * n + j] += factor * b[k * n + j];
    }
  }
  for (int t = 0; t < 128; ++t) {
    std::vector<float>& d = group.accumulators[operation.d[t]];
    for (int i = 0; i < n / 2; ++i) d[i] = c[accumulator_at(t, i, n)];
  }
  counted.wgmma_flops += int64_t{2} * 64 * n * 16;
}

void touch_operand(uint64_t descriptor, int extent, bool mn_major, uint32_t clock, void* place) {
  for (int mn = 0; mn < extent; ++mn) {
    for (int k = 0; k < 16; ++k) {
      touch(operand_element(descriptor, mn, k, mn_major), 2, kRead, wgmma_agent(cur->lin / 128),
            clock, self()->stamp.memory, true, place);
    }
  }
}

void issue(void** arguments, uint32_t, void* place) {
  Warpgroup& group = own_group();
  const Wgmma& first = *static_cast<Wgmma*>(arguments[0]);
  if (!group.fenced) {
    report("wgmma without wgmma.fence", place, "the first after a wait or the start");
  }
  WgmmaOperation operation{first, {}, group.committed};
  for (int t = 0; t < 128; ++t) {
    const Wgmma& own = *static_cast<Wgmma*>(arguments[t]);
    if (own.a != first.a || own.b != first.b || own.accumulate != first.accumulate) {
      report("non-uniform wgmma", place, "thread %d of the warpgroup", t);
    }
    operation.d[t] = own.d;
    std::vector<float>& saved = group.accumulators[own.d];
    for (int i = static_cast<int>(saved.size()); i < first.n / 2; ++i) {
      saved.push_back(own.d[i]);
      std::memset(own.d + i, 0xFF, sizeof(float));
    }
  }
  if (kRace) {
    touch_operand(first.a, 64, first.a_mn_major, group.committed + 1, place);
    touch_operand(first.b, first.n, first.b_mn_major, group.committed + 1, place);
  }
  group.operations.push_back(operation);
}

// Gives the accumulators back that no product in flight adds to.
void settle_accumulators(Warpgroup& group) {
  for (auto at = group.accumulators.begin(); at != group.accumulators.end();) {
    const bool in_flight =
        std::any_of(group.operations.begin(), group.operations.end(), [&](const auto& operation) {
          return std::find(operation.d, operation.d + 128, at->first) != operation.d + 128;
        });
    if (!in_flight) std::memcpy(at->first, at->second.data(), at->second.size() * sizeof(float));
    at = in_flight ? std::next(at) : group.accumulators.erase(at);
  }
  if (group.operations.empty()) group.fenced = false;
}

}  // namespace

void mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, bool half, void* place) {
  Mma lane{d, a, b, half};
  warp_collective(~0u, "mma.m16n8k16", &lane, multiply_warp, false, place);
}

void wgmma_issue(const Wgmma& operation, void* place) {
  Wgmma own = operation;
  group_collective("wgmma", &own, issue, place);
}

void wgmma_fence(void* place) {
  group_collective(
      "wgmma.fence", nullptr, [](void**, uint32_t, void*) { own_group().fenced = true; }, place);
}

void wgmma_commit(void* place) {
  group_collective(
      "wgmma.commit_group", nullptr, [](void**, uint32_t, void*) { ++own_group().committed; },
      place);
}

void wgmma_wait(int pending, void* place) {
  group_collective(
      "wgmma.wait_group", &pending,
      [](void** arguments, uint32_t, void*) {
        Warpgroup& group = own_group();
        const int done = group.committed - *static_cast<int*>(arguments[0]);
        while (!group.operations.empty() && group.operations.front().group < done) {
          execute(group, group.operations.front());
          group.operations.pop_front();
        }
        settle_accumulators(group);
      },
      place);
  Fiber* fiber = self();
  seen_up_to(fiber, wgmma_agent(fiber->lin / 128), own_group().committed - pending);
}

}  // namespace emu

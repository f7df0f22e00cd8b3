// What the emulation found wrong, and what it counted, for tests in Python.
#include <cstdint>

#include "cuemu.h"

extern "C" {

// Reports since the last call; they are printed where they happen.
int schattor_emulated_reports() {
  const int found = emu::reports();
  emu::clear_reports();
  return found;
}

// Since the same call: launches, and operations of tensor cores.
void schattor_emulated_counts(int64_t* launches, int64_t* flops) {
  const emu::Counters counted = emu::counters();
  *launches = counted.launches;
  *flops = counted.mma_flops + counted.wgmma_flops;
}

// In which order threads run: 0 ascending, 1 descending, 2 at random by the seed.
void schattor_emulated_order(int order, unsigned long seed) {
  emu::opt.order = order;
  emu::opt.seed = seed;
}

}  // extern "C"

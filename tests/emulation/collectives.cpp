// Barriers, warps and warpgroups that act together, and what they exchange by it.
//
// Each thread leaves its arguments and waits; the last to arrive computes for all. Wrong masks,
// different operations in one warp and absent lanes are reported; who never comes shows as a
// deadlock.
#include "machine.h"

namespace emu {
namespace {

void release(NamedBarrier& barrier) {
  for (Fiber* fiber : barrier.waiting) {
    take_over(fiber, barrier.stamp);
    wake(fiber);
  }
  barrier.waiting.clear();
  barrier.arrived = barrier.expected = 0;
  barrier.stamp = Stamp();
  barrier.result = barrier.votes;
  barrier.votes = 0;
}

}  // namespace

void bar_sync(int id, int threads, bool wait, void* place) {
  Fiber* fiber = self();
  if (id < 0 || id > 15 || threads % 32 || threads > thread_count()) {
    report("barrier misuse", place, "barrier %d of %d threads", id, threads);
    return;
  }
  NamedBarrier& barrier = machine.block.barriers[id];
  if (barrier.arrived && barrier.expected != threads) {
    report("barrier misuse", place, "barrier %d: counts %d and %d", id, barrier.expected, threads);
  }
  // By line, not by address: the compiler duplicates calls.
  if (barrier.arrived && !threads && barrier.place != place &&
      where(barrier.place) != where(place)) {
    report("divergent __syncthreads", place, "others wait at %s", where(barrier.place).c_str());
  }
  barrier.expected = threads;
  barrier.place = place;
  ++barrier.arrived;
  join(barrier.stamp, fiber->stamp);
  tick(fiber);
  if (wait) barrier.waiting.push_back(fiber);
  if (barrier.arrived >= (threads ? threads : machine.block.live)) release(barrier);
  if (wait) wait_here("barrier", place);
}

void syncthreads(void* place) { bar_sync(0, 0, true, place); }

// The result stands until the next release, which needs every thread again.
int block_vote(bool predicate, void* place) {
  machine.block.barriers[0].votes += predicate;
  bar_sync(0, 0, true, place);
  return machine.block.barriers[0].result;
}

// As on the device, a thread that has ended is not waited for. It tells nothing either: what it
// wrote before is ordered with nobody.
void thread_ended() {
  NamedBarrier& barrier = machine.block.barriers[0];
  if (barrier.arrived && !barrier.expected && barrier.arrived >= machine.block.live) {
    release(barrier);
  }
}

void warp_collective(uint32_t mask, const char* kind, void* argument, Collective function,
                     bool orders_memory, void* place) {
  Fiber* fiber = self();
  std::vector<Meeting>& meetings = machine.block.meetings[fiber->warp];
  const int in_warp = std::min(32, thread_count() - fiber->warp * 32);
  if (in_warp < 32) mask &= (1u << in_warp) - 1;
  if (!(mask >> fiber->lane & 1)) {
    report("bad mask", place, "lane %d calls %s with mask %08x", fiber->lane, kind, mask);
  }
  auto found = std::find_if(meetings.begin(), meetings.end(),
                            [mask](const Meeting& other) { return other.mask & mask; });
  if (found != meetings.end() && (found->mask != mask || std::strcmp(found->kind, kind))) {
    report("divergent warp", place, "lane %d is in %s (mask %08x), others in %s (%08x)",
           fiber->lane, kind, mask, found->kind, found->mask);
  }
  if (found == meetings.end()) {
    found = meetings.insert(meetings.end(), Meeting());
    found->mask = mask;
    found->kind = kind;
  }
  found->arrived |= 1u << fiber->lane;
  found->argument[fiber->lane] = argument;
  found->fiber[fiber->lane] = fiber;
  if (found->arrived == found->mask) {
    Meeting meeting = *found;
    meetings.erase(found);
    if (function) function(meeting.argument, meeting.mask, place);
    Fiber* present[32];
    int count = 0;
    for (int i = 0; i < 32; ++i) {
      if (meeting.mask >> i & 1) present[count++] = meeting.fiber[i];
    }
    meet(present, count, orders_memory);
    std::for_each(present, present + count, wake);
  }
  wait_here(kind, place);
}

void group_collective(const char* kind, void* argument, Collective function, void* place) {
  Fiber* fiber = self();
  GroupMeeting& meeting = own_group().meeting;
  if (meeting.arrived && std::strcmp(meeting.kind, kind)) {
    report("divergent warpgroup", place, "%s against %s", kind, meeting.kind);
  }
  meeting.kind = kind;
  meeting.argument[fiber->lin % 128] = argument;
  meeting.fiber[fiber->lin % 128] = fiber;
  if (++meeting.arrived == 128) {
    meeting.arrived = 0;
    GroupMeeting complete = meeting;
    if (function) function(complete.argument, ~0u, place);
    meet(complete.fiber, 128, false);
    std::for_each(complete.fiber, complete.fiber + 128, wake);
  }
  wait_here(kind, place);
}

void setmaxnreg(int registers, void* place) {
  if (registers < 24 || registers > 256 || registers % 8) {
    report("bad setmaxnreg", place, "%d registers", registers);
  }
  group_collective("setmaxnreg", nullptr, nullptr, place);
}

void shfl(uint32_t mask, Shuffle* shuffle, void* place) {
  warp_collective(
      mask, "__shfl_sync", shuffle,
      [](void** arguments, uint32_t mask, void* place) {
        for (int i = 0; i < 32; ++i) {
          if (!(mask >> i & 1)) continue;
          const auto* own = static_cast<Shuffle*>(arguments[i]);
          if (own->source >= 0 && own->source < 32 && (mask >> own->source & 1)) {
            const auto* source = static_cast<Shuffle*>(arguments[own->source]);
            std::memcpy(own->out, source->value, own->bytes);
          } else {
            std::memset(own->out, 0xFF, own->bytes);
            report("shuffle from absent lane", place, "lane %d reads lane %d, mask %08x", i,
                   own->source, mask);
          }
        }
      },
      false, place);
}

uint32_t ballot(uint32_t mask, bool predicate, void* place) {
  uint32_t vote = predicate;
  warp_collective(
      mask, "__ballot_sync", &vote,
      [](void** arguments, uint32_t mask, void*) {
        uint32_t votes = 0;
        for (int i = 0; i < 32; ++i) {
          if ((mask >> i & 1) && *static_cast<uint32_t*>(arguments[i])) votes |= 1u << i;
        }
        for (int i = 0; i < 32; ++i) {
          if (mask >> i & 1) *static_cast<uint32_t*>(arguments[i]) = votes;
        }
      },
      false, place);
  return vote;
}

// ---- ldmatrix, stmatrix ----

namespace {

struct Matrices {
  uint32_t* registers;
  unsigned char* row;
  int count;
  bool trans;
  const Fiber* fiber;
};

Matrices* lane_argument(void** arguments, int lane) {
  return static_cast<Matrices*>(arguments[lane]);
}

// The row that a lane gives: true where it can be read or written.
bool check_row(const Matrices& lane, const char* name, int access, void* place) {
  if (!in_arena(lane.row) || !in_arena(lane.row + 15)) {
    report("matrix row outside dynamic shared memory", place, "%s, lane %d", name,
           lane.fiber->lane);
    return false;
  }
  if (reinterpret_cast<uintptr_t>(lane.row) % 16) {
    report("misaligned matrix row", place, "%s, lane %d: shared+%u", name, lane.fiber->lane,
           smem_u32(lane.row));
  }
  touch_as(lane.fiber, lane.row, 16, access, place);
  return true;
}

void count_matrix(void** arguments, int matrix) {
  uintptr_t rows[8];
  for (int j = 0; j < 8; ++j) {
    rows[j] = reinterpret_cast<uintptr_t>(lane_argument(arguments, matrix * 8 + j)->row) / 16;
  }
  counted.conflicts += count_conflicts(rows);
}

void check_full_warp(const char* name, uint32_t mask, void* place) {
  if (mask != ~0u) report("partial warp", place, "%s with lanes %08x", name, mask);
}

// Element (row, column) of matrix i is a half of register i of lane row * 4 + column / 2;
// transposed, of the register of (column, row). Rows are read and written by elements, so that
// AddressSanitizer sees them.
void load_matrices(void** arguments, uint32_t mask, void* place) {
  check_full_warp("ldmatrix", mask, place);
  if (mask != ~0u) return;
  for (int i = 0; i < lane_argument(arguments, 0)->count; ++i) {
    uint16_t element[8][8] = {};
    for (int j = 0; j < 8; ++j) {
      const Matrices& lane = *lane_argument(arguments, i * 8 + j);
      if (!check_row(lane, "ldmatrix", kRead, place)) continue;
      for (int e = 0; e < 8; ++e) element[j][e] = reinterpret_cast<const uint16_t*>(lane.row)[e];
    }
    count_matrix(arguments, i);
    for (int t = 0; t < 32; ++t) {
      const Matrices& lane = *lane_argument(arguments, t);
      const int r = t / 4, c = t % 4 * 2;
      const uint32_t low = lane.trans ? element[c][r] : element[r][c];
      const uint32_t high = lane.trans ? element[c + 1][r] : element[r][c + 1];
      lane.registers[i] = low | high << 16;
    }
  }
}

void store_matrices(void** arguments, uint32_t mask, void* place) {
  check_full_warp("stmatrix", mask, place);
  if (mask != ~0u) return;
  for (int i = 0; i < lane_argument(arguments, 0)->count; ++i) {
    for (int j = 0; j < 8; ++j) {
      const Matrices& lane = *lane_argument(arguments, i * 8 + j);
      if (!check_row(lane, "stmatrix", kWrite, place)) continue;
      for (int e = 0; e < 8; ++e) {
        const int r = lane.trans ? e : j, c = lane.trans ? j : e;
        const uint32_t pair = lane_argument(arguments, r * 4 + c / 2)->registers[i];
        reinterpret_cast<uint16_t*>(lane.row)[e] = static_cast<uint16_t>(pair >> c % 2 * 16);
      }
    }
    count_matrix(arguments, i);
  }
}

}  // namespace

// Eight rows of 16 bytes are one wavefront where they fall in eight different groups of banks.
int count_conflicts(const uintptr_t (&rows)[8]) {
  int used[8] = {}, most = 1;
  for (int j = 0; j < 8; ++j) {
    if (std::find(rows, rows + j, rows[j]) == rows + j) most = std::max(most, ++used[rows[j] % 8]);
  }
  return most - 1;
}

void ldmatrix(uint32_t* registers, const void* row, int count, bool trans, void* place) {
  auto* bytes = static_cast<unsigned char*>(const_cast<void*>(row));
  Matrices lane{registers, bytes, count, trans, self()};
  warp_collective(~0u, "ldmatrix", &lane, load_matrices, false, place);
}

void stmatrix(void* row, const uint32_t* registers, int count, bool trans, void* place) {
  auto* words = const_cast<uint32_t*>(registers);
  Matrices lane{words, static_cast<unsigned char*>(row), count, trans, self()};
  warp_collective(~0u, "stmatrix", &lane, store_matrices, false, place);
}

}  // namespace emu

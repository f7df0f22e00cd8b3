// The state of the emulated device: shared by the files of the emulation, seen by nobody else.
#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "emulation.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define CUEMU_ASAN 1
#else
#define CUEMU_ASAN 0
#define ASAN_POISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#endif

namespace emu {

#ifdef CUEMU_RACE
inline constexpr bool kRace = true;
#else
inline constexpr bool kRace = false;
#endif

// Descriptors of wgmma address 18 bits of shared memory: everything must lie below 256 KB.
inline constexpr size_t kArena = 256 << 10;
inline constexpr size_t kRedzone = 256;
inline constexpr int kMostMbarriers = 64;

// Vector clock: what is known of each agent. Joins grow the shorter one.
using Clock = std::vector<uint32_t>;

// Two orders are kept. Memory: what later loads must see, as the memory model of PTX has it; agents
// are threads and what runs beside them (asynchronous copies and products). Execution: what has
// been executed, which every instruction that a warp executes together tells too: of threads, and
// after them how many phases of each mbarrier have ended. Only in kernels with mbarriers.
struct Stamp {
  Clock memory, execution;
};

struct AsyncCopy {
  void* to;
  unsigned char data[16];
  int bytes, group;
};
// A box of a tensor on its way, to (load) or from (store) shared memory.
struct Bulk {
  unsigned char* shared;
  TensorMap map;
  int corner[3];
  uint64_t* barrier;  // of a load
  uint32_t clock;     // of a load, of the barrier's agent
  int group;          // of a store
};

struct Fiber : Thread {
  void* stack_pointer;
  char* stack;
  void* fake_stack;  // of AddressSanitizer
  bool done;
  const char* waits_in;
  void* waits_at;
  uint64_t* waits_for;  // mbarrier, or null
  int waits_parity;
  std::deque<AsyncCopy> copies;
  int copies_committed;
  std::deque<Bulk> stores;
  int stores_committed;
  Stamp stamp;
  uint32_t fenced;  // own writes up to this time have passed fence.proxy.async
};

// A rendezvous of lanes of a warp, or of the threads of a warpgroup.
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  const char* kind = nullptr;
  void* argument[32];
  Fiber* fiber[32];
};
struct GroupMeeting {
  const char* kind = nullptr;
  int arrived = 0;
  void* argument[128];
  Fiber* fiber[128];
};
struct NamedBarrier {
  int arrived = 0, expected = 0;
  void* place = nullptr;
  std::vector<Fiber*> waiting;
  int votes = 0, result = 0;
  Stamp stamp;
};

// An mbarrier lies in its own eight bytes of shared memory, as on the device ...
struct MbarWord {
  uint32_t phase : 1, expected : 15, pending : 16;
  int32_t bytes;  // announced less arrived; below zero where data came before the announcement
};
static_assert(sizeof(MbarWord) == 8, "PTX gives an mbarrier eight bytes");
// ... and what only the emulation knows of it beside.
struct Mbarrier {
  int index = 0;
  uint32_t loads = 0;      // issued
  uint32_t completed = 0;  // phases
  Stamp arrived, released;
  // Of the last phases of either parity: execution times of waits and of arrivals by thread, and
  // whether it announced bytes.
  Clock waited[2], arrivals[2];
  void* waited_at[2] = {};
  bool bytes[2] = {};
};

struct WgmmaOperation {
  Wgmma shape;
  float* d[128];
  int group;
};
struct Warpgroup {
  std::deque<WgmmaOperation> operations;
  int committed = 0;
  std::map<float*, std::vector<float>> accumulators;  // of products in flight
  GroupMeeting meeting;
  bool fenced = false;
};

struct Block {
  uint3 id{};
  int live = 0;
  std::vector<std::vector<Meeting>> meetings;  // by warp
  std::vector<Warpgroup> groups;
  NamedBarrier barriers[16];
  std::map<uint64_t*, Mbarrier> mbarriers;
  std::deque<Bulk> loads;
  // Where each carved array begins without the gaps that the emulation puts between: the address
  // that the device would give it.
  std::map<const unsigned char*, size_t> plain_address;
  std::map<const void*, size_t> carved;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Fiber*> ready;
  unsigned char* arena = nullptr;
  size_t shared_bytes = 0, shared_offset = 0;
  Block block;
  void (*body)(void*) = nullptr;
  void* context = nullptr;
  void* main_stack_pointer = nullptr;
  void* main_fake_stack = nullptr;
  const void* main_bottom = nullptr;
  size_t main_size = 0;
  uint64_t random = 1;
  uint64_t launch = 0;
  bool aborted = false;
};
extern Machine machine;
extern Counters counted;
extern cudaError_t last_error;

inline Fiber* self() { return static_cast<Fiber*>(cur); }
inline int thread_count() { return static_cast<int>(machine.fibers.size()); }
inline Warpgroup& own_group() { return machine.block.groups[cur->lin / 128]; }
inline bool in_arena(const void* data) {
  const auto* p = static_cast<const unsigned char*>(data);
  return p >= machine.arena && p < machine.arena + kArena;
}

// schedule.cpp
uint64_t random_number();
void wake(Fiber* fiber);
void wait_here(const char* why, void* place);
bool on_fiber(const void* frame);

// collectives.cpp
void thread_ended();
int count_conflicts(const uintptr_t (&rows)[8]);

// copies.cpp
void complete_load(size_t index);
void check_block_end();

// reports.cpp
std::string where(void* place);
// Counts a problem; true where this pair of places is new and to be printed.
bool fresh(const void* place, const void* other);

// race.cpp: no-ops in the other builds
int cp_agent(const Fiber* fiber);
int wgmma_agent(int group);
int mbarrier_agent(int index);
int store_agent(const Fiber* fiber);
int agent_count();
void start_block();
void join(Stamp& stamp, const Stamp& other);
void tick(Fiber* fiber);
// A waiting fiber takes over a stamp that holds all it knew when it arrived.
void take_over(Fiber* fiber, const Stamp& stamp);
// Fibers meet: all know what any knew.
void meet(Fiber* const* fibers, int count, bool orders_memory);
void touch(const void* data, size_t bytes, int access, int agent, uint32_t clock,
           const Clock& known, bool async_proxy, void* place);
// The same by a thread.
void touch_as(const Fiber* fiber, const void* data, size_t bytes, int access, void* place);
void allow_shared(size_t offset, size_t bytes);
void check_initialised(const uint64_t* barrier, void* place);
void seen_up_to(Fiber* fiber, int agent, int clock);
size_t global_bytes_from(const void* data);

}  // namespace emu

// The race detector: happens-before by vector clocks.
//
// g++ -fsanitize=thread calls a function before every load and store; instrumentation.cpp answers
// those calls in place of libtsan, and asks here. Every two bytes of shared memory and of
// registered global memory have a cell with the last write and the reads since. An access must come
// after, in the order of memory, the write it meets, and a write after the reads. What runs beside
// the threads is an agent with a time of its own: the cp.async of each thread, the wgmma of each
// warpgroup, the tensor loads of each mbarrier, the tensor stores of each warp. Barriers,
// __syncwarp, mbarriers and waits order memory; shuffles, ldmatrix and mma do not, as in PTX.
// Whatever the order of the run, the race is seen.
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "machine.h"

namespace emu {
namespace {

constexpr size_t kGranule = 2;
constexpr size_t kGuard = 4096;
constexpr size_t kPageCells = 256;
constexpr uint32_t kNobody = ~0u;

struct Reader {
  uint32_t agent, clock;
  void* place;
};
// From this many on, readers stand at their agent's index, so that a number which a whole block
// reads costs each thread one step and not a search.
constexpr size_t kManyReaders = 8;

// Cells are not cleared: those of another block have another key (launch, block).
struct Cell {
  uint64_t key = 0;
  uint32_t writer = kNobody, clock = 0;
  void* place = nullptr;
  bool atomic = false;          // the last write was
  bool read_elsewhere = false;  // by another block of this launch
  std::vector<Reader> readers;
};

// Cells of a stretch of memory, made when first touched.
class Shadow {
 public:
  explicit Shadow(size_t bytes = 0) : pages_(bytes / kGranule / kPageCells + 1) {}
  Cell& operator[](size_t index) {
    std::unique_ptr<Cell[]>& page = pages_[index / kPageCells];
    if (!page) page.reset(new Cell[kPageCells]);
    return page[index % kPageCells];
  }

 private:
  std::vector<std::unique_ptr<Cell[]>> pages_;
};

struct Range {
  size_t bytes, guard;
  std::string name;
  Shadow shadow;
};
std::map<const char*, Range> ranges;
Shadow shared_shadow(kArena);
std::vector<uint8_t> allowed;
uint64_t block_key;

// One look at some bytes: by whom, when on its own clock, and what it knows of the others.
struct Look {
  int access, agent;
  uint32_t clock;
  const Clock& known;
  bool async_proxy;
  void* place;
};

bool after(const Clock& known, uint32_t agent, uint32_t clock) { return clock <= known[agent]; }

std::string agent_name(uint32_t agent) {
  const int index = static_cast<int>(agent);
  const auto name = [](const char* kind, int number) { return kind + std::to_string(number); };
  if (agent == kNobody) return "another block";
  if (index < cp_agent(&machine.fibers[0])) return name("thread ", index);
  if (index < wgmma_agent(0)) return name("cp.async of thread ", index - thread_count());
  if (index < mbarrier_agent(0)) return name("wgmma of warpgroup ", index - wgmma_agent(0));
  if (index < mbarrier_agent(kMostMbarriers)) {
    return name("TMA load on mbarrier ", index - mbarrier_agent(0));
  }
  return name("TMA store of warp ", index - mbarrier_agent(kMostMbarriers));
}

void report_race(const char* what, const char* data,
                 const std::pair<const char* const, Range>* range, const Look& look,
                 void* other_place, uint32_t other) {
  if (!fresh(look.place, other_place)) return;
  const char* base = range ? range->first : reinterpret_cast<const char*>(machine.arena);
  std::fprintf(stderr, "cuemu: race (%s) on %s+%ld: %s at %s, %s at %s, block %u,%u\n", what,
               range ? range->second.name.c_str() : "shared", static_cast<long>(data - base),
               agent_name(look.agent).c_str(), where(look.place).c_str(), agent_name(other).c_str(),
               where(other_place).c_str(), machine.block.id.x, machine.block.id.y);
}

// The first look of this block at a cell. Blocks of one launch have no order: what one writes, no
// other may touch.
void enter_cell(Cell& cell, const char* data, const std::pair<const char* const, Range>* range,
                const Look& look) {
  bool read_elsewhere = false;
  if (!range && look.access != kWrite) {
    report("uninitialised shared memory", look.place, "read of shared+%u before any write",
           smem_u32(data));
  }
  if (range && cell.key >> 32 == machine.launch) {
    const bool written = cell.writer != kNobody;
    const bool read = cell.read_elsewhere || !cell.readers.empty();
    const bool both_atomic = look.access == kAtomic && cell.atomic && !read;
    if (look.access == kRead ? written : (written || read) && !both_atomic) {
      void* place = written ? cell.place : cell.readers.empty() ? nullptr : cell.readers[0].place;
      report_race("between blocks", data, range, look, place, written ? cell.writer : kNobody);
    }
    read_elsewhere = !written && read;
  }
  cell.key = block_key;
  cell.writer = kNobody;
  cell.clock = 0;
  cell.atomic = false;
  cell.read_elsewhere = read_elsewhere;
  cell.readers.clear();
}

// Readers that this one comes after are forgotten.
void add_reader(std::vector<Reader>& readers, const Look& look) {
  const Reader own{static_cast<uint32_t>(look.agent), look.clock, look.place};
  if (readers.size() > kManyReaders) {
    readers[own.agent] = own;
    return;
  }
  const auto forgotten = [&](const Reader& r) {
    return r.agent == own.agent || after(look.known, r.agent, r.clock);
  };
  readers.erase(std::remove_if(readers.begin(), readers.end(), forgotten), readers.end());
  readers.push_back(own);
  if (readers.size() <= kManyReaders) return;
  std::vector<Reader> by_agent(agent_count(), Reader{0, 0, nullptr});  // time 0: never
  for (const Reader& reader : readers) by_agent[reader.agent] = reader;
  readers.swap(by_agent);
}

void look_at(Cell& cell, const char* data, const std::pair<const char* const, Range>* range,
             const Look& look) {
  if (cell.key != block_key) enter_cell(cell, data, range, look);
  const bool written = cell.writer != kNobody;
  if (written && !after(look.known, cell.writer, cell.clock) &&
      !(look.access == kAtomic && cell.atomic)) {
    report_race(look.access == kRead ? "write, read" : "write, write", data, range, look,
                cell.place, cell.writer);
  }
  if (look.async_proxy && !range && cell.writer < machine.fibers.size() &&
      cell.clock > machine.fibers[cell.writer].fenced) {
    report("missing fence.proxy.async", look.place,
           "the asynchronous proxy reads shared+%u, which thread %u wrote at %s", smem_u32(data),
           cell.writer, where(cell.place).c_str());
  }
  std::vector<Reader>& readers = cell.readers;
  if (look.access == kRead) {
    add_reader(readers, look);
    return;
  }
  const auto racing = std::find_if(readers.begin(), readers.end(), [&](const Reader& r) {
    return !after(look.known, r.agent, r.clock);
  });
  if (racing != readers.end()) {
    report_race("read, write", data, range, look, racing->place, racing->agent);
  }
  if (range && look.access == kWrite && cell.read_elsewhere) {
    report_race("between blocks", data, range, look, nullptr, kNobody);
  }
  readers.clear();
  cell.writer = static_cast<uint32_t>(look.agent);
  cell.clock = look.clock;
  cell.place = look.place;
  cell.atomic = look.access == kAtomic;
}

void touch_shared(const char* data, size_t bytes, const Look& look) {
  const size_t offset = data - reinterpret_cast<const char*>(machine.arena);
  for (size_t i = offset; i < offset + bytes; ++i) {
    if (i >= kArena || !allowed[i]) {
      report("out-of-bounds shared access", look.place, "%s of %zu bytes at shared+%zu",
             look.access == kRead ? "read" : "write", bytes, offset);
      return;
    }
  }
  for (size_t cell = offset / kGranule; cell <= (offset + bytes - 1) / kGranule; ++cell) {
    look_at(shared_shadow[cell], reinterpret_cast<const char*>(machine.arena) + cell * kGranule,
            nullptr, look);
  }
}

void touch_global(const char* data, size_t bytes, const Look& look) {
  const char* kind = look.access == kRead ? "read" : "write";
  auto next = ranges.upper_bound(data);
  if (next != ranges.begin()) {
    auto& range = *std::prev(next);
    const size_t offset = data - range.first, size = range.second.bytes;
    if (offset < size && bytes <= size - offset) {
      (look.access == kRead ? counted.bytes_loaded : counted.bytes_stored) += bytes;
      for (size_t cell = offset / kGranule; cell <= (offset + bytes - 1) / kGranule; ++cell) {
        look_at(range.second.shadow[cell], range.first + cell * kGranule, &range, look);
      }
      return;
    }
    if (offset < size + range.second.guard) {
      report("out-of-bounds global access", look.place, "%s of %zu bytes at %s+%zu of %zu", kind,
             bytes, range.second.name.c_str(), offset, size);
      return;
    }
  }
  if (next != ranges.end() && next->first - data < static_cast<ptrdiff_t>(next->second.guard)) {
    report("out-of-bounds global access", look.place, "%s before %s", kind,
           next->second.name.c_str());
  }
}

// Vectorised: barriers join a clock for every thread.
__attribute__((optimize("O3"))) void join_clock(Clock& clock, const Clock& other) {
  if (clock.size() < other.size()) clock.resize(other.size());
  uint32_t* __restrict to = clock.data();
  const uint32_t* __restrict from = other.data();
  for (size_t i = 0, size = other.size(); i < size; ++i) to[i] = to[i] < from[i] ? from[i] : to[i];
}

}  // namespace

// ---- agents: threads, then their cp.async, wgmma, loads by mbarrier, stores by warp ----

int cp_agent(const Fiber* fiber) { return thread_count() + fiber->lin; }
int wgmma_agent(int group) { return 2 * thread_count() + group; }
int mbarrier_agent(int index) { return wgmma_agent((thread_count() + 127) / 128) + index; }
int store_agent(const Fiber* fiber) { return mbarrier_agent(kMostMbarriers) + fiber->warp; }
int agent_count() { return mbarrier_agent(kMostMbarriers) + (thread_count() + 31) / 32; }

void join(Stamp& stamp, const Stamp& other) {
  if (!kRace) return;
  join_clock(stamp.memory, other.memory);
  join_clock(stamp.execution, other.execution);
}

void tick(Fiber* fiber) {
  if (!kRace) return;
  ++fiber->stamp.memory[fiber->lin];
  if (machine.block.mbarriers.empty()) return;
  fiber->stamp.execution.resize(thread_count() + kMostMbarriers);
  ++fiber->stamp.execution[fiber->lin];
}

void take_over(Fiber* fiber, const Stamp& stamp) {
  if (!kRace) return;
  const uint32_t own = fiber->stamp.memory[fiber->lin];
  fiber->stamp.memory = stamp.memory;
  fiber->stamp.memory[fiber->lin] = own;
  join_clock(fiber->stamp.execution, stamp.execution);
  tick(fiber);
}

void meet(Fiber* const* fibers, int count, bool orders_memory) {
  if (!kRace || (!orders_memory && machine.block.mbarriers.empty())) return;
  Stamp all;
  for (int i = 0; i < count; ++i) {
    if (orders_memory) join_clock(all.memory, fibers[i]->stamp.memory);
    join_clock(all.execution, fibers[i]->stamp.execution);
  }
  for (int i = 0; i < count; ++i) {
    if (orders_memory) fibers[i]->stamp.memory = all.memory;
    fibers[i]->stamp.execution = all.execution;
    tick(fibers[i]);
  }
}

void start_block() {
  if (!kRace) return;
  const dim3& grid = g_grid;
  const uint3& id = machine.block.id;
  block_key =
      machine.launch << 32 | (id.x + uint64_t{grid.x} * (id.y + uint64_t{grid.y} * id.z) + 1);
  allowed.assign(kArena, 0);
  for (Fiber& fiber : machine.fibers) {
    fiber.stamp.memory.assign(agent_count(), 0);
    fiber.stamp.memory[fiber.lin] = 1;
  }
}

void allow_shared(size_t offset, size_t bytes) {
  if (kRace) std::fill_n(allowed.begin() + offset, bytes, 1);
}

void touch(const void* data, size_t bytes, int access, int agent, uint32_t clock,
           const Clock& known, bool async_proxy, void* place) {
  if (!kRace) return;
  const Look look{access, agent, clock, known, async_proxy, place};
  const char* begin = static_cast<const char*>(data);
  in_arena(data) ? touch_shared(begin, bytes, look) : touch_global(begin, bytes, look);
}

void touch_as(const Fiber* fiber, const void* data, size_t bytes, int access, void* place) {
  if (!kRace) return;
  const Clock& memory = fiber->stamp.memory;
  touch(data, bytes, access, fiber->lin, memory[fiber->lin], memory, false, place);
}

void check_access(const void* data, size_t bytes, int access, void* place) {
  if (kRace && on_fiber(__builtin_frame_address(0))) touch_as(self(), data, bytes, access, place);
}

void check_initialised(const uint64_t* barrier, void* place) {
  if (!kRace) return;
  const Cell& cell = shared_shadow[smem_u32(barrier) / kGranule];
  const Clock& memory = self()->stamp.memory;
  if (cell.writer != kNobody && !after(memory, cell.writer, cell.clock)) {
    const Look look{kRead, cur->lin, memory[cur->lin], memory, false, place};
    report_race("mbarrier.init, use", reinterpret_cast<const char*>(barrier), nullptr, look,
                cell.place, cell.writer);
  }
}

void seen_up_to(Fiber* fiber, int agent, int clock) {
  if (!kRace || clock <= 0) return;
  uint32_t& known = fiber->stamp.memory[agent];
  known = std::max(known, static_cast<uint32_t>(clock));
}

// ---- global buffers ----

void register_global(const void* data, size_t bytes, const char* name) {
  ranges[static_cast<const char*>(data)] = Range{bytes, 0, name, Shadow(kRace ? bytes : 0)};
}

void unregister_global(const void* data) { ranges.erase(static_cast<const char*>(data)); }

// Under AddressSanitizer an exact block of the heap, whose ends it guards.
void* alloc_global(size_t bytes, const char* name) {
  const size_t guard = CUEMU_ASAN ? 0 : kGuard;
  char* memory = static_cast<char*>(
      CUEMU_ASAN ? std::malloc(bytes)
                 : std::aligned_alloc(256, (bytes + 2 * guard + 255) / 256 * 256));
  if (!memory) return nullptr;
  memory += guard;
  std::memset(memory, 0xFF, bytes);
  register_global(memory, bytes, name);
  ranges[memory].guard = guard;
  return memory;
}

void free_global(void* data) {
  if (!data) return;
  unregister_global(data);
  std::free(static_cast<char*>(data) - (CUEMU_ASAN ? 0 : kGuard));
}

size_t global_bytes_from(const void* data) {
  const char* p = static_cast<const char*>(data);
  const auto next = ranges.upper_bound(p);
  if (next == ranges.begin()) return SIZE_MAX;
  const auto& [begin, range] = *std::prev(next);
  if (p < begin + range.bytes) return begin + range.bytes - p;
  return p < begin + range.bytes + range.guard ? 0 : SIZE_MAX;
}

}  // namespace emu

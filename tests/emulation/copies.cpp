// Asynchronous copies: cp.async, and Hopper's bulk copies of boxes of tensors with their mbarriers.
//
// A copy fills its destination with NaN when issued and delivers as late as the kernel allows: at
// wait_group, or for a load of a tensor at a random moment or when no thread can go on. So both a
// missing wait and a copy issued too early give NaN, on every order.
#include "machine.h"

namespace emu {

// ---- cp.async ----

void cp_async(void* to, const void* from, int bytes, int valid, void* place) {
  Fiber* fiber = self();
  const auto address = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (address % bytes) report("misaligned cp.async", place, "to %p, from %p", to, from);
  if (valid < 0 || valid > bytes) {
    report("bad cp.async size", place, "%d", valid);
    return;
  }
  if (!in_arena(to)) {
    report("cp.async outside dynamic shared memory", place, "%p", to);
    return;
  }
  AsyncCopy copy{to, {}, bytes, fiber->copies_committed};
  const uint32_t clock = fiber->copies_committed + 1;
  if (valid) touch(from, valid, kRead, cp_agent(fiber), clock, fiber->stamp.memory, false, place);
  touch(to, bytes, kWrite, cp_agent(fiber), clock, fiber->stamp.memory, false, place);
  if (valid) std::memcpy(copy.data, from, valid);
  if (opt.eager_async) {
    std::memcpy(to, copy.data, bytes);
  } else {
    std::memset(to, 0xFF, bytes);
    fiber->copies.push_back(copy);
  }
}

void cp_async_commit() { ++self()->copies_committed; }

void cp_async_wait(int pending) {
  Fiber* fiber = self();
  const int done = fiber->copies_committed - pending;
  while (!fiber->copies.empty() && fiber->copies.front().group < done) {
    const AsyncCopy& copy = fiber->copies.front();
    std::memcpy(copy.to, copy.data, copy.bytes);
    fiber->copies.pop_front();
  }
  seen_up_to(fiber, cp_agent(fiber), done);
}

// ---- mbarrier ----

namespace {

MbarWord& word_of(uint64_t* barrier) { return *reinterpret_cast<MbarWord*>(barrier); }

// What is known of a barrier, or null where it is none.
Mbarrier* find_barrier(uint64_t* barrier, void* place) {
  const auto found = machine.block.mbarriers.find(barrier);
  if (found != machine.block.mbarriers.end()) return &found->second;
  report("mbarrier used before init", place, "shared+%u", smem_u32(barrier));
  return nullptr;
}

// A wait knows its phase by one bit, so it must fall into that phase or the next: not before the
// one before has ended (else it takes the same bit of two phases ago for its own), not after the
// next has ended (else it waits for a phase that may never end). Mistimed waits happen on few
// orders; that nothing forbids them is seen on every one, in the order of execution.

bool has_seen(const Fiber* fiber, size_t agent, uint32_t time) {
  const Clock& execution = fiber->stamp.execution;
  return time <= (agent < execution.size() ? execution[agent] : 0);
}

// The thread must know that the phase before has ended: from who waited for it, or, where no bytes
// were awaited, from all who arrived.
void check_not_early(uint64_t* barrier, const Mbarrier& known, uint32_t phase, void* place) {
  if (!kRace || phase == 0 || phase == ~0u) return;
  const Fiber* fiber = self();
  if (has_seen(fiber, thread_count() + known.index, phase)) return;
  const int before = (phase - 1) & 1;
  bool arrivals = !known.bytes[before];
  for (size_t t = 0; t < known.arrivals[before].size() && arrivals; ++t) {
    arrivals = has_seen(fiber, t, known.arrivals[before][t]);
  }
  if (!arrivals) {
    report("mbarrier wait may come a phase early", place,
           "shared+%u: nothing tells the thread that the phase before has ended",
           smem_u32(barrier));
  }
}

// Who lets the next phase end must know of every wait for this one.
void check_not_late(uint64_t* barrier, const Mbarrier& known) {
  if (!kRace) return;
  const int before = (known.completed - 1) & 1;
  const Clock& waited = known.waited[before];
  const Clock& arrived = known.arrived.execution;
  for (size_t t = 0; t < waited.size(); ++t) {
    if (waited[t] > (t < arrived.size() ? arrived[t] : 0)) {
      report("mbarrier wait may come a phase late", known.waited_at[before],
             "shared+%u: the next phase can end before thread %zu has looked", smem_u32(barrier),
             t);
      break;
    }
  }
}

void settle(uint64_t* barrier, Mbarrier& known) {
  MbarWord& word = word_of(barrier);
  if (word.pending || word.bytes) return;
  check_not_late(barrier, known);
  word.phase ^= 1;
  word.pending = word.expected;
  ++known.completed;
  known.released = known.arrived;
  if (kRace) {
    const int next = known.completed & 1;
    known.waited[next ^ 1].clear();
    known.arrivals[next].clear();
    known.bytes[next] = false;
    known.released.execution.resize(thread_count() + kMostMbarriers);
    known.released.execution[thread_count() + known.index] = known.completed;
  }
  for (Fiber& fiber : machine.fibers) {
    if (fiber.waits_for == barrier && static_cast<int>(word.phase) != fiber.waits_parity) {
      fiber.waits_for = nullptr;
      wake(&fiber);
    }
  }
}

// When the present thread did something, by its own clock.
void note_time(Clock& times) {
  Fiber* fiber = self();
  tick(fiber);
  times.resize(thread_count());
  times[fiber->lin] = fiber->stamp.execution[fiber->lin];
}

}  // namespace

void mbar_init(uint64_t* barrier, int count, void* place) {
  if (!in_arena(barrier) || reinterpret_cast<uintptr_t>(barrier) % 8) {
    report("misplaced mbarrier", place, "%p", static_cast<void*>(barrier));
    return;
  }
  check_access(barrier, 8, kWrite, place);
  if (count <= 0 || count >= 1 << 15) report("bad mbarrier count", place, "%d", count);
  auto& mbarriers = machine.block.mbarriers;
  if (mbarriers.count(barrier)) report("mbarrier initialised twice", place, "count %d", count);
  if (mbarriers.size() == kMostMbarriers) {
    report("too many mbarriers for the emulation", place, "%d", kMostMbarriers);
  }
  MbarWord& word = word_of(barrier);
  word.phase = 0;
  word.expected = word.pending = count;
  word.bytes = 0;
  Mbarrier& known = mbarriers[barrier];
  known.index = static_cast<int>((mbarriers.size() - 1) % kMostMbarriers);
}

void mbar_arrive(uint64_t* barrier, int bytes, void* place) {
  Mbarrier* known = find_barrier(barrier, place);
  if (!known) return;
  check_initialised(barrier, place);
  MbarWord& word = word_of(barrier);
  if (!word.pending) {
    report("mbarrier over-arrival", place, "more than %d arrivals in one phase", word.expected);
    return;
  }
  if (kRace) {
    note_time(known->arrivals[known->completed & 1]);
    known->bytes[known->completed & 1] |= bytes != 0;
  }
  join(known->arrived, self()->stamp);
  tick(self());
  word.bytes += bytes;
  --word.pending;
  settle(barrier, *known);
}

void mbar_wait(uint64_t* barrier, int parity, void* place) {
  Mbarrier* known = find_barrier(barrier, place);
  if (!known) return;
  check_initialised(barrier, place);
  Fiber* fiber = self();
  parity &= 1;
  // The phase asked for: the present one, or the one before.
  const bool present = static_cast<int>(word_of(barrier).phase) == parity;
  const uint32_t phase = known->completed - (present ? 0 : 1);
  check_not_early(barrier, *known, phase, place);
  if (present) {
    fiber->waits_for = barrier;
    fiber->waits_parity = parity;
    wait_here("mbarrier wait", place);
    if (known->completed != phase + 1) {
      report("mbarrier phase missed", place, "shared+%u: it ended twice before the thread woke",
             smem_u32(barrier));
    }
  }
  join(fiber->stamp, known->released);
  if (kRace) {
    note_time(known->waited[phase & 1]);
    known->waited_at[phase & 1] = place;
    tick(fiber);
  }
}

// Own writes so far may be read by the asynchronous proxy: wgmma and bulk copies.
void fence_proxy_async() {
  if (!kRace) return;
  Fiber* fiber = self();
  fiber->fenced = fiber->stamp.memory[fiber->lin];
  tick(fiber);
}

// ---- bulk copies of tensors ----

cudaError_t make_tensor_map(TensorMap* map, const TensorMap& shape) {
  bool bad = shape.rank < 2 || shape.rank > 3 || reinterpret_cast<uintptr_t>(shape.base) % 16;
  for (int i = 0; i < shape.rank; ++i) {
    bad |= !shape.dims[i] || shape.dims[i] > 1ull << 32 || !shape.box[i] || shape.box[i] > 256;
    bad |= i && (shape.strides[i - 1] % 16 || shape.strides[i - 1] >= 1ull << 40);
  }
  const uint32_t row_bytes = shape.box[0] * shape.element_bytes;
  bad |= row_bytes % 16 || (shape.swizzle && row_bytes > static_cast<uint32_t>(shape.swizzle));
  if (bad) return cudaErrorInvalidValue;
  *map = shape;
  return cudaSuccess;
}

namespace {

// Sixteen bytes of a box: where they lie in shared memory, and which of them lie in the tensor.
struct Chunk {
  unsigned char* shared;
  char* global;  // of the first byte inside
  int begin, end;
};

int box_bytes(const TensorMap& map) {
  const int rows = map.box[1] * (map.rank > 2 ? map.box[2] : 1);
  return static_cast<int>(map.box[0]) * rows * map.element_bytes;
}

template <class Function>
void for_each_chunk(const Bulk& bulk, Function function) {
  const TensorMap& map = bulk.map;
  const int row_bytes = map.box[0] * map.element_bytes;
  const int depth = map.rank > 2 ? map.box[2] : 1;
  const int64_t inner = static_cast<int64_t>(map.dims[0]) * map.element_bytes;
  for (int row = 0; row < depth * static_cast<int>(map.box[1]); ++row) {
    const int64_t y = int64_t{bulk.corner[1]} + row % map.box[1];
    const int64_t z = int64_t{bulk.corner[2]} + row / map.box[1];
    const bool inside = y >= 0 && y < static_cast<int64_t>(map.dims[1]) &&
                        (map.rank < 3 || (z >= 0 && z < static_cast<int64_t>(map.dims[2])));
    for (int byte = 0; byte < row_bytes; byte += 16) {
      const int64_t x = int64_t{bulk.corner[0]} * map.element_bytes + byte;
      Chunk chunk{nullptr, nullptr, 0, 0};
      if (inside) {
        chunk.begin = static_cast<int>(std::clamp<int64_t>(-x, 0, 16));
        chunk.end = static_cast<int>(std::clamp<int64_t>(inner - x, chunk.begin, 16));
      }
      // The swizzle is a property of the address: bits 4 and up are XORed with bits 7 and up.
      size_t offset = bulk.shared - machine.arena + static_cast<size_t>(row) * row_bytes + byte;
      if (map.swizzle) offset ^= (offset >> 7 & (map.swizzle / 16 - 1)) << 4;
      chunk.shared = machine.arena + offset;
      if (chunk.end > chunk.begin) {
        const int64_t slice = map.rank > 2 ? z * static_cast<int64_t>(map.strides[1]) : 0;
        chunk.global = const_cast<char*>(static_cast<const char*>(map.base)) + slice +
                       y * static_cast<int64_t>(map.strides[0]) + x + chunk.begin;
      }
      function(chunk);
    }
  }
}

bool check_box(const Bulk& bulk, void* place) {
  if (bulk.map.rank < 2 || bulk.map.rank > 3) {
    report("tensor map never encoded", place, "rank %d", bulk.map.rank);
    return false;
  }
  if (!in_arena(bulk.shared) || !in_arena(bulk.shared + box_bytes(bulk.map) - 1)) {
    report("box outside dynamic shared memory", place, "%p", static_cast<void*>(bulk.shared));
    return false;
  }
  if (reinterpret_cast<uintptr_t>(bulk.shared) % 128) {
    report("misaligned box", place, "shared+%u", smem_u32(bulk.shared));
  }
  return true;
}

}  // namespace

void tma_load(void* to, const TensorMap* map, uint64_t* barrier, int c0, int c1, int c2,
              void* place) {
  Mbarrier* known = find_barrier(barrier, place);
  Bulk bulk{static_cast<unsigned char*>(to), *map, {c0, c1, c2}, barrier, 0, 0};
  if (!known || !check_box(bulk, place)) return;
  check_initialised(barrier, place);
  bulk.clock = ++known->loads;
  join(known->arrived, Stamp{{}, self()->stamp.execution});
  const Clock& memory = self()->stamp.memory;
  const int agent = mbarrier_agent(known->index);
  for_each_chunk(bulk, [&](const Chunk& chunk) {
    touch(chunk.shared, 16, kWrite, agent, bulk.clock, memory, false, place);
    if (chunk.global) {
      touch(chunk.global, chunk.end - chunk.begin, kRead, agent, bulk.clock, memory, false, place);
    }
    std::memset(chunk.shared, 0xFF, 16);
  });
  machine.block.loads.push_back(bulk);
}

// What lies outside the tensor is zero, but counts among the bytes that arrive.
void complete_load(size_t index) {
  Block& block = machine.block;
  const Bulk bulk = block.loads[index];
  block.loads.erase(block.loads.begin() + index);
  for_each_chunk(bulk, [](const Chunk& chunk) {
    std::memset(chunk.shared, 0, 16);
    if (chunk.global) {
      std::memcpy(chunk.shared + chunk.begin, chunk.global, chunk.end - chunk.begin);
    }
  });
  Mbarrier& known = block.mbarriers[bulk.barrier];
  if (kRace) {
    Clock& arrived = known.arrived.memory;
    arrived.resize(agent_count());
    uint32_t& loaded = arrived[mbarrier_agent(known.index)];
    loaded = std::max(loaded, bulk.clock);
  }
  word_of(bulk.barrier).bytes -= box_bytes(bulk.map);
  settle(bulk.barrier, known);
}

void tma_store(const TensorMap* map, const void* from, int c0, int c1, int c2, void* place) {
  Fiber* fiber = self();
  auto* shared = static_cast<unsigned char*>(const_cast<void*>(from));
  const Bulk bulk{shared, *map, {c0, c1, c2}, nullptr, 0, fiber->stores_committed};
  if (!check_box(bulk, place)) return;
  for_each_chunk(bulk, [&](const Chunk& chunk) {
    const uint32_t clock = fiber->stores_committed + 1;
    touch(chunk.shared, 16, kRead, store_agent(fiber), clock, fiber->stamp.memory, true, place);
    if (chunk.global) touch_as(fiber, chunk.global, chunk.end - chunk.begin, kWrite, place);
  });
  fiber->stores.push_back(bulk);
}

void bulk_commit() { ++self()->stores_committed; }

void bulk_wait(int pending) {
  Fiber* fiber = self();
  const int done = fiber->stores_committed - pending;
  while (!fiber->stores.empty() && fiber->stores.front().group < done) {
    for_each_chunk(fiber->stores.front(), [](const Chunk& chunk) {
      if (chunk.global) {
        std::memcpy(chunk.global, chunk.shared + chunk.begin, chunk.end - chunk.begin);
      }
    });
    fiber->stores.pop_front();
  }
  seen_up_to(fiber, store_agent(fiber), done);
}

void check_block_end() {
  const Block& block = machine.block;
  for (const auto& [barrier, known] : block.mbarriers) {
    const int bytes = word_of(barrier).bytes;
    if (bytes) {
      report("mbarrier bytes unbalanced", nullptr, "shared+%u: %d bytes at block end",
             smem_u32(barrier), bytes);
    }
  }
  if (!block.loads.empty()) {
    report("TMA load never waited for", nullptr, "%zu in flight at block end", block.loads.size());
  }
}

}  // namespace emu

// Fibers, the scheduler, and launches.
//
// Threads are fibers on one thread of the host: a switch costs tens of nanoseconds, and one seed
// gives one order. Blocks run one after another, so a kernel whose blocks wait for each other would
// hang here; design forbids them anyway.
#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <utility>

#include "machine.h"

// Saves what the System V ABI calls callee-saved, and the stack pointer; takes up the other's.
extern "C" void emu_switch(void** save, void* to);
asm(".text\n.hidden emu_switch\n.globl emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

namespace emu {

Thread* cur;
dim3 g_block, g_grid;
Options opt;
Device device;
Machine machine;

namespace {

constexpr size_t kStack = CUEMU_ASAN ? 256 << 10 : 128 << 10;
constexpr size_t kGuardPage = 4096;
constexpr int kMostThreads = 1024;

// AddressSanitizer must be told of every switch; a null fake stack says that a fiber ends for good.
void to_scheduler() {
  Fiber* fiber = self();
#if CUEMU_ASAN
  __sanitizer_start_switch_fiber(fiber->done ? nullptr : &fiber->fake_stack, machine.main_bottom,
                                 machine.main_size);
#endif
  emu_switch(&fiber->stack_pointer, machine.main_stack_pointer);
#if CUEMU_ASAN
  __sanitizer_finish_switch_fiber(fiber->fake_stack, &machine.main_bottom, &machine.main_size);
#endif
}

void to_fiber(Fiber* fiber) {
  cur = fiber;
#if CUEMU_ASAN
  __sanitizer_start_switch_fiber(&machine.main_fake_stack, fiber->stack, kStack);
#endif
  emu_switch(&machine.main_stack_pointer, fiber->stack_pointer);
#if CUEMU_ASAN
  __sanitizer_finish_switch_fiber(machine.main_fake_stack, nullptr, nullptr);
#endif
  cur = nullptr;
}

void fiber_main() {
#if CUEMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &machine.main_bottom, &machine.main_size);
#endif
  machine.body(machine.context);
  Fiber* fiber = self();
  if (!fiber->copies.empty()) {
    report("cp.async never waited for", nullptr, "thread ended with %zu copies in flight",
           fiber->copies.size());
  }
  if (!fiber->stores.empty()) {
    report("TMA store never waited for", nullptr, "thread ended with %zu stores in flight",
           fiber->stores.size());
  }
  fiber->done = true;
  --machine.block.live;
  thread_ended();
  to_scheduler();
  std::abort();
}

char* new_stack() {
  void* memory = mmap(nullptr, kGuardPage + kStack, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  mprotect(memory, kGuardPage, PROT_NONE);
  return static_cast<char*>(memory) + kGuardPage;
}

void start_fiber(Fiber& fiber, uint3 block_id) {
  fiber.block = &machine.block;
  fiber.bid = block_id;
  fiber.done = false;
  fiber.fake_stack = nullptr;
  fiber.waits_in = "start";
  fiber.waits_at = nullptr;
  fiber.waits_for = nullptr;
  fiber.copies.clear();
  fiber.stores.clear();
  fiber.copies_committed = fiber.stores_committed = 0;
  fiber.fenced = 0;
  fiber.stamp = Stamp();
  // emu_switch pops six registers and returns into fiber_main, on a stack aligned as at a call.
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, kStack);
  void** top = reinterpret_cast<void**>(fiber.stack + kStack - 16);
  *top = reinterpret_cast<void*>(fiber_main);
  std::memset(top - 6, 0, 6 * sizeof(void*));
  fiber.stack_pointer = top - 6;
  machine.ready.push_back(&fiber);
}

// Shared memory begins as NaN in every block. The device promises that its base is aligned to 16
// bytes and no more.
void start_arena() {
  if (!machine.arena) {
    void* memory =
        mmap(nullptr, kArena + 1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    machine.arena = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory) + 1023) &
                                                     ~uintptr_t{1023});
  }
  ASAN_UNPOISON_MEMORY_REGION(machine.arena, kArena);
  std::memset(machine.arena, 0xFF, kArena);
  ASAN_POISON_MEMORY_REGION(machine.arena, kArena);
  machine.shared_offset = opt.order == 2 ? 16 * (random_number() % 64) : 0;
  const unsigned char* base = machine.arena + machine.shared_offset;
  machine.block.plain_address[base] = machine.shared_offset;
}

void report_deadlock() {
  std::map<std::pair<void*, std::string>, std::vector<int>> waiting;
  for (const Fiber& fiber : machine.fibers) {
    if (!fiber.done) waiting[{fiber.waits_at, fiber.waits_in}].push_back(fiber.lin);
  }
  for (const auto& [where_and_why, threads] : waiting) {
    cur = &machine.fibers[threads[0]];
    report("deadlock", where_and_why.first,
           "%zu threads wait in %s (thread %d first); %d of %d threads live", threads.size(),
           where_and_why.second.c_str(), threads[0], machine.block.live, thread_count());
  }
  cur = nullptr;
}

Fiber* next_fiber() {
  std::vector<Fiber*>& ready = machine.ready;
  const size_t last = ready.size() - 1;
  const size_t index = opt.order == 0 ? 0 : opt.order == 1 ? last : random_number() % (last + 1);
  Fiber* fiber = ready[index];
  if (opt.order == 0) {
    ready.erase(ready.begin());
  } else {
    ready[index] = ready[last];
    ready.pop_back();
  }
  return fiber;
}

// False where the block hangs.
bool run_block(uint3 id) {
  Block& block = machine.block;
  block = Block();
  block.id = id;
  block.live = thread_count();
  block.meetings.resize((thread_count() + 31) / 32);
  block.groups.resize((thread_count() + 127) / 128);
  start_arena();
  machine.ready.clear();
  for (Fiber& fiber : machine.fibers) start_fiber(fiber, id);
  start_block();
  while (block.live) {
    // Loads complete at random moments, or when nobody else can go on.
    const bool eager = opt.order == 2 && random_number() % 8 == 0;
    if (!block.loads.empty() && (machine.ready.empty() || eager)) {
      complete_load(opt.order == 2 ? random_number() % block.loads.size() : 0);
    } else if (machine.ready.empty()) {
      report_deadlock();
      return false;
    } else {
      to_fiber(next_fiber());
    }
  }
  check_block_end();
  return true;
}

std::vector<uint3> block_order(dim3 grid) {
  std::vector<uint3> order;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) order.push_back(make_uint3(x, y, z));
    }
  }
  if (opt.order == 1) std::reverse(order.begin(), order.end());
  if (opt.order == 2) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  }
  return order;
}

void prepare_fibers(dim3 block) {
  static std::vector<char*> stacks;
  const size_t count = static_cast<size_t>(block.x) * block.y * block.z;
  while (stacks.size() < count) stacks.push_back(new_stack());
  machine.fibers.resize(count);
  for (size_t i = 0; i < count; ++i) {
    Fiber& fiber = machine.fibers[i];
    fiber.stack = stacks[i];
    fiber.lin = static_cast<int>(i);
    fiber.lane = fiber.lin % 32;
    fiber.warp = fiber.lin / 32;
    fiber.tid = make_uint3(i % block.x, i / block.x % block.y, i / block.x / block.y);
  }
}

cudaError_t check_launch(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64) return cudaErrorInvalidConfiguration;
  if (!grid.x || !grid.y || !grid.z || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (shared_bytes > static_cast<size_t>(device.shared_bytes)) return cudaErrorInvalidValue;
  return cudaSuccess;
}

cudaError_t run_grid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*),
                     void* context) {
  const cudaError_t refused = check_launch(grid, block, shared_bytes);
  if (refused != cudaSuccess) return refused;
  const int before = reports();
  g_grid = grid;
  g_block = block;
  machine.shared_bytes = shared_bytes;
  machine.body = body;
  machine.context = context;
  ++machine.launch;
  machine.random = opt.seed * 0x9E3779B97F4A7C15ull + 0x1234567;
  random_number();
  prepare_fibers(block);
  ++counted.launches;
  for (const uint3& id : block_order(grid)) {
    ++counted.blocks;
    if (!run_block(id)) break;
  }
  return reports() > before ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace

uint64_t random_number() {  // xorshift64*
  uint64_t& x = machine.random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x * 0x2545F4914F6CDD1Dull >> 11;
}

void wake(Fiber* fiber) { machine.ready.push_back(fiber); }

void wait_here(const char* why, void* place) {
  self()->waits_in = why;
  self()->waits_at = place;
  to_scheduler();
}

bool on_fiber(const void* frame) {
  const Fiber* fiber = self();  // read once: another thread of the host may be running a kernel
  return fiber && frame >= fiber->stack && frame < fiber->stack + kStack;
}

// Host threads take turns; a kernel cannot launch.
cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context) {
  if (on_fiber(__builtin_frame_address(0))) {
    report("launch from a kernel", CUEMU_PC, "not built");
    return cudaErrorNotSupported;
  }
  static std::mutex turn;
  const std::lock_guard<std::mutex> lock(turn);
  const cudaError_t error = run_grid(grid, block, shared_bytes, body, context);
  if (error != cudaSuccess) last_error = error;
  return error;
}

void* dyn_smem() { return machine.arena + machine.shared_offset; }

uint32_t smem_u32(const void* data) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(data) - machine.arena);
}

// Every thread of a block carves the same arrays: the first to come does the work.
void* carve(unsigned char** next, size_t bytes, size_t align) {
  Block& block = machine.block;
  unsigned char* from = *next;
  unsigned char* data = from + (align - reinterpret_cast<uintptr_t>(from) % align) % align;
  *next = data + bytes + kRedzone;
  const auto begins = block.plain_address.find(from);
  if (begins != block.plain_address.end()) {
    const size_t end = (begins->second + align - 1) / align * align + bytes;
    size_t& after = block.plain_address[*next];
    after = std::max(after, end);
    if (end - machine.shared_offset > machine.shared_bytes) {
      report("dynamic shared memory too small", CUEMU_PC,
             "kernel carved %zu bytes, launch gave %zu", end - machine.shared_offset,
             machine.shared_bytes);
    }
  }
  allow(data, bytes);
  return data;
}

void allow(const void* data, size_t bytes) {
  size_t& known = machine.block.carved[data];
  if (known >= bytes) return;
  known = bytes;
  const size_t offset = static_cast<const unsigned char*>(data) - machine.arena;
  if (offset + bytes > kArena) {
    report("dynamic shared memory too small", CUEMU_PC, "carved past the arena of %zu bytes",
           kArena);
    return;
  }
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  allow_shared(offset, bytes);
}

}  // namespace emu

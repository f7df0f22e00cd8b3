// What g++ -fsanitize=thread calls before loads and stores: kernels of the race build, and host
// code compiled with them. check_access knows which of them runs.
#include "machine.h"

#ifdef CUEMU_RACE
#pragma GCC visibility push(hidden)
#define CUEMU_ACCESS(bytes)                                                                        \
  void __tsan_read##bytes(void* p) { emu::check_access(p, bytes, emu::kRead, CUEMU_PC); }          \
  void __tsan_write##bytes(void* p) { emu::check_access(p, bytes, emu::kWrite, CUEMU_PC); }        \
  void __tsan_unaligned_read##bytes(void* p) {                                                     \
    emu::check_access(p, bytes, emu::kRead, CUEMU_PC);                                             \
  }                                                                                                \
  void __tsan_unaligned_write##bytes(void* p) {                                                    \
    emu::check_access(p, bytes, emu::kWrite, CUEMU_PC);                                            \
  }                                                                                                \
  void __tsan_volatile_read##bytes(void* p) { emu::check_access(p, bytes, emu::kRead, CUEMU_PC); } \
  void __tsan_volatile_write##bytes(void* p) { emu::check_access(p, bytes, emu::kWrite, CUEMU_PC); }
extern "C" {
CUEMU_ACCESS(1)
CUEMU_ACCESS(2)
CUEMU_ACCESS(4)
CUEMU_ACCESS(8)
CUEMU_ACCESS(16)
void __tsan_read_range(void* p, size_t n) { emu::check_access(p, n, emu::kRead, CUEMU_PC); }
void __tsan_write_range(void* p, size_t n) { emu::check_access(p, n, emu::kWrite, CUEMU_PC); }
void __tsan_init() {}
// The guard of a static variable of the host.
char __tsan_atomic8_load(const volatile char* p, int) { return *p; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
#pragma GCC visibility pop
#endif

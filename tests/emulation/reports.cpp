// Reports, counters, and the part of the CUDA runtime that launchers call.
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <unordered_map>
#include <utility>

#include "machine.h"

namespace emu {

Counters counted;
cudaError_t last_error = cudaSuccess;

namespace {

int problems, printed;
std::set<std::pair<const void*, const void*>> seen;

}  // namespace

int reports() { return problems; }
long conflicts() { return static_cast<long>(counted.conflicts); }
Counters counters() { return counted; }

void clear_reports() {
  problems = printed = 0;
  seen.clear();
  counted = Counters();
}

bool fresh(const void* place, const void* other) {
  ++problems;
  return seen.insert({place, other}).second && printed++ < opt.max_reports;
}

// File and line of an address; where code was inlined, of the outermost caller, then the innermost.
std::string where(void* place) {
  static std::unordered_map<void*, std::string> known;
  if (const auto it = known.find(place); it != known.end()) return it->second;
  Dl_info info{};
  if (!place || !dladdr(place, &info)) return "?";
  char command[512], line[512];
  const long offset = static_cast<char*>(place) - 1 - static_cast<char*>(info.dli_fbase);
  std::snprintf(command, sizeof command, "addr2line -i -e %s 0x%lx", info.dli_fname, offset);
  std::string inner, outer;
  if (FILE* pipe = popen(command, "r")) {
    while (std::fgets(line, sizeof line, pipe)) {
      outer = line;
      outer = outer.substr(0, outer.find_first_of(" \n"));
      outer = outer.substr(outer.rfind('/') + 1);
      if (inner.empty()) inner = outer;
    }
    pclose(pipe);
  }
  return known[place] = inner == outer ? inner : outer + " (" + inner + ")";
}

void report(const char* kind, void* place, const char* format, ...) {
  if (!fresh(place, kind)) return;
  char text[400];
  va_list values;
  va_start(values, format);
  std::vsnprintf(text, sizeof text, format, values);
  va_end(values);
  std::fprintf(stderr, "cuemu: %s at %s", kind, where(place).c_str());
  if (cur) std::fprintf(stderr, " [block %u,%u thread %d]", cur->bid.x, cur->bid.y, cur->lin);
  std::fprintf(stderr, ": %s\n", text);
}

namespace {

// A copy or fill of the runtime that reaches past a registered buffer.
cudaError_t check_span(const void* data, size_t bytes, const char* function) {
  const size_t there = global_bytes_from(data);
  if (bytes <= there) return cudaSuccess;
  report("out-of-bounds access of the runtime", nullptr, "%s of %zu bytes, %zu are left", function,
         bytes, there);
  return last_error = cudaErrorInvalidValue;
}

}  // namespace
}  // namespace emu

// Nothing is linked from CUDA. Hidden, so that a library with the emulation in it takes these even
// in a process that has loaded the true runtime.
#pragma GCC visibility push(hidden)
extern "C" {

cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) { return index == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emu::Device& device = emu::device;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.arch / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = device.arch % 10;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_bytes;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    default:
      return emu::last_error = cudaErrorInvalidValue;
  }
}

cudaError_t cudaGetLastError() { return std::exchange(emu::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return emu::last_error; }
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "an error of the emulated device";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

// A stream's work is done before the call returns.
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  const cudaError_t error = emu::check_span(data, bytes, "cudaMemsetAsync");
  if (error == cudaSuccess && bytes) std::memset(data, value, bytes);
  return error;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  cudaError_t error = emu::check_span(to, bytes, "cudaMemcpyAsync");
  if (error == cudaSuccess) error = emu::check_span(from, bytes, "cudaMemcpyAsync");
  if (error == cudaSuccess && bytes) std::memmove(to, from, bytes);
  return error;
}

}  // extern "C"
#pragma GCC visibility pop

// The smallest test harness that does the job: CHECK counts, failures print where and what, and
// finish() prints the totals and gives main its exit code.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace check {

inline long passed = 0;
inline long failed = 0;
inline constexpr long kPrinted = 20;  // further failures are only counted

__attribute__((format(printf, 5, 6))) inline bool that(bool holds, const char* file, int line,
                                                       const char* condition, const char* format,
                                                       ...) {
  if (holds) {
    ++passed;
    return true;
  }
  if (++failed > kPrinted) return false;
  std::fprintf(stderr, "%s:%d: failed: %s: ", file, line, condition);
  va_list values;
  va_start(values, format);
  std::vfprintf(stderr, format, values);
  va_end(values);
  std::fputc('\n', stderr);
  return false;
}

inline int finish() {
  std::printf("%ld passed, %ld failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace check

// CHECK(condition, "printf format", values...): true where the condition holds. Main thread only.
#define CHECK(condition, ...) check::that((condition), __FILE__, __LINE__, #condition, __VA_ARGS__)

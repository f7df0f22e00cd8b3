#include "workspace.h"

#include <algorithm>
#include <new>
#include <utility>

namespace schattor::cpu {

// The block at rest: a call inside another finds none, and allocates.
Workspace::Block& Workspace::kept() {
  thread_local Block block;
  return block;
}

Workspace::Workspace(int64_t bytes) {
  if (kept().bytes >= bytes) block_ = std::exchange(kept(), Block{});
  if (block_.memory != nullptr) return;
  constexpr int64_t kPage = 4096;
  block_.bytes = std::max<int64_t>(1, (bytes + kPage - 1) / kPage) * kPage;
  block_.memory.reset(static_cast<char*>(std::aligned_alloc(kPage, block_.bytes)));
  if (block_.memory == nullptr) throw std::bad_alloc();
}

Workspace::~Workspace() {
  if (block_.bytes <= kMostKept && block_.bytes > kept().bytes) std::swap(block_, kept());
}

}  // namespace schattor::cpu

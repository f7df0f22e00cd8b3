#include "workspace.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <utility>

namespace schattor::cpu {

// The block at rest: calls that run at the same time find none, and allocate.
struct Workspace::Kept {
  std::mutex mutex;
  Block block;
};

Workspace::Kept& Workspace::kept() {
  static Kept kept;
  return kept;
}

Workspace::Workspace(int64_t bytes) {
  {
    Kept& resting = kept();
    const std::lock_guard<std::mutex> lock(resting.mutex);
    if (resting.block.bytes >= bytes) block_ = std::exchange(resting.block, Block{});
  }
  if (block_.memory != nullptr) return;
  constexpr int64_t kPage = 4096;
  block_.bytes = std::max<int64_t>(1, (bytes + kPage - 1) / kPage) * kPage;
  block_.memory.reset(static_cast<char*>(std::aligned_alloc(kPage, block_.bytes)));
  if (block_.memory == nullptr) throw std::bad_alloc();
}

Workspace::~Workspace() {
  if (block_.bytes > kMostKept) return;
  Kept& resting = kept();
  const std::lock_guard<std::mutex> lock(resting.mutex);
  if (block_.bytes > resting.block.bytes) std::swap(block_, resting.block);
}

}  // namespace schattor::cpu

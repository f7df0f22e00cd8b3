// Memory that a call works in. Each thread keeps one block for its next call, for fresh pages cost
// a small matrix a sixth of its time.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace schattor::cpu {

class Workspace {
 public:
  // Throws std::bad_alloc. The memory holds anything, aligned to a page.
  explicit Workspace(int64_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  char* data() const { return block_.memory.get(); }

  // Larger blocks are not kept.
  static constexpr int64_t kMostKept = int64_t{128} << 20;

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  struct Block {
    std::unique_ptr<char, Free> memory;
    int64_t bytes = 0;
  };
  static Block& kept();

  Block block_;
};

}  // namespace schattor::cpu

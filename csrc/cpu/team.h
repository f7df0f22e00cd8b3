// How a batch is shared out: small matrices go one to a thread, each with its own memory; large
// ones, and the few left over, are worked on by all threads in step. Neither changes any bit.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "products.h"
#include "workspace.h"

namespace schattor::cpu {

// Who works on a matrix: one thread, or a whole pool.
class Team {
 public:
  Team() = default;
  explicit Team(const Parallel& pool) : pool_(&pool) {}

  int64_t workers() const { return pool_ == nullptr ? 1 : pool_->threads; }

  // Calls work(share) for every worker, and returns when all are done.
  template <typename Work>
  void run(const Work& work) const {
    if (pool_ == nullptr) {
      work(Share{0, 1});
      return;
    }
    const int64_t workers = pool_->threads;
    pool_->run(workers, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) work(Share{worker, workers});
    });
  }

 private:
  const Parallel* pool_ = nullptr;
};

// Hands out consecutive pieces of a block of memory; without a block it only measures.
class Arena {
 public:
  explicit Arena(char* block = nullptr) : block_(block) {}

  template <typename T>
  T* take(int64_t count) {
    const int64_t at = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return block_ == nullptr ? nullptr : reinterpret_cast<T*>(block_ + at);
  }

  int64_t used() const { return used_; }

  static constexpr int64_t kAlignment = 64;

 private:
  char* block_;
  int64_t used_ = 0;
};

// A Solver works through matrices of one shape, in memory from an Arena:
//   Solver(const Args&, Team, Arena&)   only takes memory, and does not touch it
//   void prepare()                      once, before the first matrix
//   void solve(int64_t index)           the matrix of that index in the batch
//   static bool divides(const Args&)    whether a team may work on one matrix
template <typename Solver, typename Args>
class Batch {
 public:
  Batch(const Args& args, const Parallel& parallel) : args_(args), parallel_(parallel) {
    const int64_t threads = parallel.threads;
    const bool divides = threads > 1 && Solver::divides(args);
    piece_ = measure(Team());
    alone_ = !divides ? args.batch : piece_ > kPieceLimit ? 0 : args.batch - args.batch % threads;
    pieces_ = std::min(alone_, threads);
    if (alone_ < args.batch) shared_ = measure(Team(parallel));
  }

  int64_t bytes() const { return std::max(pieces_ * piece_, shared_); }

  void solve() {
    const Workspace workspace(bytes());
    if (pieces_ > 0) {
      parallel_.run(pieces_, [&](int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; ++piece) {
          const Share share{piece, pieces_};
          run(Team(), workspace.data() + piece * piece_, share.begin(alone_), share.end(alone_));
        }
      });
    }
    run(Team(parallel_), workspace.data(), alone_, args_.batch);
  }

 private:
  // Above this, threads do not get memory of their own.
  static constexpr int64_t kPieceLimit = int64_t{64} << 20;

  int64_t measure(Team team) const {
    Arena arena;
    const Solver measured(args_, team, arena);
    return (arena.used() + kPage - 1) / kPage * kPage;
  }

  void run(Team team, char* memory, int64_t begin, int64_t end) const {
    if (begin == end) return;
    Arena arena(memory);
    Solver solver(args_, team, arena);
    solver.prepare();
    for (int64_t index = begin; index < end; ++index) solver.solve(index);
  }

  static constexpr int64_t kPage = 4096;
  const Args& args_;
  const Parallel& parallel_;
  int64_t piece_ = 0, pieces_ = 0, shared_ = 0, alone_ = 0;
};

// Products of three such sizes are worth dividing among threads.
inline bool worth_dividing(int64_t rows, int64_t cols) {
  constexpr int64_t kLeast = 192 * 192 * 192;
  return rows * rows * cols >= kLeast;
}

}  // namespace schattor::cpu

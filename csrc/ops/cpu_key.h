// The processor's key: the kernels of csrc/cpu on torch's own thread pool. Each file has its own,
// for torch's stable Tensor is hidden, and so must be all that holds one.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <limits>

#include "../cpu/kernels.h"
#include "checks.h"

namespace schattor::ops {
namespace {

cpu::Parallel torch_threads() {
  cpu::Parallel parallel;
  parallel.threads = static_cast<int>(torch::stable::get_num_threads());
  parallel.run = [](int64_t count, const std::function<void(int64_t, int64_t)>& body) {
    torch::stable::parallel_for(0, count, 1, body);
  };
  return parallel;
}

struct Cpu {
  using Dtype = cpu::Dtype;
  using View = cpu::View;
  using Direction = cpu::Direction;
  using SecondMoments = cpu::SecondMoments;
  using GatherArgs = cpu::GatherArgs;
  using ScatterArgs = cpu::ScatterArgs;
  using WeighArgs = cpu::WeighArgs;
  using AverageGramsArgs = cpu::AverageGramsArgs;
  using InnerArgs = cpu::InnerArgs;
  using ChainArgs = cpu::ChainArgs;
  using SquaringsArgs = cpu::SquaringsArgs;
  using PartialSvdArgs = cpu::PartialSvdArgs;
  static constexpr int64_t kMostSteps = std::numeric_limits<int64_t>::max();

  static double number(const Tensor& t) { return *static_cast<const double*>(t.data_ptr()); }

  static void run(const GatherArgs& args, const Tensor&) {
    cpu::gather_momentum(args, torch_threads());
  }
  static void run(const ScatterArgs& args, const Tensor&) {
    cpu::scatter_update(args, torch_threads());
  }
  static void run(const WeighArgs& args, const Tensor&) { cpu::weigh(args, torch_threads()); }
  static void run(const AverageGramsArgs& args, const Tensor&) {
    cpu::average_grams(args, torch_threads());
  }
  static void run(const InnerArgs& args, const Tensor&) {
    cpu::inner_products(args, torch_threads());
  }
  static void run(const ChainArgs& args, const Tensor&) {
    cpu::chain_direction(args, torch_threads());
  }
  static void run(const SquaringsArgs& args, const Tensor&) {
    cpu::squarings_direction(args, torch_threads());
  }
  static void run(const PartialSvdArgs& args, const Tensor&) {
    cpu::partial_svd(args, torch_threads());
  }
};

}  // namespace
}  // namespace schattor::ops

// chain_direction: where a chain runs.
#include "chain.h"
#include "chain_small.h"
#include "chain_thin.h"

namespace schattor::cuda {
namespace {

// From here on a matrix is long: its small side is a small part of the work.
constexpr int64_t kLongAspect = 8;

bool is_long(const ChainArgs& args) { return args.cols >= kLongAspect * args.rows; }

}  // namespace

bool chain_kernel_serves(ChainKernel kernel, const ChainArgs& args, const DeviceFacts& facts) {
  if (is_empty(args)) return true;
  switch (kernel) {
    case ChainKernel::kSmall:
      return small::serves(args, facts);
    case ChainKernel::kThin:
      return thin::serves(args, facts);
    case ChainKernel::kTiles:
      return true;
    case ChainKernel::kHopper:
      return facts.arch == 90 && is_half(args.dtype) && products_serve(kernel, args);
  }
  return false;
}

// Nothing of this was measured on a GPU yet: hopper, the only other choice for the shapes of tiles,
// is taken where it is asked for.
ChainKernel chain_kernel(const ChainArgs& args, const DeviceFacts& facts) {
  if (is_empty(args)) return ChainKernel::kTiles;
  if (is_long(args) && thin::serves(args, facts)) return ChainKernel::kThin;
  return small::serves(args, facts) ? ChainKernel::kSmall : ChainKernel::kTiles;
}

size_t chain_workspace(ChainKernel kernel, const ChainArgs& args, const DeviceFacts& facts) {
  if (is_empty(args)) return 0;
  switch (kernel) {
    case ChainKernel::kSmall:
      return small::workspace(args, facts);
    case ChainKernel::kThin:
      return thin::workspace(args, facts);
    default:
      return products_workspace(kernel, args);
  }
}

cudaError_t chain_direction(ChainKernel kernel, const ChainArgs& args, void* workspace,
                            cudaStream_t stream) {
  if (is_empty(args)) return finish_empty(args.direction, args.batch, stream);
  switch (kernel) {
    case ChainKernel::kSmall:
      return small::run(args, workspace, stream);
    case ChainKernel::kThin:
      return thin::run(args, workspace, stream);
    default:
      return products_direction(kernel, args, workspace, stream);
  }
}

}  // namespace schattor::cuda

// Running averages of Gram matrices: one symmetric product of the engine `tiles` (FMA), of which
// one triangle is computed and mirrored, with the average in its epilogue.
//
// The floor is d (d + 1) inner FLOPs a matrix, the wide batch read once, factors read and written
// once. A product's tiles run along rows, 16 bytes at a time by cp.async, so X' X takes X
// transposed: a copy, in the workspace, that costs 2 rows cols entries of traffic beside the
// 2 cols^2 of the factors, and so at most doubles a traffic that products of this size do not wait
// for.
#include "chain.h"
#include "transpose.h"

namespace schattor::cuda {
namespace {

// The matrices whose rows are multiplied with each other.
Operand rows_of(const AverageGramsArgs& args, Arena& arena) {
  if (args.right) return arena.take_matrices(args.dtype, args.batch, args.cols, args.rows);
  return {const_cast<void*>(args.wide), args.cols, args.rows * args.cols};
}

Product product(const AverageGramsArgs& args, const Operand& rows) {
  const int64_t side = args.right ? args.cols : args.rows;
  const int64_t inner = args.right ? args.rows : args.cols;
  const Operand factors = {args.factors, side, side * side};
  Product product = product_of(args.dtype, args.batch, side, inner, side, rows, rows, factors);
  product.transposed_b = product.symmetric = true;
  product.alpha = {args.share, 1, 0};
  product.d = factors;
  product.beta = {args.decay, 1, 0};
  return product;
}

}  // namespace

size_t average_grams_workspace(const AverageGramsArgs& given) {
  AverageGramsArgs args = given;
  if (args.factors == nullptr) args.factors = nowhere();
  Arena arena(nowhere());
  const Product gram = product(args, rows_of(args, arena));
  return arena.bytes() + tiles::workspace(&gram, 1);
}

cudaError_t average_grams(const AverageGramsArgs& args, void* workspace, cudaStream_t stream) {
  if (args.batch == 0) return cudaSuccess;
  Arena arena(workspace);
  const Operand rows = rows_of(args, arena);
  if (args.right && args.rows * args.cols > 0) {
    const cudaError_t error =
        copy_transposed({args.dtype, args.batch, args.rows, args.cols, args.wide, rows}, stream);
    if (error != cudaSuccess) return error;
  }
  const Product gram = product(args, rows);
  return tiles::multiply(&gram, 1, arena.end(), stream);
}

}  // namespace schattor::cuda

// Every operator's schema, on one page. Keys are filled by cpu.cpp, by cuda.cpp where it is built,
// and by schattor/portable.py for devices that neither serves.
//
// Lists hold 2-D views of one shape (rows, cols) and any strides. A wide batch is contiguous
// (batch, rows, cols), rows <= cols; weights are of its shape, in the compute type: float64 where
// anything that they are computed from is, else float32. Numbers that differ by matrix, or that a
// captured graph must follow, are float64 tensors on the device of the batch.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(schattor, library) {
  library.def(
      "gather_momentum(Tensor[] grads, Tensor[] momenta, Tensor momentum, bool ema, bool nesterov,"
      " float size, Tensor(a!) wide, Tensor(b!) norms, Tensor(c!) finite) -> ()");
  library.def(
      "chain_direction(Tensor wide, float[] steps, Tensor weights, Tensor powers, bool gram,"
      " int[] restarts) -> (Tensor direction, Tensor inner, Tensor square)");
  library.def(
      "squarings_direction(Tensor wide, float[] coefficients, Tensor powers)"
      " -> (Tensor direction, Tensor inner, Tensor square)");
  library.def(
      "partial_svd(Tensor wide, int rank, int iterations, Tensor start)"
      " -> (Tensor u, Tensor s, Tensor v)");
  library.def("inner_products(Tensor x, Tensor y) -> Tensor");
  library.def(
      "scatter_update(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, Tensor direction,"
      " Tensor scale, Tensor decay, Tensor momentum, bool ema, Tensor finite) -> ()");
  library.def(
      "gather_weighted(Tensor[] grads, Tensor[] momenta, Tensor[] squares, Tensor momentum,"
      " bool ema, bool nesterov, Tensor beta, Tensor corrections, Tensor eps, float root,"
      " Tensor exponent, float size, Tensor(a!) weights, Tensor(b!) wide, Tensor(c!) norms,"
      " Tensor(d!) finite) -> ()");
  library.def("weigh(Tensor(a!) weights, Tensor direction) -> Tensor");
  library.def(
      "scatter_moments(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta,"
      " Tensor(c!)[] squares, Tensor direction, Tensor scale, Tensor decay, Tensor momentum,"
      " Tensor beta, bool ema, Tensor finite) -> ()");
  library.def(
      "average_grams(Tensor(a!) factors, Tensor wide, bool right, Tensor decay, Tensor share)"
      " -> ()");
  library.def(
      "chain_update(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta, Tensor momentum,"
      " bool ema, bool nesterov, float size, Tensor(c!) scratch, float[] steps, Tensor weights,"
      " Tensor powers, bool gram, int[] restarts, Tensor lr, Tensor factors, Tensor lengths,"
      " Tensor corrections, bool frobenius, bool regularized, Tensor decay)"
      " -> (Tensor finite, Tensor dual, Tensor square, Tensor scale)");
  library.def(
      "rotate(Tensor x, Tensor? left, Tensor? right, bool back, Tensor? least, Tensor? scale)"
      " -> Tensor");
  library.def("eigenpairs(Tensor factors) -> (Tensor values, Tensor vectors, Tensor sound)");
  library.def(
      "power_step(Tensor factors, Tensor bases, bool sort) -> (Tensor bases, Tensor orders)");
}

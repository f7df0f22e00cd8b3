// CPU key of rotate, for matrices of any two sides.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "arguments.h"
#include "cpu_key.h"

namespace schattor::ops {
namespace {

using Arguments = ops::Arguments<Cpu>;
using Optional = std::optional<Tensor>;

void check_side(const Checks& check, const char* name, const Optional& side, const Tensor& x,
                int64_t size) {
  if (!side) return;
  check.shape(name, *side, {x.size(0), size, size});
  check.same_dtype(name, *side, "x", x);
  check.contiguous(name, *side);
  check.device(name, *side, "x", x);
}

void check_numbers(const Checks& check, const char* name, const Optional& numbers,
                   const Tensor& x) {
  if (!numbers) return;
  check.numbers(name, *numbers, {x.size(0)});
  check.device(name, *numbers, "x", x);
}

Tensor rotate(Tensor x, Optional left, Optional right, bool back, Optional least, Optional scale) {
  const Checks check("rotate");
  check.wide_batch("x", x);
  check.precise("x", x);
  check_side(check, "left", left, x, x.size(1));
  check_side(check, "right", right, x, x.size(2));
  check_numbers(check, "least", least, x);
  check_numbers(check, "scale", scale, x);

  Tensor rotated = torch::stable::empty_like(x);
  if (x.size(0) == 0) return rotated;
  cpu::RotateArgs args{};
  args.batch = x.size(0), args.rows = x.size(1), args.cols = x.size(2);
  args.dtype = Arguments::dtype_of(x);
  args.x = x.data_ptr();
  args.left = left ? left->data_ptr() : nullptr;
  args.right = right ? right->data_ptr() : nullptr;
  args.back = back;
  args.least = least ? Arguments::numbers_of(*least) : nullptr;
  args.scale = scale ? Arguments::numbers_of(*scale) : nullptr;
  args.rotated = rotated.data_ptr();
  cpu::rotate(args, torch_threads());
  return rotated;
}

}  // namespace
}  // namespace schattor::ops

STABLE_TORCH_LIBRARY_IMPL(schattor, CPU, library) {
  library.impl("rotate", TORCH_BOX(&schattor::ops::rotate));
}

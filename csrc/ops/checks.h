// Checks of an operator's arguments: the only place where their wording lives.
// A message says who, which argument, what is required, what came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace schattor::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// One operator's checks. Throws std::runtime_error, which reaches Python as a RuntimeError.
class Checks {
 public:
  explicit Checks(const char* op) : op_(op) {}

  template <typename... Parts>
  void require(bool holds, const Parts&... parts) const {
    if (holds) return;
    std::ostringstream message;
    message << op_ << ": ";
    (message << ... << parts);
    throw std::runtime_error(message.str());
  }

  void floating(const char* name, const Tensor& t) const {
    const ScalarType type = t.scalar_type();
    require(type == ScalarType::Double || type == ScalarType::Float ||
                type == ScalarType::BFloat16 || type == ScalarType::Half,
            name, " must be float64, float32, bfloat16 or float16, got ",
            torch::headeronly::toString(type));
  }

  // A dtype that is computed in.
  void precise(const char* name, const Tensor& t) const {
    const ScalarType type = t.scalar_type();
    require(type == ScalarType::Double || type == ScalarType::Float, name,
            " must be float64 or float32, got ", torch::headeronly::toString(type));
  }

  void same_dtype(const char* name, const Tensor& t, const char* like_name,
                  const Tensor& like) const {
    require(t.scalar_type() == like.scalar_type(), name, " must have the dtype of ", like_name,
            ", ", torch::headeronly::toString(like.scalar_type()), ", got ",
            torch::headeronly::toString(t.scalar_type()));
  }

  // One device for all tensors of a call: that of `like`.
  void device(const char* name, const Tensor& t, const char* like_name, const Tensor& like) const {
    const torch::stable::Device got = t.device(), wanted = like.device();
    if (!(got == wanted)) {
      require(false, name, " must be on ", text(wanted), " like ", like_name, ", got ", text(got));
    }
  }
  void devices(const char* name, const std::vector<Tensor>& list, const char* like_name,
               const Tensor& like) const {
    for (size_t i = 0; i < list.size(); ++i) {
      if (list[i].device() == like.device()) continue;
      device((std::string(name) + '[' + std::to_string(i) + ']').c_str(), list[i], like_name, like);
    }
  }

  void shape(const char* name, const Tensor& t, const std::vector<int64_t>& sizes) const {
    bool same = t.dim() == static_cast<int64_t>(sizes.size());
    for (size_t i = 0; same && i < sizes.size(); ++i) same = t.size(i) == sizes[i];
    require(same, name, " must have shape ", text(sizes), ", got ", text(sizes_of(t)));
  }

  void contiguous(const char* name, const Tensor& t) const {
    require(t.is_contiguous(), name, " must be contiguous, got strides ", text(strides_of(t)));
  }

  // A vector of numbers that differ by matrix, or a single number (sizes = {}).
  void numbers(const char* name, const Tensor& t, const std::vector<int64_t>& sizes) const {
    require(t.scalar_type() == ScalarType::Double, name, " must be float64, got ",
            torch::headeronly::toString(t.scalar_type()));
    shape(name, t, sizes);
    contiguous(name, t);
  }

  // One flag a matrix.
  void flags(const char* name, const Tensor& t, int64_t batch) const {
    shape(name, t, {batch});
    require(t.scalar_type() == ScalarType::Bool, name, " must be bool, got ",
            torch::headeronly::toString(t.scalar_type()));
    contiguous(name, t);
  }

  void power_of_two(const char* name, double value) const {
    int exponent;
    require(std::isfinite(value) && value > 0 && std::frexp(value, &exponent) == 0.5, name,
            " must be a power of two, got ", value);
  }

  // A chain's coefficients, three a step, and the steps after which its Gram side begins anew.
  // Returns how many steps there are.
  int64_t chain(const std::vector<double>& steps, const std::vector<int64_t>& restarts,
                int64_t most) const {
    require(!steps.empty() && steps.size() % 3 == 0, "steps must hold three numbers a step, got ",
            steps.size());
    const int64_t depth = static_cast<int64_t>(steps.size()) / 3;
    require(depth <= most, "steps must be at most ", most, " steps here, got ", depth);
    for (size_t i = 0; i < restarts.size(); ++i) {
      const int64_t previous = i == 0 ? 0 : restarts[i - 1];
      require(restarts[i] > previous && restarts[i] < depth, "restarts must rise within 1 .. ",
              depth - 1, ", got ", restarts[i], " at ", i);
    }
    return depth;
  }

  // (batch, rows, cols), rows <= cols, contiguous, of a floating dtype.
  void wide_batch(const char* name, const Tensor& t) const {
    floating(name, t);
    require(t.dim() == 3, name, " must have shape (batch, rows, cols), got ", text(sizes_of(t)));
    require(t.size(1) <= t.size(2), name, " must have rows <= cols, got ", text(sizes_of(t)));
    contiguous(name, t);
  }

  // (batch, n, n), contiguous, of a dtype that is computed in.
  void square_batch(const char* name, const Tensor& t) const {
    precise(name, t);
    require(t.dim() == 3 && t.size(1) == t.size(2), name, " must have shape (batch, n, n), got ",
            text(sizes_of(t)));
    contiguous(name, t);
  }

  // A list of as many 2-D views as the batch has matrices, all of one dtype.
  void views(const char* name, const std::vector<Tensor>& list, int64_t batch, int64_t rows,
             int64_t cols) const {
    require(static_cast<int64_t>(list.size()) == batch, name, " must hold ", batch,
            " tensors like the wide batch, got ", list.size());
    for (size_t i = 0; i < list.size(); ++i) {
      const Tensor& t = list[i];
      require(t.dim() == 2 && t.size(0) == rows && t.size(1) == cols, name, "[", i,
              "] must have shape (", rows, ", ", cols, "), got ", text(sizes_of(t)));
      require(t.scalar_type() == list[0].scalar_type(), name, "[", i, "] must be ",
              torch::headeronly::toString(list[0].scalar_type()), " like ", name, "[0], got ",
              torch::headeronly::toString(t.scalar_type()));
    }
    if (!list.empty()) floating(name, list[0]);
  }

 private:
  static std::vector<int64_t> sizes_of(const Tensor& t) {
    return {t.sizes().begin(), t.sizes().end()};
  }
  static std::vector<int64_t> strides_of(const Tensor& t) {
    return {t.strides().begin(), t.strides().end()};
  }
  static std::string text(const torch::stable::Device& device) {
    if (device.is_cpu()) return "cpu";
    const std::string type = device.is_cuda() ? "cuda" : "another kind of device";
    return type + ':' + std::to_string(device.index());
  }
  static std::string text(const std::vector<int64_t>& values) {
    std::ostringstream out;
    out << '(';
    for (size_t i = 0; i < values.size(); ++i) out << (i ? ", " : "") << values[i];
    out << (values.size() == 1 ? ",)" : ")");
    return out.str();
  }

  const char* op_;
};

}  // namespace schattor::ops

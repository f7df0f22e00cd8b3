// What the solvers of solvers.cu are given, how their results are judged, and how they are timed.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

namespace solvers {

inline void require(bool holds, const char* what, int code) {
  if (holds) return;
  std::fprintf(stderr, "solvers: %s gave %d\n", what, code);
  std::exit(1);
}
inline void require(cudaError_t error, const char* what) {
  require(error == cudaSuccess, what, error);
}

template <class T>
class Device {
 public:
  explicit Device(size_t size) : size_(size) {
    require(cudaMalloc(&data_, std::max<size_t>(size, 1) * sizeof(T)), "cudaMalloc");
  }
  explicit Device(const std::vector<T>& values) : Device(values.size()) {
    require(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice), "upload");
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  T* data() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> values(size_);
    require(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
            "download");
    return values;
  }
  void copy_from(const Device& other) {
    require(cudaMemcpyAsync(data_, other.data_, size_ * sizeof(T), cudaMemcpyDeviceToDevice),
            "copy");
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

// rows <= cols; in column order, as cuSOLVER reads memory, the same bytes are (cols, rows).
struct Shape {
  int batch, rows, cols, rank;
};
constexpr Shape kShapes[] = {{256, 32, 32, 16},   {256, 64, 64, 16},   {64, 128, 128, 16},
                             {48, 768, 768, 47},  {24, 768, 3072, 85}, {8, 1024, 4096, 16},
                             {4, 4096, 4096, 16}, {1, 4096, 4096, 64}};
constexpr int kIterations = 24;
constexpr double kRatio = 0.8;  // of each singular value to the one before

// X = U diag(s) V' with s_k = kRatio^k: U and V products of two reflections, which costs one pass.
struct Problem {
  Shape shape;
  std::vector<double> s;
  std::vector<float> x, start;
};

// Rows of x <- (I - 2 w w') x, or columns if across, w a unit vector.
inline void reflect(std::vector<double>& x, int rows, int cols, bool across,
                    std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::vector<double> w(across ? cols : rows);
  double square = 0;
  for (double& entry : w) entry = normal(random), square += entry * entry;
  for (double& entry : w) entry /= std::sqrt(square);
  std::vector<double> inner(across ? rows : cols, 0.0);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < cols; ++j) {
      inner[across ? i : j] += x[size_t(i) * cols + j] * w[across ? j : i];
    }
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < cols; ++j) {
      x[size_t(i) * cols + j] -= 2 * inner[across ? i : j] * w[across ? j : i];
    }
  }
}

// Two different matrices in turn: making hundreds would take longer than all that is measured.
inline Problem make(const Shape& shape) {
  std::mt19937_64 random(11);
  std::normal_distribution<double> normal;
  const size_t size = size_t(shape.rows) * shape.cols;
  Problem problem{shape, std::vector<double>(shape.rows), {}, {}};
  for (int k = 0; k < shape.rows; ++k) problem.s[k] = std::pow(kRatio, k);
  problem.x.resize(shape.batch * size);
  for (int matrix = 0; matrix < std::min(2, shape.batch); ++matrix) {
    std::vector<double> x(size, 0.0);
    for (int k = 0; k < shape.rows; ++k) x[size_t(k) * shape.cols + k] = problem.s[k];
    for (const bool across : {false, true, false, true}) {
      reflect(x, shape.rows, shape.cols, across, random);
    }
    for (int copy = matrix; copy < shape.batch; copy += 2) {
      std::copy(x.begin(), x.end(), problem.x.begin() + copy * size);
    }
  }
  problem.start.resize(size_t(shape.batch) * shape.cols * shape.rank);
  for (float& entry : problem.start) entry = float(normal(random));
  return problem;
}

// Triples of one matrix on the host: vector k begins at k * step_u of u, its entries each_u apart.
struct Triples {
  const float *u, *s, *v;
  size_t step_u, each_u, step_v, each_v;
};

struct Worth {
  double right = 0, left = 0, values = 0;  // |X v - s u|, |X'u - s v|, |s - truth|
};

inline Worth worth_of(const Problem& problem, int matrix, const Triples& t) {
  const int rows = problem.shape.rows, cols = problem.shape.cols;
  const float* x = problem.x.data() + size_t(matrix) * rows * cols;
  Worth worth;
  for (int k = 0; k < problem.shape.rank; ++k) {
    std::vector<double> across(cols, 0.0);
    double right = 0, left = 0;
    for (int i = 0; i < rows; ++i) {
      const double ui = t.u[k * t.step_u + i * t.each_u];
      double sum = -double(t.s[k]) * ui;
      for (int j = 0; j < cols; ++j) {
        sum += double(x[size_t(i) * cols + j]) * t.v[k * t.step_v + j * t.each_v];
        across[j] += x[size_t(i) * cols + j] * ui;
      }
      right += sum * sum;
    }
    for (int j = 0; j < cols; ++j) {
      const double sum = across[j] - double(t.s[k]) * t.v[k * t.step_v + j * t.each_v];
      left += sum * sum;
    }
    // Not std::max, which would let NaN pass.
    const double error = std::abs(t.s[k] - problem.s[k]);
    if (!(std::sqrt(right) <= worth.right)) worth.right = std::sqrt(right);
    if (!(std::sqrt(left) <= worth.left)) worth.left = std::sqrt(left);
    if (!(error <= worth.values)) worth.values = error;
  }
  return worth;
}

inline double median_milliseconds(int repeats, const std::function<void()>& body) {
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "cudaEventCreate");
  require(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times(repeats);
  for (float& time : times) {
    require(cudaEventRecord(begin), "cudaEventRecord");
    body();
    require(cudaEventRecord(end), "cudaEventRecord");
    require(cudaEventSynchronize(end), "cudaEventSynchronize");
    require(cudaEventElapsedTime(&time, begin, end), "cudaEventElapsedTime");
  }
  cudaEventDestroy(begin), cudaEventDestroy(end);
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[repeats / 2];
}

}  // namespace solvers

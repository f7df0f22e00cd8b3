// Our partial SVD beside cuSOLVER: leading singular triples of batches of float32 matrices.
//
//   nvcc -std=c++17 --expt-relaxed-constexpr -O3 -arch=sm_90a -Icsrc/kernels
//       benchmarks/cuda/solvers.cu csrc/kernels/partial_svd*.cu -lcusolver -lcublas -o solvers
//   ./solvers [repeats]
//
// One JSON line a solver and shape: milliseconds of the whole batch (median over the repeats, by
// events; fewer of them for what takes long), and what the result is worth, read before anything is
// timed: over the leading triples of the first and the last matrix the largest |X v - s u| / s_1,
// |X'u - s v| / s_1 and the error of s against the known values. gesvdj and gesvdr overwrite their
// input: each run of them begins with a copy of it, which is timed too (copy_ms says what it
// costs). gesvdj and syev find all triples, the others the rank asked for. Of syev the product that
// forms the Gram matrix is timed too; the other vectors are found by the checks alone.
#include <cublas_v2.h>
#include <cusolverDn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "launch.h"
#include "solvers_problem.h"

namespace {

using namespace solvers;

// One solver at work on one problem: `run` enqueues, `worth` reads what it left.
struct Solver {
  const char* name;
  double copy_milliseconds;
  std::function<void()> run;
  std::function<Worth(int matrix)> worth;
};

constexpr double kMostMilliseconds = 4000;  // of all repeats of one solver on one shape

void report(const Problem& problem, const Solver& solver, int repeats) {
  solver.run();
  require(cudaDeviceSynchronize(), solver.name);
  Worth worth = solver.worth(0);
  const Worth last = solver.worth(problem.shape.batch - 1);
  for (auto each : {&Worth::right, &Worth::left, &Worth::values}) {
    if (!(last.*each <= worth.*each)) worth.*each = last.*each;
  }
  const double once = median_milliseconds(1, solver.run);
  const int worthwhile = std::max(3, int(std::min(kMostMilliseconds / once, 1e6)));
  const double milliseconds = median_milliseconds(std::min(repeats, worthwhile), solver.run);
  const Shape& shape = problem.shape;
  // JSON has no NaN: what is not a number is worth nothing.
  const auto number = [](double value) { return std::isfinite(value) ? value : 1e300; };
  std::printf(
      "{\"solver\": \"%s\", \"batch\": %d, \"rows\": %d, \"cols\": %d, \"rank\": %d, \"ms\": %.4f, "
      "\"copy_ms\": %.4f, \"right_residual\": %.3g, \"left_residual\": %.3g, \"values\": %.3g}\n",
      solver.name, shape.batch, shape.rows, shape.cols, shape.rank, milliseconds,
      solver.copy_milliseconds, number(worth.right), number(worth.left), number(worth.values));
  std::fflush(stdout);
}

void refuse(const Problem& problem, const char* solver, int status) {
  const Shape& shape = problem.shape;
  std::printf(
      "{\"solver\": \"%s\", \"batch\": %d, \"rows\": %d, \"cols\": %d, \"rank\": %d, "
      "\"refused\": %d}\n",
      solver, shape.batch, shape.rows, shape.cols, shape.rank, status);
  std::fflush(stdout);
}

// What all solvers share: the problem on the device, and the libraries' handles.
struct Bench {
  const Problem& problem;
  int repeats;
  cusolverDnHandle_t solver;
  cublasHandle_t blas;
  cusolverDnParams_t params;
  Device<float> x{problem.x};

  double copy_milliseconds(Device<float>& to) {
    to.copy_from(x);
    return median_milliseconds(repeats, [&] { to.copy_from(x); });
  }
};

void time_ours(Bench& bench) {
  const int batch = bench.problem.shape.batch, rows = bench.problem.shape.rows;
  const int cols = bench.problem.shape.cols, rank = bench.problem.shape.rank;
  Device<float> start(bench.problem.start);
  Device<float> u(size_t(batch) * rows * rank), s(size_t(batch) * rank);
  Device<float> v(size_t(batch) * cols * rank);
  using namespace schattor::cuda;
  const PartialSvdArgs args{batch,           rows,           cols,         rank,     kIterations,
                            Dtype::kFloat32, bench.x.data(), start.data(), u.data(), s.data(),
                            v.data()};
  Device<unsigned char> workspace(partial_svd_workspace(args));
  const size_t r = rank, left = r * rows, right = r * cols;
  report(
      bench.problem,
      {"schattor", 0, [&] { require(partial_svd(args, workspace.data(), nullptr), "partial_svd"); },
       [&](int i) {
         const std::vector<float> hu = u.read(), hs = s.read(), hv = v.read();
         return worth_of(
             bench.problem, i,
             {hu.data() + i * left, hs.data() + i * r, hv.data() + i * right, 1, r, 1, r});
       }},
      bench.repeats);
}

// In column order the input is X' (cols, rows): cuSOLVER's U are our v and its V our u.

void time_gesvdj(Bench& bench) {
  const int batch = bench.problem.shape.batch, rows = bench.problem.shape.rows;
  const int cols = bench.problem.shape.cols;
  if (cols > 32) return;  // the batched Jacobi takes sides up to 32
  const size_t m = cols, n = rows;
  Device<float> a(batch * m * n), s(batch * n), u(batch * m * m), v(batch * n * n);
  Device<int> info(batch);
  gesvdjInfo_t settings;
  cusolverDnCreateGesvdjInfo(&settings);
  int size = 0;
  cusolverStatus_t status = cusolverDnSgesvdjBatched_bufferSize(
      bench.solver, CUSOLVER_EIG_MODE_VECTOR, m, n, a.data(), m, s.data(), u.data(), m, v.data(), n,
      &size, settings, batch);
  Device<float> work(size);
  const auto run = [&] {
    a.copy_from(bench.x);
    status = cusolverDnSgesvdjBatched(bench.solver, CUSOLVER_EIG_MODE_VECTOR, m, n, a.data(), m,
                                      s.data(), u.data(), m, v.data(), n, work.data(), size,
                                      info.data(), settings, batch);
  };
  if (status == CUSOLVER_STATUS_SUCCESS) run();
  if (status != CUSOLVER_STATUS_SUCCESS) {
    refuse(bench.problem, "gesvdjBatched", status);
  } else {
    report(bench.problem,
           {"gesvdjBatched", bench.copy_milliseconds(a), run,
            [&](int i) {
              const std::vector<float> hu = u.read(), hs = s.read(), hv = v.read();
              return worth_of(
                  bench.problem, i,
                  {hv.data() + i * n * n, hs.data() + i * n, hu.data() + i * m * m, n, 1, m, 1});
            }},
           bench.repeats);
  }
  cusolverDnDestroyGesvdjInfo(settings);
}

void time_gesvda(Bench& bench) {
  const int batch = bench.problem.shape.batch, rows = bench.problem.shape.rows;
  const int cols = bench.problem.shape.cols, rank = bench.problem.shape.rank;
  const size_t m = cols, n = rows, k = rank;
  Device<float> s(batch * k), u(batch * m * k), v(batch * n * k);
  Device<int> info(batch);
  int size = 0;
  cusolverStatus_t status = cusolverDnSgesvdaStridedBatched_bufferSize(
      bench.solver, CUSOLVER_EIG_MODE_VECTOR, k, m, n, bench.x.data(), m, m * n, s.data(), k,
      u.data(), m, m * k, v.data(), n, n * k, &size, batch);
  if (status != CUSOLVER_STATUS_SUCCESS)
    return refuse(bench.problem, "gesvdaStridedBatched", status);
  Device<float> work(size);
  const auto run = [&] {
    status = cusolverDnSgesvdaStridedBatched(
        bench.solver, CUSOLVER_EIG_MODE_VECTOR, k, m, n, bench.x.data(), m, m * n, s.data(), k,
        u.data(), m, m * k, v.data(), n, n * k, work.data(), size, info.data(), nullptr, batch);
  };
  run();
  if (status != CUSOLVER_STATUS_SUCCESS)
    return refuse(bench.problem, "gesvdaStridedBatched", status);
  report(bench.problem,
         {"gesvdaStridedBatched", 0, run,
          [&](int i) {
            const std::vector<float> hu = u.read(), hs = s.read(), hv = v.read();
            return worth_of(
                bench.problem, i,
                {hv.data() + i * n * k, hs.data() + i * k, hu.data() + i * m * k, n, 1, m, 1});
          }},
         bench.repeats);
}

// One matrix at a time, as the routine has no batch.
void time_gesvdr(Bench& bench) {
  const int batch = bench.problem.shape.batch, rows = bench.problem.shape.rows;
  const int cols = bench.problem.shape.cols, rank = bench.problem.shape.rank;
  const int64_t m = cols, n = rows, k = rank, spare = std::min<int64_t>(8, n - k - 1);
  if (spare < 0 || batch > 64) return;  // a loop over hundreds says nothing
  Device<float> a(batch * m * n), s(batch * n), u(batch * m * (k + spare)),
      v(batch * n * (k + spare));
  Device<int> info(batch);
  size_t on_device = 0, on_host = 0;
  cusolverStatus_t status = cusolverDnXgesvdr_bufferSize(
      bench.solver, bench.params, 'S', 'S', m, n, k, spare, kIterations, CUDA_R_32F, a.data(), m,
      CUDA_R_32F, s.data(), CUDA_R_32F, u.data(), m, CUDA_R_32F, v.data(), n, CUDA_R_32F,
      &on_device, &on_host);
  if (status != CUSOLVER_STATUS_SUCCESS) return refuse(bench.problem, "Xgesvdr", status);
  Device<unsigned char> work(on_device);
  std::vector<unsigned char> host(on_host + 1);
  const auto run = [&] {
    a.copy_from(bench.x);
    for (int i = 0; i < batch; ++i) {
      const cusolverStatus_t each = cusolverDnXgesvdr(
          bench.solver, bench.params, 'S', 'S', m, n, k, spare, kIterations, CUDA_R_32F,
          a.data() + i * m * n, m, CUDA_R_32F, s.data() + i * n, CUDA_R_32F,
          u.data() + i * m * (k + spare), m, CUDA_R_32F, v.data() + i * n * (k + spare), n,
          CUDA_R_32F, work.data(), on_device, host.data(), on_host, info.data() + i);
      if (each != CUSOLVER_STATUS_SUCCESS) status = each;
    }
  };
  run();
  if (status != CUSOLVER_STATUS_SUCCESS) return refuse(bench.problem, "Xgesvdr", status);
  report(bench.problem,
         {"Xgesvdr", bench.copy_milliseconds(a), run,
          [&](int i) {
            const std::vector<float> hu = u.read(), hs = s.read(), hv = v.read();
            return worth_of(bench.problem, i,
                            {hv.data() + i * n * (k + spare), hs.data() + i * n,
                             hu.data() + i * m * (k + spare), size_t(n), 1, size_t(m), 1});
          }},
         bench.repeats);
}

// XX' by a product and its eigenvectors: our u and s^2. The checks find v = X'u / s.
Worth worth_of_gram(const Problem& problem, int matrix, const float* vectors,
                    const float* squares) {
  const int rows = problem.shape.rows, cols = problem.shape.cols, rank = problem.shape.rank;
  const float* x = problem.x.data() + size_t(matrix) * rows * cols;
  std::vector<float> u(size_t(rank) * rows), s(rank), v(size_t(rank) * cols);
  for (int k = 0; k < rank; ++k) {
    const int from = rows - 1 - k;  // eigenvalues ascend
    s[k] = std::sqrt(std::max(squares[from], 0.0f));
    std::copy_n(vectors + size_t(from) * rows, rows, u.begin() + size_t(k) * rows);
    std::vector<double> sums(cols, 0.0);
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < cols; ++j)
        sums[j] += double(u[size_t(k) * rows + i]) * x[size_t(i) * cols + j];
    }
    for (int j = 0; j < cols; ++j) v[size_t(k) * cols + j] = float(s[k] > 0 ? sums[j] / s[k] : 0);
  }
  return worth_of(problem, matrix,
                  {u.data(), s.data(), v.data(), size_t(rows), 1, size_t(cols), 1});
}

void time_syev(Bench& bench) {
  const int batch = bench.problem.shape.batch, rows = bench.problem.shape.rows;
  const int cols = bench.problem.shape.cols;
  const size_t m = cols, n = rows;
  Device<float> gram(batch * n * n), w(batch * n);
  Device<int> info(batch);
  size_t on_device = 0, on_host = 0;
  cusolverStatus_t status = cusolverDnXsyevBatched_bufferSize(
      bench.solver, bench.params, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, n, CUDA_R_32F,
      gram.data(), n, CUDA_R_32F, w.data(), CUDA_R_32F, &on_device, &on_host, batch);
  if (status != CUSOLVER_STATUS_SUCCESS) return refuse(bench.problem, "XsyevBatched", status);
  Device<unsigned char> work(on_device);
  std::vector<unsigned char> host(on_host + 1);
  const auto run = [&] {
    const float one = 1, zero = 0;
    const cublasStatus_t product = cublasSgemmStridedBatched(
        bench.blas, CUBLAS_OP_T, CUBLAS_OP_N, n, n, m, &one, bench.x.data(), m, m * n,
        bench.x.data(), m, m * n, &zero, gram.data(), n, n * n, batch);
    require(product == CUBLAS_STATUS_SUCCESS, "cublasSgemmStridedBatched", product);
    status = cusolverDnXsyevBatched(bench.solver, bench.params, CUSOLVER_EIG_MODE_VECTOR,
                                    CUBLAS_FILL_MODE_LOWER, n, CUDA_R_32F, gram.data(), n,
                                    CUDA_R_32F, w.data(), CUDA_R_32F, work.data(), on_device,
                                    host.data(), on_host, info.data(), batch);
  };
  run();
  if (status != CUSOLVER_STATUS_SUCCESS) return refuse(bench.problem, "XsyevBatched", status);
  report(bench.problem,
         {"XsyevBatched", 0, run,
          [&](int i) {
            const std::vector<float> vectors = gram.read(), squares = w.read();
            return worth_of_gram(bench.problem, i, vectors.data() + i * n * n,
                                 squares.data() + i * n);
          }},
         bench.repeats);
}

}  // namespace

int main(int argc, char** argv) {
  const int repeats = argc > 1 ? std::max(1, std::atoi(argv[1])) : 9;
  cusolverDnHandle_t solver;
  cublasHandle_t blas;
  cusolverDnParams_t params;
  require(cusolverDnCreate(&solver) == CUSOLVER_STATUS_SUCCESS, "cusolverDnCreate", 0);
  require(cublasCreate(&blas) == CUBLAS_STATUS_SUCCESS, "cublasCreate", 0);
  require(cusolverDnCreateParams(&params) == CUSOLVER_STATUS_SUCCESS, "cusolverDnCreateParams", 0);
  for (const Shape& shape : kShapes) {
    const Problem problem = make(shape);
    Bench bench{problem, repeats, solver, blas, params};
    time_ours(bench);
    time_gesvdj(bench);
    time_gesvda(bench);
    time_gesvdr(bench);
    time_syev(bench);
  }
  cusolverDnDestroyParams(params);
  cublasDestroy(blas);
  cusolverDnDestroy(solver);
  return 0;
}

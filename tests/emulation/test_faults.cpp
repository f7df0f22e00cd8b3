// What the emulation must find: each planted fault of tests/emulation/faults, in the builds that
// can see it, and nothing where there is none. Every run is a process of its own, for some faults
// end it.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "device_test.h"
#include "faults/faults.h"

namespace {

using device_test::Buffer;

#if defined(CUEMU_RACE)
constexpr int kBuild = 2;
#elif defined(__SANITIZE_ADDRESS__)
constexpr int kBuild = 1;
#else
constexpr int kBuild = 0;
#endif

using Matrix = std::vector<double>;

std::vector<bf16> random_halves(size_t size, Matrix* wide) {
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<bf16> values(size);
  wide->resize(size);
  for (size_t i = 0; i < size; ++i) {
    values[i] = __float2bfloat16(normal(generator));
    (*wide)[i] = __bfloat162float(values[i]);
  }
  return values;
}

// a (m x k) b' (n x k)
Matrix product(const double* a, const double* b, int m, int n, int k) {
  Matrix c(static_cast<size_t>(m) * n);
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      for (int x = 0; x < k; ++x) c[i * n + j] += a[i * k + x] * b[j * k + x];
    }
  }
  return c;
}

double value_of(float x) { return x; }
double value_of(bf16 x) { return __bfloat162float(x); }

// NaN is not close.
template <class T>
bool close(const std::vector<T>& got, const Matrix& truth, double tolerance) {
  double scale = 0;
  for (double x : truth) scale = std::fmax(scale, std::fabs(x));
  for (size_t i = 0; i < truth.size(); ++i) {
    if (!(std::fabs(value_of(got[i]) - truth[i]) <= tolerance * scale)) return false;
  }
  return true;
}

bool row_sums(int fault) {
  const int rows = 5, cols = 300;
  std::vector<float> x(rows * cols);
  Matrix truth(rows);
  for (int i = 0; i < rows * cols; ++i) {
    x[i] = std::sin(1.0 + i);
    truth[i / cols] += static_cast<double>(x[i]) * x[i];
  }
  const Buffer<float> in(x, "x"), out(rows, "out");
  faults::row_sums(fault, in.data(), out.data(), rows, cols);
  return close(out.read(), truth, 1e-5);
}

bool small_chain(int fault) {
  const int batch = 2, m = 48, k = 80;
  Matrix x, truth;
  const Buffer<bf16> in(random_halves(batch * m * k, &x), "x"), out(batch * m * k, "out");
  const auto round = [](double v) -> double { return __bfloat162float(__float2bfloat16(v)); };
  for (int b = 0; b < batch; ++b) {
    Matrix one(x.begin() + b * m * k, x.begin() + (b + 1) * m * k);
    double square = 0;
    for (double v : one) square += v * v;
    for (double& v : one) v = round(v / std::sqrt(square));
    for (int step = 0; step < 3; ++step) {
      Matrix a = product(one.data(), one.data(), m, m, k);
      for (double& v : a) v = round(v);
      Matrix s = product(a.data(), a.data(), m, m, m), next(m * k);
      for (int i = 0; i < m * m; ++i) s[i] = round(-4.5 * a[i] + 2 * s[i]);
      for (int i = 0; i < m * k; ++i) {
        double sum = 3.5 * one[i];
        for (int j = 0; j < m; ++j) sum += s[i / k * m + j] * one[j * k + i % k];
        next[i] = round(sum);
      }
      one = next;
    }
    truth.insert(truth.end(), one.begin(), one.end());
  }
  faults::small_chain(fault, in.data(), out.data(), batch);
  return close(out.read(), truth, 0.03);
}

bool symmetric_product(int fault) {
  const int n = 136;
  Matrix a;
  std::vector<bf16> values = random_halves(n * n, &a);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < i; ++j) {
      values[i * n + j] = values[j * n + i];
      a[i * n + j] = a[j * n + i];
    }
  }
  const Buffer<bf16> in(values, "a"), out(n * n, "c");
  Matrix truth = product(a.data(), a.data(), n, n, n);
  for (int i = 0; i < n * n; ++i) truth[i] = 0.7 * truth[i] - 1.3 * a[i];
  faults::symmetric_product(fault, in.data(), out.data(), n, 0.7f, -1.3f);
  return close(out.read(), truth, 0.006);
}

dev::TensorMap boxes_of(const bf16* data, int cols, int rows, int batch) {
  dev::TensorMap map{};
  const size_t ld = cols, matrix = ld * rows;
  dev::make_map_3d(&map, data, cols, rows, batch, ld, matrix, 64);
  return map;
}

bool gram(int fault) {
  const int m = 72, k = 456;
  Matrix a;
  const Buffer<bf16> in(random_halves(m * k, &a), "a");
  const Buffer<float> out(m * m, "c");
  dev::TensorMap map{};
  dev::make_map(&map, {in.data(), dev::Element::kBFloat16, 2, {k, m}, {k * 2}, {64, 64}, 128});
  faults::gram(fault, map, out.data(), m, k);
  return close(out.read(), product(a.data(), a.data(), m, m, k), 1e-5);
}

bool swizzled_gram(int fault) {
  Matrix a;
  const Buffer<bf16> in(random_halves(64 * 64, &a), "a");
  const Buffer<float> out(64 * 64, "c");
  dev::TensorMap map{};
  dev::make_map(&map, {out.data(), dev::Element::kFloat32, 2, {64, 64}, {256}, {64, 64}, 0});
  faults::swizzled_gram(fault, in.data(), map);
  return close(out.read(), product(a.data(), a.data(), 64, 64, 64), 1e-5);
}

bool turns(int fault) {
  const int batch = 7, size = 64 * 64;
  Matrix a, e;
  const Buffer<bf16> in(random_halves(batch * size, &a), "a");
  std::vector<bf16> addend = random_halves(batch * size, &e);
  for (int i = 0; i < batch * size; ++i) {  // symmetric
    const int r = i / 64 % 64, c = i % 64;
    if (r > c) addend[i] = addend[i / size * size + c * 64 + r];
    e[i] = __bfloat162float(addend[i]);
  }
  const Buffer<bf16> of_e(addend, "e"), out(batch * size, "c");
  Matrix truth;
  for (int b = 0; b < batch; ++b) {
    const Matrix one = product(&a[b * size], &a[b * size], 64, 64, 64);
    for (int i = 0; i < size; ++i) truth.push_back(one[i] + e[b * size + i]);
  }
  faults::turns(fault, boxes_of(in.data(), 64, 64, batch), boxes_of(of_e.data(), 64, 64, batch),
                boxes_of(out.data(), 64, 64, batch), batch);
  return close(out.read(), truth, 0.006);
}

struct Fault {
  bool (*run)(int);
  int number;
  const char* what;
  int found[3];  // of the five runs, at least: plain, asan, race
};
const Fault kFaults[] = {
    {row_sums, 2, "store to out[row + 1]", {5, 5, 5}},
    {row_sums, 7, "no barrier before the sums are read", {3, 3, 5}},
    {row_sums, 11, "one warp skips a barrier and ends later", {0, 0, 5}},
    {row_sums, 12, "two barriers in two branches", {5, 5, 5}},
    {row_sums, 13, "a lane skips the shuffles", {5, 5, 5}},
    {row_sums, 14, "shared array overrun", {5, 5, 5}},
    {small_chain, 1, "no barrier before X is overwritten", {3, 3, 5}},
    {small_chain, 5, "wrong ldmatrix row", {5, 5, 5}},
    {small_chain, 9, "no __syncwarp before ldmatrix", {0, 0, 5}},
    {small_chain, 10, "store one row too far, into the next array", {5, 5, 5}},
    {small_chain, 15, "misaligned load of sixteen bytes", {5, 5, 5}},
    {symmetric_product, 3, "wait_group one too lax", {5, 5, 5}},
    {symmetric_product, 4, "wrong mirrored index", {5, 5, 5}},
    {symmetric_product, 6, "no barrier before a stage is filled again", {4, 4, 5}},
    {symmetric_product, 8, "edge test one too far", {3, 4, 5}},
    {gram, 20, "wrong parity of the empty barriers", {5, 5, 5}},
    {gram, 21, "half the bytes announced", {5, 5, 5}},
    {gram, 22, "no wgmma.wait_group", {5, 5, 5}},
    {gram, 23, "wrong descriptor along k", {5, 5, 5}},
    {gram, 24, "no barrier after mbarrier.init", {1, 1, 5}},
    {gram, 25, "slots never waited for", {5, 5, 5}},
    {swizzled_gram, 30, "no fence.proxy.async before wgmma", {0, 0, 5}},
    {swizzled_gram, 31, "swizzle left out", {5, 5, 5}},
    {swizzled_gram, 32, "tensor store never waited for", {5, 5, 5}},
    {swizzled_gram, 34, "source of a tensor store overwritten", {0, 0, 5}},
    {turns, 41, "twice the bytes announced", {5, 5, 5}},
    {turns, 42, "addend loaded before its buffer is free", {5, 5, 5}},
    {turns, 43, "turn never handed over", {5, 5, 5}},
    {turns, 45, "no fence.proxy.async before the tensor store", {0, 0, 5}},
    {turns, 46, "turn handed over before the lanes meet", {0, 0, 5}},
    {turns, 47, "addend read where another warp stores", {0, 0, 5}},
    {turns, 48, "wrong slot released", {0, 0, 5}},
    {turns, 49, "one staged barrier for both warpgroups", {0, 0, 5}},
};

// Whether a run in a process of its own goes well.
bool goes_well(const Fault& fault, int number, uint64_t seed, int order) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    if (number && !getenv("SHOW")) {  // what is found is only counted
      std::freopen("/dev/null", "w", stderr);
      emu::opt.max_reports = 0;
    }
    emu::clear_reports();
    emu::opt.seed = seed;
    emu::opt.order = order;
    const bool right = fault.run(number);
    _exit(right && emu::reports() == 0 ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  return status == 0;
}

void check_all() {
  struct Run {
    uint64_t seed;
    int order;
  };
  const Run runs[] = {{1, 0}, {1, 1}, {1, 2}, {2, 2}, {3, 2}};
  bool (*last)(int) = nullptr;
  for (const Fault& fault : kFaults) {
    int found = 0;
    for (const Run& run : runs) {
      if (fault.run != last) {
        CHECK(goes_well(fault, 0, run.seed, run.order),
              "false alarm: kernel of %s, seed %d, order %d", fault.what,
              static_cast<int>(run.seed), run.order);
      }
      found += !goes_well(fault, fault.number, run.seed, run.order);
    }
    last = fault.run;
    CHECK(found >= fault.found[kBuild], "fault %d (%s) found in %d of 5 runs, not %d", fault.number,
          fault.what, found, fault.found[kBuild]);
    if (getenv("SHOW")) std::printf("%d: %d of 5\n", fault.number, found);
  }
}

}  // namespace

int main() {
  check_all();
  return check::finish();
}

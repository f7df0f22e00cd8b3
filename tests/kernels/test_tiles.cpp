// The engine `tiles`: every type, layout and epilogue, exactly; the same bits from any grid, size
// of tiles, batch and order of threads.
#include <cmath>
#include <limits>
#include <map>
#include <memory>

#include "product_jobs.h"
#include "tiles.h"

namespace {

using namespace product_jobs;
using schattor::cuda::Coefficient;
using schattor::cuda::DeviceFacts;
namespace tiles = schattor::cuda::tiles;

constexpr DeviceFacts kAmpere{80, 3, 163 * 1024};
constexpr DeviceFacts kAda{89, 1, 99 * 1024};  // a short ring; and one block's worth of tiles
constexpr DeviceFacts kLarge{90, 500, 227 * 1024};

cudaError_t multiply(const DeviceFacts& facts, const std::vector<Product>& products) {
  const int count = static_cast<int>(products.size());
  const size_t bytes = tiles::workspace(products.data(), count);
  Buffer<double> workspace(bytes / sizeof(double), "workspace");
  return tiles::multiply_on(facts, products.data(), count, workspace.data(), nullptr);
}

template <typename T>
const char* name_of() {
  constexpr Dtype dtype = kDtype<T>;
  return dtype == Dtype::kFloat64    ? "float64"
         : dtype == Dtype::kFloat32  ? "float32"
         : dtype == Dtype::kBFloat16 ? "bfloat16"
                                     : "float16";
}

template <typename T>
std::string described(const Case& each) {
  const char* forms[] = {"gram", "symmetric", "transposed", "row-major"};
  return std::string(name_of<T>()) + " " + forms[static_cast<int>(each.form)] + " " +
         std::to_string(each.rows) + "x" + std::to_string(each.cols) + "x" +
         std::to_string(each.inner) + " batch " + std::to_string(each.batch) + " '" + each.options +
         "'";
}

template <typename T>
void check_case(const Case& each, const DeviceFacts& facts) {
  Job<T> job(each, 7);
  const std::string name = described<T>(each);
  CHECK(multiply(facts, {job.product()}) == cudaSuccess, "%s", name.c_str());
  job.check(name);
}

template <typename T>
void test_edges() {
  const Case cases[] = {
      {Form::kGram, 1, 1, 1, 2, "q"},          {Form::kRowMajor, 1, 7, 8, 1, "dsq"},
      {Form::kTransposed, 7, 8, 1, 3, "iq"},   {Form::kSymmetric, 8, 8, 7, 1, "isq"},
      {Form::kGram, 63, 63, 65, 1, "dq"},      {Form::kSymmetric, 64, 64, 30, 2, "dzq"},
      {Form::kGram, 65, 65, 33, 1, "isqu"},    {Form::kTransposed, 64, 65, 63, 1, "nsqu"},
      {Form::kRowMajor, 65, 63, 20, 1, "dsu"}, {Form::kTransposed, 5, 3, 0, 2, "dsq"},
  };
  for (const Case& each : cases) check_case<T>(each, kLarge);
}

void test_more_edges() {
  const Case cases[] = {
      {Form::kRowMajor, 63, 130, 130, 1, "izq"},
      {Form::kTransposed, 127, 7, 8, 1, "dq"},
      {Form::kSymmetric, 130, 130, 16, 1, "nsq"},
  };
  for (const Case& each : cases) check_case<__half>(each, kLarge);
}

// Tiles of 128, with a short and a long ring.
template <typename T>
void test_large_tiles() {
  check_case<T>({Form::kGram, 200, 200, 72, 1, "isq"}, kAda);
  check_case<T>({Form::kSymmetric, 129, 129, 200, 1, "dzq"}, kAmpere);
  check_case<T>({Form::kTransposed, 128, 127, 65, 1, "dsq"}, kAda);
  check_case<T>({Form::kRowMajor, 130, 200, 129, 1, "isq"}, kAmpere);
}

// Super-rows: more than eight rows of tiles.
template <typename T>
void test_order_of_tiles() {
  check_case<T>({Form::kGram, 520, 520, 1, 1, "q"}, kLarge);
  check_case<T>({Form::kTransposed, 577, 66, 3, 1, "q"}, kLarge);
}

// Long products are slow here, above all without mma.
template <typename T>
void test_slices() {
  check_case<T>({Form::kRowMajor, 9, 7, 2050, 1, "dsq"}, kAmpere);
}

void test_more_slices() {
  check_case<__half>({Form::kGram, 66, 66, 2050, 1, "isq"}, kAmpere);
  check_case<__half>({Form::kTransposed, 3, 7, 3100, 1, "zu"}, kAmpere);
}

template <typename T>
void test_groups() {
  const Case cases[] = {
      {Form::kGram, 70, 70, 20, 2, "dq"},
      {Form::kRowMajor, 10, 70, 40, 1, "isq"},
      {Form::kTransposed, 0, 5, 9, 2, "q"},
      {Form::kTransposed, 65, 20, 10, 2, "sq"},
      {Form::kGram, 10, 10, sizeof(T) == 2 ? 2048 : 60, 2, "q"},
      {Form::kRowMajor, 6, 6, 6, 0, "q"},
      {Form::kSymmetric, 12, 12, 12, 1, "iu"},
      {Form::kRowMajor, 9, 0, 3, 1, "q"},
  };
  std::vector<std::unique_ptr<Job<T>>> jobs;
  std::vector<Product> products;
  for (const Case& each : cases) {
    jobs.push_back(std::make_unique<Job<T>>(each, 11 + jobs.size()));
    products.push_back(jobs.back()->product());
  }
  CHECK(multiply(kAda, products) == cudaSuccess, "%s", name_of<T>());
  for (size_t i = 0; i < jobs.size(); ++i) jobs[i]->check("of a group " + described<T>(cases[i]));
}

// One hash for a case, whatever runs it.
template <typename T>
void check_bits(const Case& each) {
  static std::map<std::string, uint64_t> known;
  const std::string name = described<T>(each);
  Job<T> job(each, 5);
  for (const DeviceFacts& facts : {DeviceFacts{80, 1, 163 * 1024}, DeviceFacts{86, 2, 99 * 1024},
                                   DeviceFacts{90, 5, 232448}}) {
    job.upload();
    CHECK(multiply(facts, {job.product()}) == cudaSuccess, "%s", name.c_str());
    const uint64_t hash = job.hash();
    const auto found = known.emplace(name, hash).first;
    CHECK(found->second == hash, "%s on %d multiprocessors", name.c_str(), facts.multiprocessors);
  }
  job.upload();
  for (int b = 0; b < each.batch; ++b) multiply(kLarge, {job.product(b, 1)});
  CHECK(known[name] == job.hash(), "%s, one by one", name.c_str());
}

void test_bits() {
  check_bits<__half>({Form::kGram, 70, 70, 40, 2, "isqr"});
  check_bits<bf16>({Form::kRowMajor, 66, 130, 20, 1, "dsqr"});
  check_bits<__half>({Form::kGram, 10, 10, 2100, 2, "sqr"});
  check_bits<float>({Form::kGram, 70, 70, 20, 2, "isqr"});
}

// Real numbers, to the precision of the type.
template <typename T>
void test_accuracy() {
  constexpr int kSize = 70, kInner = 50;
  const double sum_unit = sizeof(T) == 8 ? 0x1p-52 : 0x1p-23;
  const double unit = sizeof(T) >= 4 ? sum_unit : std::is_same<T, bf16>::value ? 0x1p-8 : 0x1p-11;
  Job<T> job({Form::kTransposed, kSize, kSize, kInner, 1, "dqr"}, 3);
  CHECK(multiply(kLarge, {job.product()}) == cudaSuccess, "%s", name_of<T>());
  Matrices<T> result(1, kSize, kSize, true, "result");
  const std::vector<T> read = job.c().read();
  double worst = 0, square = 0;
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kSize; ++j) {
      double truth = widened(job.d().at(0, i, j));
      for (int k = 0; k < kInner; ++k) {
        truth += widened(job.a().at(0, i, k)) * widened(job.b().at(0, j, k));
      }
      const double value = widened(read[&result.at(0, i, j) - result.values().data()]);
      worst =
          std::max(worst, std::abs(value - truth) / (unit * std::abs(truth) + kInner * sum_unit));
      square += value * value;
    }
  }
  CHECK(worst <= 1, "%s: %g times what rounding explains", name_of<T>(), worst);
  CHECK(std::abs(job.squares()[0] / square - 1) < 1e-6, "%s: squares", name_of<T>());
}

// Numbers far from one: squares where the type's own would over- or underflow.
template <typename T>
void check_size(double size) {
  Job<T> job({Form::kTransposed, 70, 66, 8, 1, "q"}, 3);
  job.a().fill([] { return 1.; });
  job.b().fill([&] { return size; });
  job.upload();
  CHECK(multiply(kLarge, {job.product()}) == cudaSuccess, "%s", name_of<T>());
  const double entry = 8 * widened(rounded<T>(size)), square = 70. * 66 * entry * entry;
  CHECK(std::abs(job.squares()[0] / square - 1) < 1e-6, "%s, %g: %g, not %g", name_of<T>(), size,
        job.squares()[0], square);
}

// A NaN or an infinity spoils its row and column and nothing else.
template <typename T>
void test_not_finite() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  for (const double odd : {nan, inf}) {
    Job<T> job({Form::kGram, 70, 70, 20, 2, "sq"}, 9);
    job.a().fill([] { return 1.; });
    job.a().at(0, 66, 3) = rounded<T>(odd);
    job.upload();
    CHECK(multiply(kLarge, {job.product()}) == cudaSuccess, "%s", name_of<T>());
    const std::vector<T> read = job.c().read();
    Matrices<T> place(2, 70, 70, true, "place");
    int wrong = 0;
    for (int i = 0; i < 70; ++i) {
      for (int j = 0; j < 70; ++j) {
        const double value = widened(read[&place.at(0, i, j) - place.values().data()]);
        const bool hit = i == 66 || j == 66;
        wrong += !hit ? value != 20 : odd == inf ? value != inf : !std::isnan(value);
      }
    }
    CHECK(wrong == 0, "%s with %g: %d entries", name_of<T>(), odd, wrong);
    const double square = job.squares()[0];
    CHECK(odd == inf ? square == inf : std::isnan(square), "%s: %g", name_of<T>(), square);
    CHECK(job.squares()[1] == 4. * 20 * 20 * 70 * 70, "%s: %g", name_of<T>(), job.squares()[1]);
  }
}

// Coefficients without data are the numbers given in their stead; beta without D is of no account.
template <typename T>
void test_coefficients() {
  Job<T> job({Form::kTransposed, 9, 9, 4, 2, "z"}, 9);
  job.a().fill([] { return 1.; });
  job.b().fill([] { return 1.; });
  job.upload();
  Product product = job.product();
  product.alpha = {nullptr, 7, 3.f};
  product.beta = {nullptr, 0, std::numeric_limits<float>::quiet_NaN()};
  product.weight = {nullptr, 0, 0.f};
  CHECK(multiply(kLarge, {product}) == cudaSuccess, "%s", name_of<T>());
  Matrices<T> c(2, 9, 9, true, "c"), s(2, 9, 9, true, "s");
  c.fill([] { return 12.; });
  s.fill([] { return 0.; });
  CHECK(different(job.c().read(), c.values()) == 0, "%s", name_of<T>());
  CHECK(different(job.s().read(), s.values()) == 0, "%s", name_of<T>());
}

void test_refusals() {
  Job<float> job({Form::kTransposed, 9, 8, 4, 1, ""}, 9);
  Product product = job.product();
  product.symmetric = true;
  CHECK(multiply(kLarge, {product}) == cudaErrorInvalidValue, "symmetric, 9 by 8");
  std::vector<Product> many(schattor::cuda::kMostGroups + 1, job.product());
  CHECK(multiply(kLarge, many) == cudaErrorInvalidValue, "too many groups");
  Job<double> other({Form::kTransposed, 9, 8, 4, 1, ""}, 9);
  CHECK(multiply(kLarge, {job.product(), other.product()}) == cudaErrorInvalidValue, "two types");
  CHECK(multiply(kLarge, {}) == cudaSuccess, "no product");
}

// The engine as others call it, and what it decides from shapes alone.
void test_decisions() {
  Job<__half> job({Form::kGram, 40, 40, 24, 1, "q"}, 9);
  const Product product = job.product();
  CHECK(tiles::multiply(&product, 1, nullptr, nullptr) == cudaSuccess, "multiply");
  job.check("multiply");
  Product shape{};
  shape.batch = 1000, shape.rows = 512, shape.cols = 512, shape.inner = 4608;
  shape.transposed_b = shape.symmetric = true;
  CHECK(tiles::slices_of(shape) == 3, "%d slices", tiles::slices_of(shape));
  shape.rows = shape.cols = 4096;
  CHECK(tiles::slices_of(shape) == 1, "%d slices", tiles::slices_of(shape));
  shape.dtype = Dtype::kFloat16, shape.batch = 1;
  const DeviceFacts hopper{90, 132, 227 * 1024};
  CHECK(tiles::half_tile(&shape, 1, hopper) == 128, "tiles of 4096 x 4096");
  shape.rows = shape.cols = 768;
  CHECK(tiles::half_tile(&shape, 1, hopper) == 64, "tiles of 768 x 768");
}

template <typename T>
void test_type() {
  test_accuracy<T>();
  test_not_finite<T>();
  test_coefficients<T>();
  check_size<T>(1);
}

void test() {
  test_type<__half>();
  test_type<bf16>();
  test_type<float>();
  test_type<double>();
  test_edges<__half>();
  test_more_edges();
  test_edges<float>();
  test_edges<double>();
  test_groups<__half>();
  test_groups<float>();
  test_large_tiles<__half>();
  check_case<bf16>({Form::kRowMajor, 63, 130, 130, 1, "izq"}, kLarge);
  check_case<bf16>({Form::kSymmetric, 65, 65, 33, 1, "isqu"}, kLarge);
  check_case<bf16>({Form::kGram, 129, 129, 40, 1, "dsq"}, kAda);
  test_order_of_tiles<__half>();
  test_slices<bf16>();
  test_slices<float>();
  test_slices<double>();
  test_more_slices();
  test_bits();
  check_size<bf16>(1e30), check_size<bf16>(1e-30);
  check_size<float>(1e30), check_size<float>(1e-30);
  test_refusals();
  test_decisions();
#ifndef __CUDACC__
  CHECK(emu::conflicts() == 0, "%ld conflicts of ldmatrix", emu::conflicts());
#endif
}

}  // namespace

int main(int argc, char** argv) { return device_test::run(argc, argv, test); }

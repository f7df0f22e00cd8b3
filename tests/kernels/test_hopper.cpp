// The engine `hopper` against float64; in both schedules and on every grid it gives the same bits.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "device_test.h"
#include "hopper.h"
#include "hopper_jobs.h"
#include "hopper_tiles.h"

namespace {

using device_test::Buffer;
using hopper_jobs::Form;
using hopper_jobs::Job;
using hopper_jobs::rounded;
using hopper_jobs::Shape;
using schattor::cuda::Dtype;
using schattor::cuda::Product;
namespace hopper = schattor::cuda::hopper;
using hopper::Schedule;

void launch(const std::vector<Product>& products, Schedule schedule, int blocks,
            const std::string& name) {
  const int count = static_cast<int>(products.size());
  const size_t bytes = hopper::workspace(products.data(), count);
  Buffer<unsigned char> workspace(std::max<size_t>(bytes, 1), "workspace");
  const cudaError_t error =
      hopper::multiply_as(products.data(), count, workspace.data(), schedule, blocks, nullptr);
  CHECK(error == cudaSuccess, "%s: error %d", name.c_str(), static_cast<int>(error));
}

const char* name_of(Schedule schedule) {
  return schedule == Schedule::kPingPong ? "ping-pong" : "cooperative";
}

// The truth is asked once a case; after that, that every order of threads, schedule and grid gives
// the same bits.
template <class T>
void run_case(const char* type, const std::vector<Shape>& shapes, int turn) {
  static std::map<std::string, uint64_t> known;
  std::string name = type;
  std::vector<std::unique_ptr<Job<T>>> jobs;
  std::vector<Product> products;
  for (const Shape& x : shapes) {
    char text[100];
    std::snprintf(text, sizeof text, " [form %d, %dx%dx%d, batch %d, %s]", static_cast<int>(x.form),
                  x.rows, x.cols, x.inner, x.batch, x.options);
    name += text;
    jobs.push_back(std::make_unique<Job<T>>(x, 7 + jobs.size()));
    products.push_back(jobs.back()->product(0, x.batch));
  }
  constexpr int kGrids[] = {1, 2, 5};
  for (const Schedule schedule : {Schedule::kCooperative, Schedule::kPingPong}) {
    const int blocks = kGrids[turn++ % 3];
    const std::string run = name + ' ' + name_of(schedule) + " on " + std::to_string(blocks);
    for (auto& job : jobs) job->upload();
    launch(products, schedule, blocks, run);
    hopper_jobs::Bits bits;
    for (auto& job : jobs) bits.eat(std::vector<uint64_t>{job->bits()});
    const auto [at, fresh] = known.emplace(name, bits.hash());
    if (fresh) {
      for (auto& job : jobs) job->check(run);
    }
    CHECK(at->second == bits.hash(), "%s: other bits", run.c_str());
  }
}

const std::vector<std::vector<Shape>>& cases() {
  static const std::vector<std::vector<Shape>> list = {
      {{Form::kGram, 1, 1, 1, 1, "dq"}},
      {{Form::kGram, 8, 8, 320, 3, "sq"}},
      {{Form::kGram, 64, 64, 8, 6, "iq"}},
      {{Form::kGram, 129, 129, 65, 1, "qn"}},
      {{Form::kGram, 200, 200, 72, 1, "isq"}},
      {{Form::kGram, 256, 256, 200, 1, "q"}},
      {{Form::kSymmetric, 130, 130, 128, 1, "dsq"}},
      {{Form::kSymmetric, 200, 200, 64, 1, "zq"}},
      {{Form::kTransposed, 1, 200, 1, 2, "sq"}},
      {{Form::kTransposed, 129, 64, 72, 1, "iq"}},
      {{Form::kRowMajor, 1, 1, 1, 1, "sq"}},
      {{Form::kRowMajor, 130, 200, 65, 1, "iq"}},
      {{Form::kRowMajor, 128, 129, 128, 1, "dsq"}},
      {{Form::kRowMajor, 64, 8, 320, 1, "snq"}},
      {{Form::kGram, 130, 130, 8, 1, "q"},
       {Form::kRowMajor, 72, 136, 130, 1, "s"},
       {Form::kSymmetric, 64, 64, 200, 3, "dq"},
       {Form::kTransposed, 200, 1, 64, 1, "iq"}},
  };
  return list;
}

void test_cases() {
  static int round = 0;
  for (size_t i = 0; i < cases().size(); ++i) {
    // Each type in every second case and order: five orders reach all.
    const int turn = static_cast<int>(i) + round;
    if (turn % 2 == 0) {
      run_case<__half>("half", cases()[i], turn);
    } else {
      run_case<bf16>("bfloat16", cases()[i], turn);
    }
  }
  ++round;
}

// A matrix comes out the same alone as among others.
void test_neighbours() {
  const Shape shape{Form::kGram, 136, 136, 72, 2, "dq"};
  Job<bf16> job(shape, 3), other({Form::kRowMajor, 64, 64, 130, 1, "q"}, 4);
  job.upload(), other.upload();
  launch({job.product(0, 2), other.product(0, 1)}, Schedule::kPingPong, 2, "together");
  const uint64_t together = job.bits();
  job.upload();
  for (int b : {1, 0}) launch({job.product(b, 1)}, Schedule::kCooperative, 3, "alone");
  CHECK(job.bits() == together, "%s", "a matrix depends on its neighbours");
}

// NaN and inf stay in their row, column and matrix; a factor of zero hides what it multiplies.
void test_special_values() {
  const int n = 72;
  Job<__half> job({Form::kGram, n, n, 40, 3, "dzq"}, 5);
  const __half nan = rounded<__half>(NAN), huge = rounded<__half>(60000.);
  job.a().at(1, 3, 5) = nan;
  job.d().at(2, 9, 2) = nan;
  job.numbers[4 * 2 + 1] = 0.f;  // beta of the matrix with a NaN in D
  for (int k = 0; k < 40; ++k) job.a().at(0, 70, k) = huge;
  job.upload();
  launch({job.product(0, 3)}, Schedule::kPingPong, 1, "special");
  job.download();
  int wrong = 0;
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) {
      wrong += std::isnan(job.c()(1, i, j)) != (i == 3 || j == 3);
      wrong += std::isnan(job.s()(1, i, j)) != (i == 3 || j == 3);
      wrong += !std::isfinite(job.c()(2, i, j)) + !std::isfinite(job.s()(2, i, j));
      if (i != 70 && j != 70) wrong += !std::isfinite(job.c()(0, i, j));
    }
  }
  CHECK(wrong == 0, "%d elements", wrong);
  CHECK(std::isinf(job.c()(0, 70, 70)), "%g", job.c()(0, 70, 70));
  const std::vector<double> squares = job.squares();
  CHECK(std::isfinite(squares[0]) && std::isnan(squares[1]) && std::isfinite(squares[2]),
        "%g %g %g", squares[0], squares[1], squares[2]);
}

// Zero and rank one; numbers that are not on the device.
void test_plain_numbers() {
  const int rows = 70, cols = 66, inner = 20;
  Job<bf16> job({Form::kTransposed, rows, cols, inner, 2, "q"}, 6);
  for (int k = 0; k < inner; ++k) {
    for (int i = 0; i < rows; ++i) {
      job.a().at(0, i, k) = rounded<bf16>(0.);
      job.a().at(1, i, k) = rounded<bf16>(i % 4 + 1);
    }
    for (int j = 0; j < cols; ++j) job.b().at(1, j, k) = rounded<bf16>(j % 2 + 1);
  }
  job.upload();
  Product product = job.product(0, 2);
  product.alpha = {nullptr, 0, 0.5f};
  launch({product}, Schedule::kCooperative, 2, "plain numbers");
  job.download();
  int wrong = 0;
  double squares = 0.;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < cols; ++j) {
      const double expected = 0.5 * inner * (i % 4 + 1) * (j % 2 + 1);
      wrong += job.c()(0, i, j) != 0. || job.c()(1, i, j) != expected;
      squares += expected * expected;
    }
  }
  CHECK(wrong == 0, "%d elements", wrong);
  CHECK(job.squares()[0] == 0. && job.squares()[1] == squares, "%g, %g instead of %g",
        job.squares()[0], job.squares()[1], squares);
}

// Every tile of the matrix once, and of the lower triangle alone where C is symmetric.
void test_tile_order() {
  for (int rows : {1, 2, 7, 8, 9, 16, 33}) {
    for (int cols : {1, 3, 8, 20}) {
      for (const bool symmetric : {false, true}) {
        hopper::Job job{};
        job.symmetric = symmetric;
        job.row_tiles = rows;
        job.col_tiles = symmetric ? rows : cols;
        std::vector<int> seen(job.row_tiles * job.col_tiles);
        const int count = symmetric ? hopper::triangle(rows) : rows * cols;
        bool inside = true;
        for (int number = 0; number < count; ++number) {
          int row = -1, col = -1;
          hopper::locate(job, number, &row, &col);
          inside = inside && row >= 0 && row < job.row_tiles && col >= 0 && col < job.col_tiles &&
                   (!symmetric || col <= row);
          if (inside) ++seen[row * job.col_tiles + col];
        }
        const int most = *std::max_element(seen.begin(), seen.end());
        CHECK(inside && most == 1, "%d x %d, symmetric %d", rows, cols, symmetric);
      }
    }
  }
}

void test_serving() {
  Job<__half> job({Form::kTransposed, 24, 16, 8, 2, "dsq"}, 1);
  const Product good = job.product(0, 2);
  CHECK(hopper::layout_fits(&good, 1), "%s", "a good product");
  CHECK(!hopper::layout_fits(&good, 0), "%s", "no product");
  const std::vector<Product> many(schattor::cuda::kMostGroups + 1, good);
  CHECK(!hopper::layout_fits(many.data(), static_cast<int>(many.size())), "%s", "too many");
  const auto refused = [&](const char* what, auto change) {
    Product x = good;
    change(x);
    CHECK(!hopper::layout_fits(&x, 1), "%s", what);
    CHECK(hopper::multiply_as(&x, 1, nullptr, Schedule::kPingPong, 1, nullptr) ==
              cudaErrorInvalidValue,
          "%s", what);
  };
  refused("float", [](Product& x) { x.dtype = Dtype::kFloat32; });
  refused("inner", [](Product& x) { x.inner = 0; });
  refused("rows", [](Product& x) { x.rows = 0; });
  refused("batch", [](Product& x) { x.batch = 0; });
  refused("ld of A", [](Product& x) { x.a.ld += 1; });
  refused("ld of B", [](Product& x) { x.b.ld += 4; });
  refused("stride of C", [](Product& x) { x.c.stride += 2; });
  refused("stride of S", [](Product& x) { x.s.stride = 0; });
  refused("base of D", [](Product& x) { x.d.data = static_cast<__half*>(x.d.data) + 4; });
  refused("not square", [](Product& x) { x.symmetric = true; });
  refused("symmetric of a row-major B", [](Product& x) {
    x.symmetric = true, x.transposed_b = false;
    x.rows = x.cols = x.inner = 8;
  });
  Product other = good;
  other.dtype = Dtype::kBFloat16;
  const Product mixed[] = {good, other};
  CHECK(!hopper::layout_fits(mixed, 2), "%s", "two dtypes");

  schattor::cuda::DeviceFacts facts{};
  CHECK(device_facts(&facts) == cudaSuccess, "%s", "facts");
  CHECK(hopper::serves(&good, 1) == (facts.arch == 90), "arch %d", facts.arch);
  CHECK(hopper::schedule_of(&good, 1, 2) == Schedule::kCooperative, "%s", "a tile a block");
  CHECK(hopper::schedule_of(&good, 1, 1) == Schedule::kPingPong, "%s", "two tiles a block");
}

void body() {
  test_tile_order();
  test_serving();
  test_cases();
  test_neighbours();
  test_special_values();
  test_plain_numbers();
}

}  // namespace

int main(int argc, char** argv) { return device_test::run(argc, argv, body); }

// Matrices in strips (products.h): getting the wide batch in and directions out, and the element
// loops over them. T is the compute type: float, double, or half precision where there are vectors
// of it.
#pragma once

#include <cstdint>

#include "products.h"
#include "rows.h"
#include "team.h"

namespace schattor::cpu {

template <typename T>
StripLayout strip_layout(int64_t columns);

// The dtype that lies in memory as the compute type does. Half precision computes on no other.
template <typename T>
constexpr Dtype kStoredAs = std::is_same_v<T, Float16>    ? Dtype::kFloat16
                            : std::is_same_v<T, BFloat16> ? Dtype::kBFloat16
                            : std::is_same_v<T, float>    ? Dtype::kFloat32
                                                          : Dtype::kFloat64;
template <typename T>
constexpr bool kConverts = !kIsHalf<T>;

// What comes with a direction: <x, direction> and |direction|^2.
struct Overlap {
  double inner = 0, square = 0;
};

// Rows in memory, so many elements from one to the next.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
};

// Writes (rows, cols) values, rounded to the dtype, where they do not lie there already, and adds
// what the rounded ones have in common with x. The values are overwritten by them.
template <typename T>
void put_direction(const Rows<const T>& x, const Rows<T>& values, int64_t rows, int64_t cols,
                   Dtype dtype, char* to, int64_t to_stride, Overlap& overlap);

// Moves a row-major matrix (columns of the layout, long) into strips as its transpose (long,
// columns), and such strips out into a direction.
template <typename T>
class Transposer {
 public:
  Transposer(const StripLayout& layout, int64_t length, Dtype dtype, Team team, Arena& arena);

  void load(const char* matrix, T* strips) const;
  Overlap store(const T* strips, const char* matrix, char* direction) const;

 private:
  struct Piece {
    int64_t strip, row, rows, begin, count;
  };
  static constexpr int64_t kCount = 128;  // of the long dimension, at a time

  Piece piece(int64_t index) const;
  int64_t at(const Piece& piece) const;  // in bytes
  Rows<const T> rows_of(const char* matrix, const Piece& piece, T* buffer) const;
  void store_piece(const Piece& piece, const T* strips, const char* matrix, char* direction,
                   int64_t worker, Overlap& overlap) const;

  StripLayout layout_;
  int64_t length_;
  Dtype dtype_;
  Team team_;
  int64_t per_strip_, pieces_, buffer_;
  T* buffers_;         // two for each worker
  Overlap* overlaps_;  // one for each piece
};

// A row-major matrix (rows, columns) into strips as it is.
template <typename T>
void load_rows(const StripLayout& layout, int64_t rows, const T* matrix, T* strips, Team team);

// Strips into a row-major matrix: entries of at most `least` become 0, others are multiplied.
template <typename T>
void store_rows(const StripLayout& layout, int64_t rows, const T* strips, T least, T scale,
                T* matrix, Team team);

// Sets the padding of a matrix of so many rows to zero.
template <typename T>
void clear_padding(const StripLayout& layout, int64_t rows, T* matrix);

// The Frobenius norm of a matrix of so many rows.
template <typename T>
double frobenius(const StripLayout& layout, int64_t rows, const T* matrix, Team team,
                 double* partial_sums);

// to = factor x, of so many rows; x may be to.
template <typename T>
void scale(const StripLayout& layout, int64_t rows, double factor, const T* x, T* to, Team team);

// Square matrices of the layout.

// to = a x + b y; x or y may be to.
template <typename T>
void combine(const StripLayout& layout, double a, const T* x, double b, const T* y, T* to,
             Team team);

template <typename T>
void set_identity(const StripLayout& layout, double scale, T* matrix);

template <typename T>
void add_identity(const StripLayout& layout, double scale, T* matrix);

// Takes the mean of its diagonal off the diagonal of a square matrix, and returns it.
template <typename T>
double center(const StripLayout& layout, T* matrix);

template <typename T>
void multiply(const Product<T>& product, Team team);

// Copies the triangle on and above the diagonal onto the other.
template <typename T>
void mirror(const StripLayout& layout, T* matrix, Team team);

}  // namespace schattor::cpu

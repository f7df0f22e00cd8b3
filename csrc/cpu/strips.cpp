#include "strips.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "levels.h"

namespace schattor::cpu {

template <typename T>
StripLayout strip_layout(int64_t columns) {
  const int64_t lanes = kernels().products.in<T>().lanes;
  const int64_t vectors = (columns + lanes - 1) / lanes;
  // Four vectors in two even strips, else strips as wide as they come.
  const int64_t width = (vectors == 4 ? 2 : std::min(vectors, kMaxStripVectors)) * lanes;
  return {columns, lanes, width, (columns + width - 1) / width};
}

template <typename T>
void put_direction(const Rows<const T>& x, const Rows<T>& values, int64_t rows, int64_t cols,
                   Dtype dtype, char* to, int64_t to_stride, Overlap& overlap) {
  if constexpr (kConverts<T>) {
    const RowLoops<T>& loops = kernels().rows.in<T>();
    for (int64_t r = 0; r < rows; ++r) {
      T* row = values.data + r * values.stride;
      char* at = to + r * to_stride * size_of(dtype);
      if (static_cast<void*>(row) == at) continue;
      loops.store(row, cols, dtype, 1, at);
      if (dtype != kStoredAs<T>) loops.load(dtype, at, 1, cols, row);
    }
  }
  kernels().products.in<T>().overlap(x.data, x.stride, values.data, values.stride, rows, cols,
                                     &overlap.inner, &overlap.square);
}

template <typename T>
Transposer<T>::Transposer(const StripLayout& layout, int64_t length, Dtype dtype, Team team,
                          Arena& arena)
    : layout_(layout),
      length_(length),
      dtype_(dtype),
      team_(team),
      per_strip_((length + kCount - 1) / kCount),
      pieces_(per_strip_ * layout.strips),
      buffer_(layout.width * kCount),
      buffers_(arena.take<T>(team.workers() * 2 * buffer_)),
      overlaps_(arena.take<Overlap>(pieces_)) {}

template <typename T>
typename Transposer<T>::Piece Transposer<T>::piece(int64_t index) const {
  const int64_t strip = index / per_strip_, begin = index % per_strip_ * kCount;
  const int64_t row = strip * layout_.width;
  return {strip, row, std::min(layout_.width, layout_.columns - row), begin,
          std::min(kCount, length_ - begin)};
}

template <typename T>
int64_t Transposer<T>::at(const Piece& piece) const {
  return (piece.row * length_ + piece.begin) * size_of(dtype_);
}

// The piece's rows in the compute type: in place where they lie so, else in the buffer.
template <typename T>
Rows<const T> Transposer<T>::rows_of(const char* matrix, const Piece& piece, T* buffer) const {
  const char* from = matrix + at(piece);
  if (dtype_ == kStoredAs<T>) return {reinterpret_cast<const T*>(from), length_};
  if constexpr (kConverts<T>) {
    const RowLoops<T>& rows = kernels().rows.in<T>();
    for (int64_t r = 0; r < piece.rows; ++r, from += length_ * size_of(dtype_)) {
      rows.load(dtype_, from, 1, piece.count, buffer + r * piece.count);
    }
  }
  return {buffer, piece.count};
}

template <typename T>
void Transposer<T>::load(const char* matrix, T* strips) const {
  const RowLoops<T>& loops = kernels().rows.in<T>();
  team_.run([&](Share share) {
    T* buffer = buffers_ + share.worker * 2 * buffer_;
    for (int64_t index = share.begin(pieces_); index < share.end(pieces_); ++index) {
      const Piece part = piece(index);
      const Rows<const T> x = rows_of(matrix, part, buffer);
      T* to = strips + part.strip * layout_.stride(length_) + part.begin * layout_.width;
      loops.transpose(x.data, x.stride, part.rows, part.count, to, layout_.width);
    }
  });
}

template <typename T>
void Transposer<T>::store_piece(const Piece& piece, const T* strips, const char* matrix,
                                char* direction, int64_t worker, Overlap& overlap) const {
  const RowLoops<T>& loops = kernels().rows.in<T>();
  T* const buffers = buffers_ + worker * 2 * buffer_;
  const Rows<const T> x = rows_of(matrix, piece, buffers);
  const T* from = strips + piece.strip * layout_.stride(length_) + piece.begin * layout_.width;
  char* to = direction + at(piece);
  Rows<T> values{buffers + buffer_, piece.count};
  if (dtype_ == kStoredAs<T>) values = {reinterpret_cast<T*>(to), length_};
  loops.transpose(from, layout_.width, piece.count, piece.rows, values.data, values.stride);
  overlap = Overlap{};
  put_direction<T>(x, values, piece.rows, piece.count, dtype_, to, length_, overlap);
}

template <typename T>
Overlap Transposer<T>::store(const T* strips, const char* matrix, char* direction) const {
  team_.run([&](Share share) {
    for (int64_t index = share.begin(pieces_); index < share.end(pieces_); ++index) {
      store_piece(piece(index), strips, matrix, direction, share.worker, overlaps_[index]);
    }
  });
  Overlap total;
  for (int64_t index = 0; index < pieces_; ++index) {
    total.inner += overlaps_[index].inner;
    total.square += overlaps_[index].square;
  }
  return total;
}

template <typename T>
void load_rows(const StripLayout& layout, int64_t rows, const T* matrix, T* strips, Team team) {
  const int64_t width = layout.width;
  team.run([&](Share share) {
    for (int64_t r = share.begin(rows); r < share.end(rows); ++r) {
      const T* from = matrix + r * layout.columns;
      T* to = strips + r * width;
      for (int64_t c = 0; c < layout.columns; c += width, to += layout.stride(rows)) {
        std::copy(from + c, from + std::min(c + width, layout.columns), to);
      }
    }
  });
}

template <typename T>
void store_rows(const StripLayout& layout, int64_t rows, const T* strips, T least, T scale,
                T* matrix, Team team) {
  const RowLoops<T>& loops = kernels().rows.in<T>();
  const int64_t width = layout.width;
  team.run([&](Share share) {
    for (int64_t r = share.begin(rows); r < share.end(rows); ++r) {
      const T* from = strips + r * width;
      T* to = matrix + r * layout.columns;
      for (int64_t c = 0; c < layout.columns; c += width, from += layout.stride(rows)) {
        loops.shrink(least, scale, from, std::min(width, layout.columns - c), to + c);
      }
    }
  });
}

template <typename T>
void clear_padding(const StripLayout& layout, int64_t rows, T* matrix) {
  const int64_t stride = layout.stride(rows);
  for (int64_t strip = 0; strip < layout.strips; ++strip) {
    std::fill(matrix + strip * stride + rows * layout.width, matrix + (strip + 1) * stride, T{0});
  }
  if (layout.columns % layout.width != 0) {
    std::fill(matrix + (layout.strips - 1) * stride, matrix + layout.strips * stride, T{0});
  }
}

template <typename T>
double frobenius(const StripLayout& layout, int64_t rows, const T* matrix, Team team,
                 double* partial_sums) {
  const RowLoops<T>& loops = kernels().rows.in<T>();
  const int64_t stride = layout.stride(rows);
  team.run([&](Share share) {
    for (int64_t strip = share.begin(layout.strips); strip < share.end(layout.strips); ++strip) {
      partial_sums[strip] = loops.squares(1, matrix + strip * stride, stride);
    }
  });
  double sum = 0;
  for (int64_t strip = 0; strip < layout.strips; ++strip) sum += partial_sums[strip];
  return std::sqrt(sum);
}

template <typename T>
void scale(const StripLayout& layout, int64_t rows, double factor, const T* x, T* to, Team team) {
  const RowLoops<T>& loops = kernels().rows.in<T>();
  const int64_t lines = layout.size(rows) / layout.width;
  team.run([&](Share share) {
    const int64_t begin = share.begin(lines) * layout.width;
    const int64_t end = share.end(lines) * layout.width;
    loops.scale({1, static_cast<Scalar<T>>(factor)}, x + begin, end - begin, to + begin);
  });
}

template <typename T>
void combine(const StripLayout& layout, double a, const T* x, double b, const T* y, T* to,
             Team team) {
  const RowLoops<T>& rows = kernels().rows.in<T>();
  const Blend<T> blend{static_cast<T>(a), static_cast<T>(b)};
  const int64_t lines = layout.size(layout.columns) / layout.width;
  team.run([&](Share share) {
    const int64_t begin = share.begin(lines) * layout.width;
    const int64_t end = share.end(lines) * layout.width;
    rows.blend(blend, x + begin, y + begin, end - begin, to + begin);
  });
}

template <typename T>
void set_identity(const StripLayout& layout, double scale, T* matrix) {
  std::fill(matrix, matrix + layout.size(layout.columns), T{0});
  add_identity(layout, scale, matrix);
}

template <typename T>
void add_identity(const StripLayout& layout, double scale, T* matrix) {
  const int64_t stride = layout.stride(layout.columns), width = layout.width;
  for (int64_t i = 0; i < layout.columns; ++i) {
    matrix[i / width * stride + i * width + i % width] += static_cast<T>(scale);
  }
}

namespace {

// Calls change(value) with every element of a diagonal as a float, which is stored again.
template <typename T, typename Change>
void each_diagonal(const StripLayout& layout, T* matrix, Change change) {
  constexpr int64_t kPiece = 64;
  const RowLoops<float>& rows = kernels().rows.in<float>();
  const int64_t width = layout.width;
  float values[kPiece];
  for (int64_t i = 0, count; i < layout.columns; i += count) {
    count = std::min({kPiece, width - i % width, layout.columns - i});
    T* at = matrix + i / width * layout.stride(layout.columns) + i * width + i % width;
    rows.load(kStoredAs<T>, at, width + 1, count, values);
    for (int64_t k = 0; k < count; ++k) change(values[k]);
    rows.store(values, count, kStoredAs<T>, width + 1, at);
  }
}

}  // namespace

template <typename T>
double center(const StripLayout& layout, T* matrix) {
  double mean = 0;
  each_diagonal(layout, matrix, [&](float& value) { mean += value / layout.columns; });
  each_diagonal(layout, matrix, [&](float& value) { value -= static_cast<float>(mean); });
  return mean;
}

template <typename T>
void multiply(const Product<T>& product, Team team) {
  const Products<T>& products = kernels().products.in<T>();
  team.run([&](Share share) { products.multiply(product, share); });
}

template <typename T>
void mirror(const StripLayout& layout, T* matrix, Team team) {
  const Products<T>& products = kernels().products.in<T>();
  team.run([&](Share share) { products.mirror(layout, matrix, share); });
}

#define SCHATTOR_INSTANTIATE(T)                                                                 \
  template StripLayout strip_layout<T>(int64_t);                                                \
  template void put_direction<T>(const Rows<const T>&, const Rows<T>&, int64_t, int64_t, Dtype, \
                                 char*, int64_t, Overlap&);                                     \
  template class Transposer<T>;                                                                 \
  template void clear_padding<T>(const StripLayout&, int64_t, T*);                              \
  template double frobenius<T>(const StripLayout&, int64_t, const T*, Team, double*);           \
  template void scale<T>(const StripLayout&, int64_t, double, const T*, T*, Team);              \
  template void multiply<T>(const Product<T>&, Team);
SCHATTOR_INSTANTIATE(float)
SCHATTOR_INSTANTIATE(double)
SCHATTOR_INSTANTIATE(Float16)
SCHATTOR_INSTANTIATE(BFloat16)
#undef SCHATTOR_INSTANTIATE

template double center<Float16>(const StripLayout&, Float16*);
template double center<BFloat16>(const StripLayout&, BFloat16*);

// What is never in half precision: rows as they are, and what the Gram side alone needs.
#define SCHATTOR_INSTANTIATE(T)                                                               \
  template void load_rows<T>(const StripLayout&, int64_t, const T*, T*, Team);                \
  template void store_rows<T>(const StripLayout&, int64_t, const T*, T, T, T*, Team);         \
  template void combine<T>(const StripLayout&, double, const T*, double, const T*, T*, Team); \
  template void set_identity<T>(const StripLayout&, double, T*);                              \
  template void add_identity<T>(const StripLayout&, double, T*);                              \
  template void mirror<T>(const StripLayout&, T*, Team);
SCHATTOR_INSTANTIATE(float)
SCHATTOR_INSTANTIATE(double)
#undef SCHATTOR_INSTANTIATE

}  // namespace schattor::cpu

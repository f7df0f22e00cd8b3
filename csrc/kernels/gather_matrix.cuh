// What gather_momentum applies of one matrix, tile by tile: M, or w M.
#pragma once

#include "gather_norm.cuh"

namespace schattor::cuda::gather {

constexpr int kTable = 128;  // matrices a launch

struct Params {
  int64_t rows, cols;
  Dtype grad_dtype, momentum_dtype, wide_dtype;
  bool has_momentum;
  MomentumRule rule;
  double size;
  char* wide;  // of the first matrix of the launch, as all that follow
  double* norms;
  uint8_t* finite;
  double* partials;  // (matrices, strips, kParts): launches follow each other and share them
  int strips;
  struct {
    View grad, momentum;
  } matrices[kTable];
};

// Apart, so that launches without weights carry no more than before.
struct WeightedParams : Params {
  char* weights;  // of the compute type
};

struct AdaptiveParams : WeightedParams {
  Dtype square_dtype;
  bool square_root;
  const double *beta, *corrections, *eps, *exponent;
  View squares[kTable];
};

// One matrix, cut as its gradient lies.
template <class T>
class Matrix {
 public:
  using Number = T;
  using Given = Params;

  DEV Matrix(const Params& p, int index, T* turning) : Matrix(p, index, turning, true) {}

  DEV Grid tiles() const { return grid(p_.rows, p_.cols, cut_); }

  // A tile of M.
  DEV void apply(const Tile& tile, Entries<T>& entries) const {
    const Loads<T> grads(grad(), tile);
    if (!p_.has_momentum) return grads.finish(turning_, entries);
    const Loads<T> momenta(momentum(), tile);
    grads.finish(turning_, entries);
    blend_in(momenta, entries);
  }
  DEV void write(Entries<T>& entries, const Tile& tile) const {
    store(entries, wide(), tile, turning_);
  }
  // Norm and flag, by one thread of all the matrix's blocks. True where there is M to divide.
  DEV bool conclude(const Norm& norm, bool writer) const {
    const bool usable = norm.is_finite() && norm.root > 0;
    if (writer) {
      p_.norms[index_] = usable ? norm.over(p_.size) : 0;
      p_.finite[index_] = norm.is_finite();
    }
    return usable;
  }

 protected:
  // `flat`: every list that only a derived class has is contiguous.
  DEV Matrix(const Params& p, int index, T* turning, bool flat)
      : p_(p), index_(index), turning_(turning), cut_(cut_of(p, index, flat)) {}

  // Made anew where they are used: held from tile to tile, they take the registers of entries.
  DEV Side grad() const { return {p_.matrices[index()].grad, p_.grad_dtype, cut_}; }
  DEV Side momentum() const { return {p_.matrices[index()].momentum, p_.momentum_dtype, cut_}; }
  DEV Side wide() const { return in_batch(p_.wide, p_.wide_dtype); }
  // This matrix in a contiguous batch.
  DEV Side in_batch(char* data, Dtype dtype) const {
    return {{data + index() * (p_.rows * p_.cols) * size_of(dtype), p_.cols, 1}, dtype, cut_};
  }
  DEV int index() const { return dev::opaque(index_); }
  // M in place of g.
  DEV void blend_in(const Loads<T>& momenta, Entries<T>& entries) const {
    Entries<T> m;
    momenta.finish(turning_, m);
    const Blend<T> blend(p_.rule);
#pragma unroll
    for (int k = 0; k < kUnit; ++k) {
      const T g = entries.x[k], updated = blend(m.x[k], g);
      entries.x[k] = p_.rule.nesterov ? blend(updated, g) : updated;
    }
  }

  const Params& p_;
  const int index_;
  T* const turning_;
  const Cut cut_;

 private:
  DEV static Cut cut_of(const Params& p, int index, bool flat) {
    const View &grad = p.matrices[index].grad, &momentum = p.matrices[index].momentum;
    flat = flat && is_contiguous(grad, p.rows, p.cols) &&
           (!p.has_momentum || is_contiguous(momentum, p.rows, p.cols));
    if (flat) return Cut::kFlat;
    return lies_transposed(grad, p.rows) ? Cut::kColumns : Cut::kRows;
  }
};

// With weights as they are stored.
template <class T>
class WeightedMatrix : public Matrix<T> {
 public:
  using Given = WeightedParams;

  DEV WeightedMatrix(const WeightedParams& p, int index, T* turning)
      : WeightedMatrix(p, index, turning, true) {}

  // A tile of w M.
  DEV void apply(const Tile& tile, Entries<T>& entries) const {
    Matrix<T>::apply(tile, entries);
    Entries<T> w;
    Loads<T>(weights(), tile).finish(this->turning_, w);
    multiply(w, entries);
  }

 protected:
  DEV WeightedMatrix(const WeightedParams& p, int index, T* turning, bool flat)
      : Matrix<T>(p, index, turning, flat), p_(p) {}

  DEV Side weights() const { return this->in_batch(p_.weights, kDtype); }

  DEV static void multiply(const Entries<T>& w, Entries<T>& entries) {
#pragma unroll
    for (int k = 0; k < kUnit; ++k) entries.x[k] *= w.x[k];
  }

 private:
  const WeightedParams& p_;
  static constexpr Dtype kDtype = sizeof(T) == sizeof(double) ? Dtype::kFloat64 : Dtype::kFloat32;
};

DEV float power(float x, float exponent) { return powf(x, exponent); }
DEV double power(double x, double exponent) { return pow(x, exponent); }

// With weights that follow from second moments, and are stored.
template <class T>
class AdaptiveMatrix : public WeightedMatrix<T> {
 public:
  using Given = AdaptiveParams;

  DEV AdaptiveMatrix(const AdaptiveParams& p, int index, T* turning)
      : WeightedMatrix<T>(p, index, turning, is_contiguous(p.squares[index], p.rows, p.cols)),
        p_(p) {}

  // A tile of w M.
  DEV void apply(const Tile& tile, Entries<T>& entries) const {
    const Loads<T> grads(this->grad(), tile), moments(squares(), tile);
    Entries<T> w;
    grads.finish(this->turning_, entries);
    moments.finish(this->turning_, w);
    const bool sound = average(entries, w);
    weigh(w);
    if (p_.has_momentum) this->blend_in(Loads<T>(this->momentum(), tile), entries);
    this->multiply(w, entries);
    // The norm, and by it the flag, tells of second moments that are not finite though w M is.
    if (!sound) entries.x[0] = static_cast<T>(NAN);
    store(w, this->weights(), tile, this->turning_);
  }

 private:
  // The new second moments in place of the old. True where they are finite.
  DEV bool average(const Entries<T>& g, Entries<T>& v) const {
    const Average<T> average(p_.beta);
    bool sound = true;
#pragma unroll
    for (int k = 0; k < kUnit; ++k) {
      v.x[k] = average(v.x[k], g.x[k]);
      sound = sound && v.x[k] - v.x[k] == 0;
    }
    return sound;
  }

  // Weights in place of second moments; one after the other, by way of the thread's own places in
  // shared memory, for eight powers side by side want more registers than there are.
  DEV void weigh(Entries<T>& entries) const {
    const T correction = static_cast<T>(p_.corrections[this->index_]);
    const T eps = static_cast<T>(p_.eps[this->index_]);
    const T exponent = static_cast<T>(-p_.exponent[this->index_]);
    T* const places = this->turning_ + threadIdx.x;
#pragma unroll
    for (int k = 0; k < kUnit; ++k) places[k * kThreads] = entries.x[k];
#pragma unroll 1
    for (int k = 0; k < kUnit; ++k) {
      const T v = places[k * kThreads], corrected = v / correction;
      const T base = (p_.square_root ? sqrt(corrected) : corrected) + eps;
      places[k * kThreads] = v > 0 ? power(base, exponent) : T(0);
    }
#pragma unroll
    for (int k = 0; k < kUnit; ++k) entries.x[k] = places[k * kThreads];
    __syncthreads();  // now others may write there
  }

  DEV Side squares() const { return {p_.squares[this->index()], p_.square_dtype, this->cut_}; }

  const AdaptiveParams& p_;
};

}  // namespace schattor::cuda::gather

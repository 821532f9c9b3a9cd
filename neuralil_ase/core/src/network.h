// Networks as tapes of simple operations on columns, one atom in each lane, forward and backward.
//
// tape.cpp writes the tape; the layers are those of network.py. A column is one number of every atom of a register.
// Elementwise functions and layer normalisation overwrite what they read with what their way back needs.

#pragma once

#include "simd.h"

namespace neuralil::NEURALIL_ISA {

constexpr double kNormEpsilon = 1e-6;  // flax.linen.LayerNorm

// ---------------------------------------------------------------- products

constexpr int kAbreast = 2;  // registers of atoms that go through a network together and share loads of weights

// sums[i] = sum_k matrix[i * row_stride + k * stride] * x[k] for kRows rows i, held in registers, and for registers of
// atoms whose columns lie `apart` from each other; with `adds`, this is added to the sums.
template <class T, int kRows, int kRegisters>
inline void sum_products(const T* matrix, std::int64_t row_stride, std::int64_t stride, std::int64_t n, const Vec<T>* x,
                         bool adds, Vec<T>* sums, std::int64_t apart) {
  Vec<T> sum[kRows][kRegisters];
  for (int i = 0; i < kRows; ++i)
    for (int r = 0; r < kRegisters; ++r) sum[i][r] = adds ? sums[r * apart + i] : Vec<T>{};
  for (std::int64_t k = 0; k < n; ++k) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int r = 0; r < kRegisters; ++r) sum[i][r] += matrix[i * row_stride + k * stride] * x[r * apart + k];
  }
  for (int i = 0; i < kRows; ++i)
    for (int r = 0; r < kRegisters; ++r) sums[r * apart + i] = sum[i][r];
}

// The same for `count` rows.
template <class T, int kRegisters>
void multiply(const T* matrix, std::int64_t count, std::int64_t row_stride, std::int64_t stride, std::int64_t n,
              const Vec<T>* x, bool adds, Vec<T>* sums, std::int64_t apart) {
  // Independent sums hide the latency; they must fit the 32 or 16 registers, and pointers to rows those for integers.
  constexpr int many = kRegisterBytes == 64 || kRegisters == 1 ? 8 : 4;
  std::int64_t i = 0;
  for (; i + many <= count; i += many)
    sum_products<T, many, kRegisters>(matrix + i * row_stride, row_stride, stride, n, x, adds, sums + i, apart);
  for (; i + 4 <= count; i += 4)
    sum_products<T, 4, kRegisters>(matrix + i * row_stride, row_stride, stride, n, x, adds, sums + i, apart);
  for (; i < count; ++i)
    sum_products<T, 1, kRegisters>(matrix + i * row_stride, row_stride, stride, n, x, adds, sums + i, apart);
}

// ---------------------------------------------------------------- elementwise functions

// Each writes its value and leaves its slope in place of the argument.
template <class T>
void swish(Vec<T>* x, std::int64_t n, Vec<T>* y) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Vec<T> sigmoid = 1 / (1 + exp<T>(-x[i]));
    y[i] = x[i] * sigmoid;
    x[i] = sigmoid + y[i] * (1 - sigmoid);
  }
}

template <class T>
void tanh(Vec<T>* x, std::int64_t n, Vec<T>* y) {
  for (std::int64_t i = 0; i < n; ++i) {
    for (int k = 0; k < kLanes<T>; ++k) y[i][k] = std::tanh(x[i][k]);
    x[i] = 1 - y[i] * y[i];
  }
}

template <class T>
void softplus(Vec<T>* x, std::int64_t n, Vec<T>* y) {
  for (std::int64_t i = 0; i < n; ++i) {
    for (int k = 0; k < kLanes<T>; ++k)
      y[i][k] = std::log1p(std::exp(-std::abs(x[i][k]))) + (x[i][k] < 0 ? T(0) : x[i][k]);
    x[i] = 1 / (1 + exp<T>(-x[i]));
  }
}

// The column of the element of every atom. Leaves ones there and zeros elsewhere: the slopes.
template <class T>
void pick(Vec<T>* x, std::int64_t n, const std::int32_t* types, Vec<T>* y) {
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    y[0][lane] = x[types[lane]][lane];
    for (std::int64_t i = 0; i < n; ++i) x[i][lane] = i == types[lane] ? T(1) : T(0);
  }
}

// ---------------------------------------------------------------- layer normalisation

// Sum of term(0) ... term(n - 1), in four sums that need not wait for each other.
template <class T, class Term>
inline Vec<T> sum_of(std::int64_t n, const Term& term) {
  Vec<T> sum[4] = {};
  std::int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int k = 0; k < 4; ++k) sum[k] += term(i + k);
  for (; i < n; ++i) sum[0] += term(i);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// y = scale x_hat + bias. Leaves x_hat, the normalised x, in place of x, and 1 / std behind y.
template <class T>
void normalise(Vec<T>* x, std::int64_t n, const T* scale, const T* bias, Vec<T>* y) {
  const Vec<T> mean = sum_of<T>(n, [&](std::int64_t i) { return x[i]; }) / T(n);
  const Vec<T> square = sum_of<T>(n, [&](std::int64_t i) { return (x[i] - mean) * (x[i] - mean); });
  T inverse_std[kLanes<T>];
  const Vec<T> variance = square / T(n) + T(kNormEpsilon);
  for (int k = 0; k < kLanes<T>; ++k) inverse_std[k] = 1 / std::sqrt(variance[k]);
  std::memcpy(y + n, inverse_std, sizeof inverse_std);
  const Vec<T> factor = y[n];
  for (std::int64_t i = 0; i < n; ++i) {
    x[i] = (x[i] - mean) * factor;
    y[i] = x[i] * scale[i] + bias[i];
  }
}

// by_x = (h - mean(h) - x_hat mean(h x_hat)) / std, h = scale by_y.
template <class T>
void pull_back_norm(const Vec<T>* x_hat, std::int64_t n, const T* scale, Vec<T> inverse_std, const Vec<T>* by_y,
                    Vec<T>* by_x) {
  const Vec<T> mean = sum_of<T>(n, [&](std::int64_t i) { return scale[i] * by_y[i]; }) / T(n);
  const Vec<T> along = sum_of<T>(n, [&](std::int64_t i) { return scale[i] * by_y[i] * x_hat[i]; }) / T(n);
  for (std::int64_t i = 0; i < n; ++i) by_x[i] = inverse_std * (scale[i] * by_y[i] - mean - along * x_hat[i]);
}

// ---------------------------------------------------------------- the tape

template <class T>
struct Tape : Network<T> {
  using Network<T>::operations;
  using Network<T>::n_shared;
  using Network<T>::n_columns;
  using Network<T>::n_shared_columns;

  explicit Tape(const Network<T>& network) : Network<T>(network) {}

  const T* parameter(std::int64_t operation, std::int64_t number, std::int64_t member) const {
    if (number < 0) return nullptr;
    const Parameter<T>& found = this->parameters[number];
    return found.data + (operation < n_shared ? 0 : member) * found.size;
  }

  // Runs operations first ... last - 1 for some registers of atoms, with their types; n_columns for each register.
  void forward(std::int64_t first, std::int64_t last, std::int64_t member, const std::int32_t* types, int n_registers,
               Vec<T>* columns) const {
    for (std::int64_t k = first; k < last; ++k) {
      const Operation& op = operations[k];
      const T *weights = parameter(k, op.kind == kAdd ? -1 : op.weights, member), *bias = parameter(k, op.bias, member);
      for (int r = 0; r < n_registers; ++r) {
        Vec<T>*x = columns + r * n_columns + op.source, *y = columns + r * n_columns + op.target;
        switch (op.kind) {
          case kEmbed:
            for (std::int64_t i = 0; i < op.n_out; ++i)
              for (int lane = 0; lane < kLanes<T>; ++lane)
                y[i][lane] = weights[types[r * kLanes<T> + lane] * op.n_out + i];
            break;
          case kDense:
            for (std::int64_t i = 0; i < op.n_out; ++i) y[i] = Vec<T>{} + (bias ? bias[i] : T(0));
            break;
          case kNorm: normalise<T>(x, op.n_in, weights, bias, y); break;
          case kSwish: swish<T>(x, op.n_in, y); break;
          case kTanh: tanh<T>(x, op.n_in, y); break;
          case kSoftplus: softplus<T>(x, op.n_in, y); break;
          case kAdd:
            for (std::int64_t i = 0; i < op.n_in; ++i) y[i] = x[i] + columns[r * n_columns + op.weights + i];
            break;
          case kPick: pick<T>(x, op.n_in, types + r * kLanes<T>, y); break;
        }
      }
      if (op.kind == kDense)
        multiply_abreast(weights, op.n_out, 1, op.n_out, op.n_in, n_registers, columns + op.source, true,
                         columns + op.target);
    }
  }

  // Runs operations last - 1 ... first backwards, from cotangents of what they write to those of what they read. Those
  // of the columns that all members share are added to what is there when `adds_to_shared`.
  void backward(std::int64_t first, std::int64_t last, std::int64_t member, int n_registers, const Vec<T>* columns,
                bool adds_to_shared, Vec<T>* cotangents) const {
    for (std::int64_t k = last; k-- > first;) {
      const Operation& op = operations[k];
      const T* weights = parameter(k, op.kind == kAdd ? -1 : op.weights, member);
      if (op.kind == kDense)
        multiply_abreast(weights, op.n_in, op.n_out, 1, op.n_out, n_registers, cotangents + op.target,
                         op.adds || (adds_to_shared && op.source < n_shared_columns), cotangents + op.source);
      if (op.kind == kDense || op.kind == kEmbed) continue;
      for (int r = 0; r < n_registers; ++r) {
        const Vec<T>*x = columns + r * n_columns + op.source, *y = columns + r * n_columns + op.target;
        Vec<T>*by_x = cotangents + r * n_columns + op.source, *by_y = cotangents + r * n_columns + op.target;
        if (op.kind == kNorm) {
          pull_back_norm<T>(x, op.n_in, weights, y[op.n_in], by_y, by_x);
        } else if (op.kind == kAdd) {
          const bool adds = adds_to_shared && op.weights < n_shared_columns;
          Vec<T>* by_other = cotangents + r * n_columns + op.weights;
          for (std::int64_t i = 0; i < op.n_in; ++i) {
            by_x[i] = by_y[i];
            by_other[i] = adds ? by_other[i] + by_y[i] : by_y[i];
          }
        } else if (op.kind == kPick) {
          for (std::int64_t i = 0; i < op.n_in; ++i) by_x[i] = by_y[0] * x[i];
        } else {  // an elementwise function, whose slope stands in place of its argument
          for (std::int64_t i = 0; i < op.n_in; ++i) by_x[i] = by_y[i] * x[i];
        }
      }
    }
  }

 private:
  void multiply_abreast(const T* matrix, std::int64_t count, std::int64_t row_stride, std::int64_t stride,
                        std::int64_t n, int n_registers, const Vec<T>* x, bool adds, Vec<T>* sums) const {
    const auto function = n_registers == 1 ? multiply<T, 1> : multiply<T, kAbreast>;
    function(matrix, count, row_stride, stride, n, x, adds, sums, n_columns);
  }
};

}  // namespace neuralil::NEURALIL_ISA

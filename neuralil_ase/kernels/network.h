// Networks as tapes of simple operations on columns, one atom in each lane, forward and backward.
//
// The tape is written by network_tape.py, which also defines the operations. A column is one number of every atom
// of a register; operations read columns from `source` on and write new ones from `target` on.

#pragma once

#include <vector>

#include "registers.h"

namespace neuralil {

enum Kind : std::int64_t { kEmbed, kDense, kNorm, kSwish, kTanh, kSoftplus, kAdd };

struct Operation {
  std::int64_t kind, source, target, n_in, n_out;
  std::int64_t weights, bias;  // parameters by number, -1 without; for kAdd `weights` is the second source
};

// A parameter of all members, or of none: then all share it.
template <class T>
struct Parameter {
  const T* data;
  std::int64_t size;  // of one member's share
};

constexpr double kNormEpsilon = 1e-6;  // flax.linen.LayerNorm

// ---------------------------------------------------------------- products

// sums[i] += sum_k matrix[i * row_stride + k * stride] * x[k], for `count` rows i, some at a time in registers.
template <class T, int kRows>
inline void add_products(const T* matrix, std::int64_t row_stride, std::int64_t stride, std::int64_t n,
                         const Vec<T>* x, Vec<T>* sums) {
  Vec<T> sum[kRows];
  for (int i = 0; i < kRows; ++i) sum[i] = sums[i];
  for (std::int64_t k = 0; k < n; ++k) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) sum[i] += matrix[i * row_stride + k * stride] * x[k];
  }
  for (int i = 0; i < kRows; ++i) sums[i] = sum[i];
}

template <class T>
void multiply_add(const T* matrix, std::int64_t count, std::int64_t row_stride, std::int64_t stride,
                  std::int64_t n, const Vec<T>* x, Vec<T>* sums) {
  constexpr int many = 8;  // independent sums hide the latency; rows of more need more pointers than registers
  std::int64_t i = 0;
  for (; i + many <= count; i += many)
    add_products<T, many>(matrix + i * row_stride, row_stride, stride, n, x, sums + i);
  for (; i + 4 <= count; i += 4)
    add_products<T, 4>(matrix + i * row_stride, row_stride, stride, n, x, sums + i);
  for (; i < count; ++i) add_products<T, 1>(matrix + i * row_stride, row_stride, stride, n, x, sums + i);
}

// ---------------------------------------------------------------- elementwise functions

// Each writes its value and its slope, `n` columns behind it.
template <class T>
void swish(const Vec<T>* x, std::int64_t n, Vec<T>* y) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Vec<T> sigmoid = 1 / (1 + exp<T>(-x[i]));
    y[i] = x[i] * sigmoid;
    y[n + i] = sigmoid + y[i] * (1 - sigmoid);
  }
}

template <class T>
void tanh(const Vec<T>* x, std::int64_t n, Vec<T>* y) {
  for (std::int64_t i = 0; i < n; ++i) {
    for (int k = 0; k < kLanes<T>; ++k) y[i][k] = std::tanh(x[i][k]);
    y[n + i] = 1 - y[i] * y[i];
  }
}

template <class T>
void softplus(const Vec<T>* x, std::int64_t n, Vec<T>* y) {
  for (std::int64_t i = 0; i < n; ++i) {
    y[n + i] = 1 / (1 + exp<T>(-x[i]));
    for (int k = 0; k < kLanes<T>; ++k)
      y[i][k] = std::log1p(std::exp(-std::abs(x[i][k]))) + (x[i][k] < 0 ? T(0) : x[i][k]);
  }
}

// ---------------------------------------------------------------- layer normalisation

template <class T>
struct Moments {
  Vec<T> mean = {}, inverse_std = {};

  Moments(const Vec<T>* x, std::int64_t n) {
    Vec<T> square = {};
    for (std::int64_t i = 0; i < n; ++i) mean += x[i];
    mean /= T(n);
    for (std::int64_t i = 0; i < n; ++i) square += (x[i] - mean) * (x[i] - mean);
    T variance[kLanes<T>];
    square = square / T(n) + T(kNormEpsilon);
    std::memcpy(variance, &square, sizeof square);
    for (T& value : variance) value = 1 / std::sqrt(value);
    std::memcpy(&inverse_std, variance, sizeof variance);
  }
};

template <class T>
void normalise(const Vec<T>* x, std::int64_t n, const T* scale, const T* bias, Vec<T>* y) {
  const Moments<T> moments(x, n);
  for (std::int64_t i = 0; i < n; ++i)
    y[i] = (x[i] - moments.mean) * moments.inverse_std * scale[i] + bias[i];
}

// by_x += inverse_std (h - mean(h) - x_hat mean(h x_hat)), h = scale by_y, x_hat the normalised x.
template <class T>
void pull_back_norm(const Vec<T>* x, std::int64_t n, const T* scale, const Vec<T>* by_y, Vec<T>* by_x) {
  const Moments<T> moments(x, n);
  Vec<T> sum = {}, along = {};
  for (std::int64_t i = 0; i < n; ++i) {
    sum += scale[i] * by_y[i];
    along += scale[i] * by_y[i] * (x[i] - moments.mean);
  }
  sum /= T(n);
  along *= moments.inverse_std * moments.inverse_std / T(n);
  for (std::int64_t i = 0; i < n; ++i)
    by_x[i] += moments.inverse_std * (scale[i] * by_y[i] - sum - along * (x[i] - moments.mean));
}

// ---------------------------------------------------------------- the tape

template <class T>
struct Tape {
  const Operation* operations;
  std::int64_t n_operations;
  std::int64_t n_shared;    // the first ones have the same parameters in all members
  std::int64_t n_backward;  // those behind do not act on the energy
  std::int64_t n_columns, n_shared_columns;
  std::vector<std::int64_t> outputs;  // columns; the first is the energy
  std::vector<Parameter<T>> parameters;

  const T* parameter(std::int64_t operation, std::int64_t number, std::int64_t member) const {
    if (number < 0) return nullptr;
    return parameters[number].data + (operation < n_shared ? 0 : member) * parameters[number].size;
  }

  // Runs operations first ... last - 1 for atoms of some types.
  void forward(std::int64_t first, std::int64_t last, std::int64_t member, const std::int32_t* types,
               Vec<T>* columns) const {
    for (std::int64_t k = first; k < last; ++k) {
      const Operation& op = operations[k];
      const T *weights = parameter(k, op.kind == kAdd ? -1 : op.weights, member), *bias = parameter(k, op.bias, member);
      const Vec<T>* x = columns + op.source;
      Vec<T>* y = columns + op.target;
      switch (op.kind) {
        case kEmbed:
          for (std::int64_t i = 0; i < op.n_out; ++i)
            for (int lane = 0; lane < kLanes<T>; ++lane) y[i][lane] = weights[types[lane] * op.n_out + i];
          break;
        case kDense:
          for (std::int64_t i = 0; i < op.n_out; ++i) y[i] = Vec<T>{} + (bias ? bias[i] : T(0));
          multiply_add<T>(weights, op.n_out, 1, op.n_out, op.n_in, x, y);
          break;
        case kNorm: normalise<T>(x, op.n_in, weights, bias, y); break;
        case kSwish: swish<T>(x, op.n_in, y); break;
        case kTanh: tanh<T>(x, op.n_in, y); break;
        case kSoftplus: softplus<T>(x, op.n_in, y); break;
        case kAdd:
          for (std::int64_t i = 0; i < op.n_in; ++i) y[i] = x[i] + columns[op.weights + i];
          break;
      }
    }
  }

  // Runs operations last - 1 ... first backwards: adds to the cotangents of what they read.
  void backward(std::int64_t first, std::int64_t last, std::int64_t member, const Vec<T>* columns,
                Vec<T>* cotangents) const {
    for (std::int64_t k = last; k-- > first;) {
      const Operation& op = operations[k];
      const T* weights = parameter(k, op.kind == kAdd ? -1 : op.weights, member);
      const Vec<T>*x = columns + op.source, *by_y = cotangents + op.target;
      Vec<T>* by_x = cotangents + op.source;
      switch (op.kind) {
        case kEmbed: break;
        case kDense: multiply_add<T>(weights, op.n_in, op.n_out, 1, op.n_out, by_y, by_x); break;
        case kNorm: pull_back_norm<T>(x, op.n_in, weights, by_y, by_x); break;
        case kAdd:
          for (std::int64_t i = 0; i < op.n_in; ++i) {
            by_x[i] += by_y[i];
            cotangents[op.weights + i] += by_y[i];
          }
          break;
        default: {  // an elementwise function
          const Vec<T>* slope = columns + op.target + op.n_in;
          for (std::int64_t i = 0; i < op.n_in; ++i) by_x[i] += by_y[i] * slope[i];
        }
      }
    }
  }
};

}  // namespace neuralil

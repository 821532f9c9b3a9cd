// One lane of a SIMD register for every pair or every atom: registers, their transposition, exp.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "views.h"

// These files are compiled once for every instruction set, each time in a namespace of its own. They must not call
// functions of the standard library that are compiled out of line (containers, algorithms): the linker keeps one copy
// of such a function for the whole library, perhaps one with instructions that the processor does not have.
// tests/test_core_build.py looks for such copies.
#ifndef NEURALIL_ISA
#error "compile through instance.cpp, with NEURALIL_ISA defined"
#endif

namespace neuralil::NEURALIL_ISA {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <class T>
struct Register {
  typedef T type __attribute__((vector_size(kRegisterBytes)));
};
template <class T>
using Vec = typename Register<T>::type;
template <class T>
constexpr int kLanes = kRegisterBytes / sizeof(T);

template <class T>
struct HalfRegister {
  typedef T type __attribute__((vector_size(kRegisterBytes / 2)));
};
template <class T>
using Half = typename HalfRegister<T>::type;

template <class T>
inline T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class V>
inline void fill_zero(V* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = V{};
}

// Numbers or registers on the heap, zero at first.
template <class V>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t size) { reserve(size); }
  ~Buffer() { release(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Room for `size`; what was there is lost when there was less.
  void reserve(std::int64_t size) {
    if (size <= size_) return;
    release(data_);
    data_ = nullptr, size_ = 0;
    data_ = static_cast<V*>(allocate(std::size_t(size) * sizeof(V)));
    size_ = size;
    fill_zero(data_, size);
  }

  V* data() { return data_; }
  std::int64_t size() const { return size_; }
  V& operator[](std::int64_t i) { return data_[i]; }
  const V& operator[](std::int64_t i) const { return data_[i]; }

 private:
  V* data_ = nullptr;
  std::int64_t size_ = 0;
};

template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <class T>
inline void store(Vec<T> x, T* to) {
  std::memcpy(to, &x, sizeof x);
}

template <class H, std::size_t... Lane>
inline auto join(H low, H high, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(low, high, Lane...);
}

// ---------------------------------------------------------------- transposition in registers

// Exchanges the off-diagonal quarters of the 2x2 blocks of side `Stride` in two rows.
template <class T, int Stride, std::size_t... Lane>
inline void exchange(Vec<T>& upper, Vec<T>& lower, std::index_sequence<Lane...>) {
  constexpr int n = kLanes<T>;
  const Vec<T> a = upper, b = lower;
  upper = __builtin_shufflevector(a, b, (Lane & Stride ? n + (Lane ^ Stride) : Lane)...);
  lower = __builtin_shufflevector(a, b, (Lane & Stride ? n + Lane : (Lane ^ Stride))...);
}

// Transposes a square of kLanes registers in place.
template <class T, int Stride = kLanes<T> / 2>
inline void transpose(Vec<T>* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (!(i & Stride)) exchange<T, Stride>(rows[i], rows[i | Stride], std::make_index_sequence<kLanes<T>>{});
  if constexpr (Stride > 1) transpose<T, Stride / 2>(rows);
}

// Number of registers for `width` columns, whole squares counted.
template <class T>
constexpr int padded(int width) {
  return (width + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// columns[i] = element i of every row; reads padded(width) numbers of each row, and writes as many columns. It reads
// whole registers, because joining a tail from smaller pieces would stall.
template <class T>
inline void load_transposed(const T* const* rows, int width, Vec<T>* columns) {
  for (int first = 0; first < width; first += kLanes<T>) {
    for (int k = 0; k < kLanes<T>; ++k) columns[first + k] = load<T>(rows[k] + first);
    transpose<T>(columns + first);
  }
}

// The inverse, padded likewise; overwrites the columns.
template <class T>
inline void store_transposed(Vec<T>* columns, int width, T* const* rows) {
  for (int first = 0; first < width; first += kLanes<T>) {
    transpose<T>(columns + first);
    for (int k = 0; k < kLanes<T>; ++k) store<T>(columns[first + k], rows[k] + first);
  }
}

// A register of numbers given in double precision, rounded.
template <class T>
inline Vec<T> load_rounded(const double* from) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return load<double>(from);
  } else {
    return join(__builtin_convertvector(load<double>(from), Half<T>),
                __builtin_convertvector(load<double>(from + kLanes<double>), Half<T>),
                std::make_index_sequence<kLanes<T>>{});
  }
}

// Numbers Axis, 3 + Axis, ... of three registers.
template <class T, std::size_t Axis, std::size_t... Lane>
inline Vec<T> component(Vec<T> a, Vec<T> b, Vec<T> c, std::index_sequence<Lane...>) {
  constexpr std::size_t n = kLanes<T>;
  const Vec<T> of_two = __builtin_shufflevector(a, b, (3 * Lane + Axis < 2 * n ? 3 * Lane + Axis : 0)...);
  return __builtin_shufflevector(of_two, c, (3 * Lane + Axis < 2 * n ? Lane : 3 * Lane + Axis - n)...);
}

// ---------------------------------------------------------------- exp

template <class T>
struct FloatFormat;  // terms: of the Taylor series that is exact to rounding for |x| <= ln(2) / 2
template <>
struct FloatFormat<float> {
  typedef std::int32_t Int;
  static constexpr int mantissa_bits = 23, bias = 127, terms = 8;
  static constexpr float lowest = -87, highest = 88;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};
template <>
struct FloatFormat<double> {
  typedef std::int64_t Int;
  static constexpr int mantissa_bits = 52, bias = 1023, terms = 14;
  static constexpr double lowest = -708, highest = 709;
  static constexpr double ln2_high = 0.693145751953125, ln2_low = 1.42860682030941723212e-6;
};

constexpr double factorial(int k) { return k < 2 ? 1 : k * factorial(k - 1); }

// Square roots, one lane after the other for want of a vector type's own.
template <class T>
inline Vec<T> root(Vec<T> x) {
  for (int k = 0; k < kLanes<T>; ++k) x[k] = std::sqrt(x[k]);
  return x;
}

// e^x for every lane, to rounding; clamped to what a normal number can hold.
template <class T>
inline Vec<T> exp(Vec<T> x) {
  typedef FloatFormat<T> Format;
  typedef typename Format::Int Ints __attribute__((vector_size(kRegisterBytes)));
  x = x < Format::lowest ? Vec<T>{} + Format::lowest : x;
  x = x > Format::highest ? Vec<T>{} + Format::highest : x;
  // Adding 1.5 * 2^mantissa_bits rounds to an integer, which then stands in the low bits.
  const Vec<T> magic = Vec<T>{} + T(3ll << (Format::mantissa_bits - 1));
  const Vec<T> shifted = x * T(1 / M_LN2) + magic, power = shifted - magic;
  const Vec<T> rest = x - power * Format::ln2_high - power * Format::ln2_low;
  Vec<T> sum = Vec<T>{} + T(1 / factorial(Format::terms - 1));
#pragma GCC unroll 16
  for (int k = Format::terms - 2; k >= 0; --k) sum = sum * rest + T(1 / factorial(k));
  Ints bits, magic_bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&magic_bits, &magic, sizeof bits);
  bits = (bits - magic_bits + Format::bias) << Format::mantissa_bits;
  Vec<T> scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return sum * scale;
}

}  // namespace neuralil::NEURALIL_ISA

// One lane of a SIMD register for every pair or every atom: registers, their transposition, exp.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace neuralil {

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
inline Vec<T> load(const T* from) {
  Vec<T> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <class T>
inline void store(Vec<T> x, T* to) {
  std::memcpy(to, &x, sizeof x);
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
    if (!(i & Stride))
      exchange<T, Stride>(rows[i], rows[i | Stride], std::make_index_sequence<kLanes<T>>{});
  if constexpr (Stride > 1) transpose<T, Stride / 2>(rows);
}

// Number of registers for `width` columns, whole squares counted.
template <class T>
constexpr int padded(int width) {
  return (width + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// columns[i] = element i of every row; reads padded(width) numbers of each row, and writes as many columns. Whole
// registers, for a tail put together from smaller pieces would be waited for.
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

// Numbers Axis, 3 + Axis, ... of three registers' worth of numbers.
template <class T, std::size_t Axis, std::size_t... Lane>
inline Vec<T> component(const T* vectors, std::index_sequence<Lane...>) {
  constexpr std::size_t n = kLanes<T>;
  const Vec<T> a = load<T>(vectors), b = load<T>(vectors + n), c = load<T>(vectors + 2 * n);
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

}  // namespace neuralil

// Radial functions g_nl(r) / r^l of a register of pairs, as series in r^2; radial_basis.py is the reference.

#pragma once

#include "simd.h"

namespace neuralil::NEURALIL_ISA {

// Numbers of functions at n_max = L; n = 0 ... L - l for every order l.
template <int L>
struct Counts {
  static constexpr int radial = (L + 1) * (L + 2) / 2;
  static constexpr int harmonics = (L + 1) * (L + 1);
  static constexpr int channels = (L + 1) * (L + 2) * (2 * L + 3) / 6;
};

// Product of the coefficients with the basis for kGroup functions, few enough to stay in registers.
template <class T, int L, int kGroup>
void expand_group(const Vec<T>* basis, const Radial<T>& series, Vec<T>* functions, int first) {
  if constexpr (kGroup > 0) {
    Vec<T> sum[kGroup] = {};
    for (int k = 0; k < series.terms; ++k) {
      const T* row = series.coefficients + k * Counts<L>::radial + first;
#pragma GCC unroll 8
      for (int i = 0; i < kGroup; ++i) sum[i] += row[i] * basis[k];
    }
    for (int i = 0; i < kGroup; ++i) functions[first + i] = sum[i];
  }
}

template <class T, int L>
void expand(const Vec<T>* basis, const Radial<T>& series, Vec<T>* functions) {
  constexpr int n = Counts<L>::radial, group = 8;
  int first = 0;
  for (; first + group <= n; first += group) expand_group<T, L, group>(basis, series, functions, first);
  expand_group<T, L, n % group>(basis, series, functions, first);
}

// The functions at s = r^2 / r_cut^2 <= 1, and with kDerivatives their slopes by s.
template <class T, int L, bool kDerivatives>
void radial_functions(Vec<T> s, const Radial<T>& series, Vec<T>* functions, Vec<T>* slopes) {
  Vec<T> basis[kMaxTerms], basis_slope[kDerivatives ? kMaxTerms : 1];
  const Vec<T> t = 2 * s - 1, rest = 1 - s, envelope = rest * rest * rest;
  basis[0] = envelope;
  basis[1] = envelope * t;
  for (int k = 2; k < series.terms; ++k) basis[k] = 2 * t * basis[k - 1] - basis[k - 2];
  expand<T, L>(basis, series, functions);
  if constexpr (kDerivatives) {
    basis_slope[0] = -3 * rest * rest;
    basis_slope[1] = basis_slope[0] * t + 2 * envelope;
    for (int k = 2; k < series.terms; ++k)
      basis_slope[k] = 2 * t * basis_slope[k - 1] - basis_slope[k - 2] + 4 * basis[k - 1];
    expand<T, L>(basis_slope, series, slopes);
  }
}

}  // namespace neuralil::NEURALIL_ISA

// Real solid harmonics r^l Y_lm of a register of pairs; solid_harmonics.py is the reference.

#pragma once

#include "simd.h"

namespace neuralil::NEURALIL_ISA {

template <class T, int L>
struct HarmonicConstants {
  T norm[L + 1][L + 1];   // of Y_lm, with sqrt(2) for m > 0
  T raise[L + 1][L + 1];  // norm_lm / norm_{l-1,m+1}
  T lower[L + 1][L + 1];  // (l + m) norm_lm / norm_{l-1,m}

  HarmonicConstants() {
    double exact[L + 1][L + 1];
    for (int l = 0; l <= L; ++l)
      for (int m = 0; m <= l; ++m) {
        double ratio = 1;  // (l - m)! / (l + m)!
        for (int k = l - m + 1; k <= l + m; ++k) ratio /= k;
        exact[l][m] = std::sqrt((m ? 2 : 1) * (2 * l + 1) / (4 * M_PI) * ratio);
        norm[l][m] = T(exact[l][m]);
        raise[l][m] = m + 1 < l ? T(exact[l][m] / exact[l - 1][m + 1]) : T(0);
        lower[l][m] = m < l ? T((l + m) * exact[l][m] / exact[l - 1][m]) : T(0);
      }
  }
};

// The harmonics at x, y, z, and what they are made of.
template <class T, int L>
struct Harmonics {
  Vec<T> x, y, z;
  Vec<T> cosine[L + 1] = {}, sine[L + 1] = {};  // real and imaginary part of (x + iy)^m
  Vec<T> legendre[L + 1][L + 1];                // norm_lm r^(l-m) P_lm(z/r) / sin^m(theta)
  Vec<T> harmonic[(L + 1) * (L + 1)];           // number l^2 + l + m

  void set() {
    static const HarmonicConstants<T, L> constants;
    const Vec<T> r_squared = x * x + y * y + z * z;
    Vec<T> q[L + 1][L + 1];  // legendre before normalisation
    cosine[0] = legendre[0][0] = q[0][0] = Vec<T>{} + 1;
    sine[0] = Vec<T>{};
    harmonic[0] = Vec<T>{} + constants.norm[0][0];
    legendre[0][0] = harmonic[0];
#pragma GCC unroll 8
    for (int l = 1; l <= L; ++l) {
      cosine[l] = x * cosine[l - 1] - y * sine[l - 1];
      sine[l] = x * sine[l - 1] + y * cosine[l - 1];
#pragma GCC unroll 9
      for (int m = 0; m <= l; ++m) {
        q[l][m] = T(2 * l - 1) * (m < l ? z * q[l - 1][m] : q[l - 1][m - 1]);
        if (m + 1 < l) q[l][m] -= T(l + m - 1) * r_squared * q[l - 2][m];
        if (m < l) q[l][m] *= T(1) / T(l - m);
        legendre[l][m] = constants.norm[l][m] * q[l][m];
        harmonic[l * l + l + m] = legendre[l][m] * cosine[m];
        if (m) harmonic[l * l + l - m] = legendre[l][m] * sine[m];
      }
    }
  }
};

}  // namespace neuralil::NEURALIL_ISA

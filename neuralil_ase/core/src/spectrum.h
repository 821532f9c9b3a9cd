// The power spectrum of a register full of atoms, one in each lane, and its pullback; spectrum.py is the reference.
//
//   plain: p_{ab,nl} = sum_m c_{a,nlm} c_{b,nlm} for every unordered pair of elements
//   with cross terms: the same for every unordered pair of (element, n) at equal l

#pragma once

#include "radial.h"

namespace neuralil::NEURALIL_ISA {

// ---------------------------------------------------------------- plain

template <class T, int L>
void plain_spectrum(const Vec<T>* c, int n_elements, Vec<T>* p) {
  constexpr int channels = Counts<L>::channels;
  for (int a = 0; a < n_elements; ++a)
    for (int b = a; b < n_elements; ++b) {
      const Vec<T>*c_a = c + a * channels, *c_b = c + b * channels;
#pragma GCC unroll 9
      for (int l = 0; l <= L; ++l)
        for (int n = 0; n <= L - l; ++n) {
          Vec<T> sum = {};
#pragma GCC unroll 17
          for (int m = 0; m < 2 * l + 1; ++m) sum += *c_a++ * *c_b++;
          *p++ = sum;
        }
    }
}

template <class T, int L>
void pull_back_plain(const Vec<T>* c, int n_elements, const Vec<T>* by_p, Vec<T>* by_c) {
  constexpr int channels = Counts<L>::channels;
  for (int a = 0; a < n_elements; ++a)
    for (int b = a; b < n_elements; ++b) {
      const Vec<T>*c_a = c + a * channels, *c_b = c + b * channels;
      Vec<T>*by_a = by_c + a * channels, *by_b = by_c + b * channels;
#pragma GCC unroll 9
      for (int l = 0; l <= L; ++l)
        for (int n = 0; n <= L - l; ++n, ++by_p)
#pragma GCC unroll 17
          for (int m = 0; m < 2 * l + 1; ++m) {
            *by_a++ += *by_p * *c_b++;
            *by_b++ += *by_p * *c_a++;
          }
    }
}

// ---------------------------------------------------------------- cross terms

typedef Buffer<int> Rows;  // the first coefficient of each (element, n)

// All products of rows of kSize coefficients, p <= q; returns the end of the products.
template <class T, int kSize>
Vec<T>* multiply_rows(const Vec<T>* c, const Rows& rows, Vec<T>* product) {
  const int n_rows = int(rows.size());
  for (int p = 0; p < n_rows; ++p) {
    Vec<T> mine[kSize];
    for (int m = 0; m < kSize; ++m) mine[m] = c[rows[p] + m];
    for (int q = p; q < n_rows; ++q) {
      const Vec<T>* other = c + rows[q];
      Vec<T> sum = mine[0] * other[0];
#pragma GCC unroll 17
      for (int m = 1; m < kSize; ++m) sum += mine[m] * other[m];
      *product++ = sum;
    }
  }
  return product;
}

// Adds to the gradients by rows of kSize coefficients, whose products have the cotangents `by_product`.
template <class T, int kSize>
const Vec<T>* pull_back_rows(const Vec<T>* c, const Rows& rows, const Vec<T>* by_product, Vec<T>* by_c) {
  const int n_rows = int(rows.size());
  for (int p = 0; p < n_rows; ++p) {
    Vec<T> mine[kSize], sum[kSize];
    for (int m = 0; m < kSize; ++m) mine[m] = c[rows[p] + m];
    const Vec<T> by_square = *by_product++;
#pragma GCC unroll 17
    for (int m = 0; m < kSize; ++m) sum[m] = by_c[rows[p] + m] + 2 * by_square * mine[m];
    for (int q = p + 1; q < n_rows; ++q) {
      const Vec<T> weight = *by_product++;
      const Vec<T>* other = c + rows[q];
      Vec<T>* by_other = by_c + rows[q];
#pragma GCC unroll 17
      for (int m = 0; m < kSize; ++m) {
        sum[m] += weight * other[m];
        by_other[m] += weight * mine[m];
      }
    }
    for (int m = 0; m < kSize; ++m) by_c[rows[p] + m] = sum[m];
  }
  return by_product;
}

// ---------------------------------------------------------------- either

template <class T, int L>
class Spectrum {
 public:
  Spectrum(int n_elements, bool has_cross_terms) : n_elements_(n_elements), has_cross_terms_(has_cross_terms) {
    for (int l = 0, start = 0; l <= L; start += (L + 1 - l) * (2 * l + 1), ++l) {
      rows_[l].reserve(n_elements * (L + 1 - l));
      for (int element = 0, row = 0; element < n_elements; ++element)
        for (int n = 0; n <= L - l; ++n) rows_[l][row++] = element * Counts<L>::channels + start + n * (2 * l + 1);
    }
  }

  // c: (elements * channels) columns; p: features.
  void forward(const Vec<T>* c, Vec<T>* p) const {
    if (has_cross_terms_)
      multiply(c, p, std::make_integer_sequence<int, L + 1>{});
    else
      plain_spectrum<T, L>(c, n_elements_, p);
  }

  // by_c = derivative by c of sum by_p p.
  void pull_back(const Vec<T>* c, const Vec<T>* by_p, Vec<T>* by_c) const {
    fill_zero(by_c, n_elements_ * Counts<L>::channels);
    if (has_cross_terms_)
      pull_back_cross(c, by_p, by_c, std::make_integer_sequence<int, L + 1>{});
    else
      pull_back_plain<T, L>(c, n_elements_, by_p, by_c);
  }

 private:
  template <int... Order>
  void multiply(const Vec<T>* c, Vec<T>* p, std::integer_sequence<int, Order...>) const {
    ((p = multiply_rows<T, 2 * Order + 1>(c, rows_[Order], p)), ...);
  }

  template <int... Order>
  void pull_back_cross(const Vec<T>* c, const Vec<T>* by_p, Vec<T>* by_c, std::integer_sequence<int, Order...>) const {
    ((by_p = pull_back_rows<T, 2 * Order + 1>(c, rows_[Order], by_p, by_c)), ...);
  }

  const int n_elements_;
  const bool has_cross_terms_;
  Rows rows_[L + 1];  // for every l
};

}  // namespace neuralil::NEURALIL_ISA

#include "radial_series.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "failure.h"
#include "views.h"

namespace neuralil {
namespace {

typedef std::vector<double> Numbers;

constexpr int kLargestDegree = kMaxTerms - 1, kPoints = 4 * kLargestDegree;
constexpr double kPi = 3.14159265358979323846;

// ---------------------------------------------------------------- spherical Bessel functions

// j_l(x), x >= 0: its power series where the recursion upwards would lose digits.
double spherical_bessel(int l, double x) {
  if (x <= l || x < 0.5) {
    double term = 1;
    for (int k = 1; k <= l; ++k) term *= x / (2 * k + 1);
    double sum = term;
    for (int k = 1; std::abs(term) > 1e-18 * std::abs(sum) && k < 200; ++k)
      sum += term *= -x * x / (2.0 * k * (2 * (l + k) + 1));
    return sum;
  }
  double last = std::cos(x) / x, value = std::sin(x) / x;  // j_-1 and j_0
  for (int k = 0; k < l; ++k) {
    const double next = (2 * k + 1) / x * value - last;
    last = value, value = next;
  }
  return value;
}

double zero_between(int l, double low, double high) {
  const bool rises = spherical_bessel(l, low) < 0;
  while (true) {
    const double middle = (low + high) / 2;
    if (middle <= low || middle >= high) return middle;
    (((spherical_bessel(l, middle) < 0) == rises) ? low : high) = middle;
  }
}

// For l = 0 ... n_max: the first n_max - l + 2 positive zeros of j_l, each between neighbouring ones of j_{l-1}.
std::vector<Numbers> bessel_zeros(int n_max) {
  std::vector<Numbers> zeros(n_max + 1);
  for (int k = 1; k <= n_max + 2; ++k) zeros[0].push_back(kPi * k);
  for (int l = 1; l <= n_max; ++l)
    for (int k = 0; k < n_max - l + 2; ++k) zeros[l].push_back(zero_between(l, zeros[l - 1][k], zeros[l - 1][k + 1]));
  return zeros;
}

// ---------------------------------------------------------------- the functions

// g_nl(r) of one order l by the recursion of doi:10.1063/1.5111045, eq. 14-18; one row for each n.
std::vector<Numbers> orthonormal_functions(const Numbers& r, int l, const Numbers& u, double r_cut) {
  std::vector<Numbers> g;
  double d_last = 1;
  for (std::size_t k = 0; k + 1 < u.size(); ++k) {
    const double a = u[k], b = u[k + 1];
    const double norm = std::sqrt(2 / (a * a + b * b) / (r_cut * r_cut * r_cut));
    const double by_a = b / spherical_bessel(l + 1, a), by_b = a / spherical_bessel(l + 1, b);
    double e = 0, d = 1;
    if (k > 0) {
      const double c = u[k - 1];
      e = c * c * b * b / ((c * c + a * a) * (a * a + b * b));
      d = 1 - e / d_last;
    }
    Numbers row(r.size());
    for (std::size_t i = 0; i < r.size(); ++i) {
      const double x = r[i] / r_cut;
      row[i] = norm * (by_a * spherical_bessel(l, a * x) - by_b * spherical_bessel(l, b * x));
      if (k > 0) row[i] = (row[i] + std::sqrt(e / d_last) * g.back()[i]) / std::sqrt(d);
    }
    g.push_back(std::move(row));
    d_last = d;
  }
  return g;
}

// ---------------------------------------------------------------- the fit

// Least squares by Householder reflections, for as many columns as wanted: column k of the design is weight * T_k.
// The columns before are not touched when one is added.
class Fit {
 public:
  Fit(const Numbers& s, const Numbers& r, int l) : s_(s), weight_(s.size()) {
    for (std::size_t i = 0; i < s.size(); ++i) weight_[i] = std::pow(r[i], l) * std::pow(1 - s[i], 3);
  }

  double chebyshev(int k, std::size_t i) const {  // of weight T_k at point i
    return weight_[i] * std::cos(k * std::acos(std::clamp(2 * s_[i] - 1, -1.0, 1.0)));
  }

  void add_column() {
    const int k = int(reflections_.size());
    Numbers column(s_.size());
    for (std::size_t i = 0; i < column.size(); ++i) column[i] = chebyshev(k, i);
    design_.push_back(column);
    for (int j = 0; j < k; ++j) reflect(reflections_[j], j, column);
    Numbers v(column.begin() + k, column.end());
    double norm = 0;
    for (const double value : v) norm += value * value;
    norm = std::sqrt(norm) * (v[0] > 0 ? -1 : 1);
    v[0] -= norm;
    double square = 0;
    for (const double value : v) square += value * value;
    for (double& value : v) value *= std::sqrt(2 / square);
    reflections_.push_back(std::move(v));
    column[k] = norm;
    column.resize(k + 1);
    triangle_.push_back(std::move(column));
  }

  Numbers solve(Numbers values) const {
    const int n = int(reflections_.size());
    for (int j = 0; j < n; ++j) reflect(reflections_[j], j, values);
    Numbers found(n);
    for (int k = n - 1; k >= 0; --k) {
      found[k] = values[k] / triangle_[k][k];
      for (int i = 0; i < k; ++i) values[i] -= found[k] * triangle_[k][i];
    }
    return found;
  }

  double largest_error(const Numbers& coefficients, const Numbers& exact) const {
    double largest = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      double value = -exact[i];
      for (std::size_t k = 0; k < coefficients.size(); ++k) value += coefficients[k] * design_[k][i];
      largest = std::max(largest, std::abs(value));
    }
    return largest;
  }

 private:
  static void reflect(const Numbers& v, int first, Numbers& column) {
    double dot = 0;
    for (std::size_t i = 0; i < v.size(); ++i) dot += v[i] * column[first + i];
    for (std::size_t i = 0; i < v.size(); ++i) column[first + i] -= dot * v[i];
  }

  const Numbers& s_;
  Numbers weight_;
  std::vector<Numbers> design_, reflections_, triangle_;
};

}  // namespace

std::vector<double> radial_series(int n_max, double r_cut, int radial_scaling, double tolerance) {
  Numbers s(kPoints), r(kPoints);
  for (int i = 0; i < kPoints; ++i) {
    s[i] = (1 + std::cos(kPi * (i + 0.5) / kPoints)) / 2;
    r[i] = std::sqrt(s[i]) * r_cut;
  }
  const std::vector<Numbers> zeros = bessel_zeros(n_max);
  std::vector<std::vector<Numbers>> exact(n_max + 1);
  std::vector<Fit> fits;
  for (int l = 0; l <= n_max; ++l) {
    exact[l] = orthonormal_functions(r, l, zeros[l], r_cut);
    for (Numbers& function : exact[l])
      for (int i = 0; i < kPoints; ++i) function[i] *= std::pow(1 - s[i], radial_scaling);
    fits.emplace_back(s, r, l);
    for (int k = 0; k < 4; ++k) fits[l].add_column();
  }
  for (int terms = 5; terms <= kMaxTerms; ++terms) {
    std::vector<Numbers> columns;  // coefficients of one function each
    bool is_good = true;
    for (int l = 0; l <= n_max; ++l) {
      fits[l].add_column();
      for (const Numbers& function : exact[l]) {
        columns.push_back(fits[l].solve(function));
        double scale = 0;
        for (const double value : function) scale = std::max(scale, std::abs(value));
        is_good = is_good && fits[l].largest_error(columns.back(), function) <= tolerance * scale;
      }
    }
    if (!is_good) continue;
    std::vector<double> coefficients;
    for (int k = 0; k < terms; ++k)
      for (const Numbers& column : columns) coefficients.push_back(column[k]);
    return coefficients;
  }
  throw Unsupported("the radial functions of n_max " + std::to_string(n_max) + " need too long a series");
}

}  // namespace neuralil

// Pair energies added to the network's, for a register of pairs; pair_terms.py is the reference.

#pragma once

#include "simd.h"

namespace neuralil::NEURALIL_ISA {

constexpr double kSoftening = 0.02;  // Å; ZBL sees sqrt(r^2 + kSoftening^2)
constexpr double kZblWeights[] = {0.18175, 0.50986, 0.28022, 0.02817};
constexpr double kZblDecays[] = {3.19980, 0.94229, 0.40290, 0.20162};

// A register of numbers from tables: number `lane` of table(lane).
template <class T, class Table>
inline Vec<T> gather(const Table& table) {
  T numbers[kLanes<T>];
  for (int k = 0; k < kLanes<T>; ++k) numbers[k] = table(k);
  return load<T>(numbers);
}

template <class T>
class PairTerms {
 public:
  PairTerms(const PairTerm<T>& term, int n_elements) : term_(term), n_elements_(n_elements) {}

  // Number of different terms; 0 without.
  std::int64_t count() const { return term_.count; }

  // Reads a register of pairs with the elements of their atoms. False when all are out of reach: nothing is added then.
  bool read(Vec<T> r_squared, const std::int32_t* types, const std::int32_t* centers, const std::int32_t* neighbors,
            int count) {
    bool any = false;
    for (int k = 0; k < count; ++k) any |= r_squared[k] < term_.reach[types[centers[k]]];
    if (!any) return false;
    for (int k = 0; k < kLanes<T>; ++k)
      pairs_[k] = k < count ? types[centers[k]] * n_elements_ + types[neighbors[k]] : 0;
    r_squared_ = r_squared;
    for (int k = count; k < kLanes<T>; ++k) r_squared_[k] = term_.reach[0];
    return true;
  }

  // Half the energy of each pair by term `number`, and its slope over the distance: gradient = slope_over_r * vector.
  void evaluate(std::int64_t number, Vec<T>& energy, Vec<T>& slope_over_r) const {
    if (term_.kind == PairKind::kZbl)
      zbl(energy, slope_over_r);
    else
      morse(number, energy, slope_over_r);
  }

 private:
  void zbl(Vec<T>& energy, Vec<T>& slope_over_r) const {
    const ZblPair<T>* table = term_.zbl;
    const Vec<T> r = root<T>(r_squared_ + T(kSoftening * kSoftening)), inverse = 1 / r;
    const Vec<T> inverse_a = gather<T>([&](int k) { return table[pairs_[k]].inverse_a; });
    const Vec<T> radius = gather<T>([&](int k) { return table[pairs_[k]].radius; });
    const Vec<T> strength = gather<T>([&](int k) { return table[pairs_[k]].strength; });
    Vec<T> screening = {}, screening_slope = {};
    for (int i = 0; i < 4; ++i) {
      const Vec<T> part = T(kZblWeights[i]) * exp<T>(T(-kZblDecays[i]) * (r * inverse_a));
      screening += part;
      screening_slope -= T(kZblDecays[i]) * part;
    }
    Vec<T> t = r / radius;
    t = t > 1 ? Vec<T>{} + 1 : t;
    const Vec<T> rest = 1 - t;
    const Vec<T> envelope = 1 - t * t * t * (10 - 15 * t + 6 * t * t);
    const Vec<T> envelope_slope = -30 * t * t * rest * rest / radius;
    const Vec<T> coulomb = strength * inverse;
    // envelope is zero to rounding only where t = 1
    energy = t < 1 ? coulomb * screening * envelope : Vec<T>{};
    const Vec<T> slope =
        coulomb * (screening * envelope_slope + envelope * (screening_slope * inverse_a - screening * inverse));
    slope_over_r = t < 1 ? slope * inverse : Vec<T>{};
  }

  void morse(std::int64_t member, Vec<T>& energy, Vec<T>& slope_over_r) const {
    const MorsePair<T>* table = term_.morse + member * n_elements_ * n_elements_;
    const Vec<T> r = root<T>(r_squared_), inverse = r > 0 ? 1 / r : Vec<T>{};
    const Vec<T> d = gather<T>([&](int k) { return table[pairs_[k]].d; });
    const Vec<T> constant = gather<T>([&](int k) { return table[pairs_[k]].constant; });
    const Vec<T> factor = gather<T>([&](int k) { return table[pairs_[k]].factor; });
    const Vec<T> x = exp<T>(constant + factor * r);
    const bool is_repulsive = term_.kind == PairKind::kRepulsiveMorse;
    const Vec<T> phi = is_repulsive ? d * x : d * x * (x - 2);
    const Vec<T> phi_slope = factor * (is_repulsive ? d * x : 2 * d * x * (x - 1));
    const MorseSwitch<T>& ends = term_.switches[member];
    // The switch is f(u) / (f(u) + f(1 - u)), f(u) = exp(-1/u) for u > 0.
    const Vec<T> u = (ends.end - r_squared_) * ends.scale, v = 1 - u;
    Vec<T> f, f_slope, g, g_slope;
    bump(u, f, f_slope);
    bump(v, g, g_slope);
    const Vec<T> sum = 1 / (f + g);
    const Vec<T> on = f * sum;
    const Vec<T> on_slope = (f_slope * g + f * g_slope) * sum * sum;  // by u; du/dr = -2 r scale
    energy = T(0.5) * on * phi;
    slope_over_r = T(0.5) * (on * phi_slope * inverse - 2 * ends.scale * on_slope * phi);
  }

  // exp(-1/u) and its slope; zero where the number would be smaller than a normal one.
  static void bump(Vec<T> u, Vec<T>& value, Vec<T>& slope) {
    const auto is_on = u > T(1) / -T(FloatFormat<T>::lowest);
    const Vec<T> inverse = 1 / (is_on ? u : Vec<T>{} + 1);
    value = is_on ? exp<T>(-inverse) : Vec<T>{};
    slope = value * inverse * inverse;
  }

  const PairTerm<T>& term_;
  const int n_elements_;
  int pairs_[kLanes<T>];
  Vec<T> r_squared_;
};

}  // namespace neuralil::NEURALIL_ISA

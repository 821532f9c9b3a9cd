// Pair gradients -> forces and virials.

#pragma once

#include "simd.h"

namespace neuralil::NEURALIL_ISA {

constexpr int kForce = 3, kVirial = 9;  // components, the virial's in the order xx xy xz yx yy yz zx zy zz

// With r_ij = r_j - r_i and g_ij = dE/dr_ij: F_i = sum_j g_ij - g_ji; virial of the centre i: sum_j r_ij g_ij.
template <class T>
struct Actions {
  const Target<T>& target;
  std::int64_t width;
  std::int64_t n_centers;

  // Where the components of an atom begin, `width` numbers apart.
  T* of(std::int64_t atom, std::int64_t energy) const {
    return target.actions + target.n_components * width * atom + energy;
  }

  // Adds what `count` pairs, one in each lane, do to their atoms by one energy.
  void add(std::int64_t energy, const Vec<T>* r, const Vec<T>* g, const std::int32_t* centers,
           const std::int32_t* neighbors, int count) const {
    constexpr int lanes = kLanes<T>, size = kForce + kVirial, tiles = padded<T>(size) / lanes;
    Vec<T> rows[tiles * lanes];
    for (int a = 0; a < 3; ++a) {
      rows[a] = g[a];
      for (int b = 0; b < 3; ++b) rows[kForce + 3 * a + b] = r[a] * g[b];
    }
    for (int i = size; i < tiles * lanes; ++i) rows[i] = g[0];  // whatever, but numbers
    for (int tile = 0; tile < tiles; ++tile) transpose<T>(rows + tile * lanes);
    Vec<T> sum[tiles] = {};
    for (int k = 0; k < count; ++k) {
      T* recoil = of(neighbors[k], energy);
      for (int axis = 0; axis < kForce; ++axis) recoil[axis * width] -= rows[axis / lanes * lanes + k][axis % lanes];
      for (int i = kForce; i < target.n_components; ++i) recoil[i * width] += rows[i / lanes * lanes + k][i % lanes];
      for (int tile = 0; tile < tiles; ++tile) sum[tile] += rows[tile * lanes + k];
      if (k + 1 == count || centers[k + 1] != centers[k]) {
        T values[padded<T>(size)];
        std::memcpy(values, sum, sizeof values);
        add_to_center(centers[k], energy, values);
        for (Vec<T>& part : sum) part = Vec<T>{};
      }
    }
  }

  // Adds force and virial of one energy to a centre.
  void add_to_center(std::int64_t center, std::int64_t energy, const T* values) const {
    T* force = of(center, energy);
    for (int axis = 0; axis < kForce; ++axis) force[axis * width] += values[axis];
    const double share = 1.0 / double(target.n_energies);
    if (double* mean = target.virials)
      for (int i = 0; i < kVirial; ++i) mean[kVirial * center + i] += share * double(values[kForce + i]);
    if (double* own = target.member_virials)
      for (int i = 0; i < kVirial; ++i) own[kVirial * (energy * n_centers + center) + i] += double(values[kForce + i]);
  }
};

}  // namespace neuralil::NEURALIL_ISA

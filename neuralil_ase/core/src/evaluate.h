// Energies, forces and virials of centres: a register full of atoms at a time goes the whole way, from its pairs to
// density coefficients, power spectrum and networks and back to pair gradients, forces and virials. Nothing in between
// leaves the processor's cache. No option that relaxes IEEE arithmetic is needed: not-a-number passes through.

#pragma once

#include "density.h"
#include "forces.h"
#include "network.h"
#include "pair_terms.h"
#include "spectrum.h"

namespace neuralil::NEURALIL_ISA {

// Whether energies are in lanes where forces are made: it pays for many.
template <class T>
bool has_energies_in_lanes(std::int64_t n_energies) {
  return n_energies > kLanes<T> / 4;
}

template <class T>
std::int64_t width_of(std::int64_t n_energies) {
  return has_energies_in_lanes<T>(n_energies) ? padded<T>(int(n_energies)) : n_energies;
}

template <class T, int L>
class Evaluation {
 public:
  Evaluation(const View<T>& view, const Graph& graph, const Target<T>& target)
      : graph_(graph), series_(view.radial), tape_(view.network), view_(view), target_(target),
        actions_{target, width_of<T>(target.n_energies), graph.n_centers}, pair_terms_(view.pair_term, view.n_elements),
        spectrum_(view.n_elements, view.has_cross_terms), n_density_(view.n_elements * Counts<L>::channels),
        stride_(padded<T>(n_density_)), density_((lanes + 1) * stride_), by_density_(actions_.width * stride_ + 1),
        density_columns_(kAbreast * stride_), by_density_columns_(target.n_energies * kAbreast * stride_),
        sums_((kForce + kVirial) * actions_.width), columns_(kAbreast * tape_.n_columns),
        cotangents_(kAbreast * tape_.n_columns), pair_gradients_(2 * target.n_energies) {}

  // Adds what the centres of a part do to their atoms, and writes their energies. False when pairs are not sorted by
  // centres, or an index is out of range.
  bool run(const Part& part) {
    std::int64_t ends[kAbreast + 1] = {part.first_pair};
    for (first_ = part.first_atom; first_ < part.last_atom; first_ += count_) {
      count_ = int(smaller<std::int64_t>(kAbreast * lanes, part.last_atom - first_));
      n_registers_ = (count_ + lanes - 1) / lanes;
      for (int r = 0; r < n_registers_; ++r) {
        ends[r + 1] = find_segments(ends[r], part.last_pair, r);
        if (ends[r + 1] < 0) return false;
        describe(ends[r], ends[r + 1], r);
      }
      run_networks();
      for (int r = 0; r < n_registers_; ++r) pull_back(ends[r], ends[r + 1], r);
      ends[0] = ends[n_registers_];
    }
    return ends[0] == part.last_pair;
  }

 private:
  static constexpr int lanes = kLanes<T>;
  typedef Block<T, L, true> PairBlock;

  static T* numbers(Buffer<Vec<T>>& registers) { return reinterpret_cast<T*>(registers.data()); }

  // Where the coefficients of centre and neighbour element begin for every pair of a register's atoms; the pairs begin
  // at `begin`. Returns their end, or -1.
  std::int64_t find_segments(std::int64_t begin, std::int64_t last, int r) {
    const std::int64_t first_atom = first_ + r * lanes, last_atom = first_ + smaller((r + 1) * lanes, count_);
    std::int64_t end = begin;
    while (end < last && graph_.centers[end] < last_atom) ++end;
    segments_[r].reserve(end - begin);
    for (std::int64_t pair = begin; pair < end; ++pair) {
      const std::int64_t center = graph_.centers[pair], neighbor = graph_.neighbors[pair];
      if (center < first_atom || neighbor < 0 || neighbor >= graph_.n_atoms) return -1;
      const std::int64_t element = graph_.types[neighbor];
      segments_[r][pair - begin] = std::int32_t((center - first_atom) * stride_ + element * Counts<L>::channels);
    }
    return end;
  }

  // From pairs to the features of a register's atoms.
  void describe(std::int64_t begin, std::int64_t end, int r) {
    sum_pairs<T, L>(graph_.vectors + 3 * begin, segments_[r].data(), end - begin, series_, density_.data(),
                    lanes * stride_);
    const T* rows[lanes];
    for (int k = 0; k < lanes; ++k) rows[k] = density_.data() + k * stride_;
    Vec<T>* c = density_columns_.data() + r * stride_;
    load_transposed<T>(rows, n_density_, c);
    spectrum_.forward(c, columns_.data() + r * tape_.n_columns);
  }

  // From features to energies and by_density_columns_. Where only the mean is asked for, all members' cotangents meet
  // in the columns that they share, and go back from there as one.
  void run_networks() {
    std::int32_t types[kAbreast * lanes];
    for (int k = 0; k < kAbreast * lanes; ++k) types[k] = graph_.types[smaller(first_ + k, graph_.n_centers - 1)];
    tape_.forward(0, tape_.n_shared, 0, types, n_registers_, columns_.data());
    const bool is_mean = target_.n_energies == 1;
    const T weight = is_mean ? T(1) / T(view_.n_members) : T(1);
    for (std::int64_t member = 0; member < view_.n_members; ++member) {
      tape_.forward(tape_.n_shared, tape_.n_operations, member, types, n_registers_, columns_.data());
      store_outputs(member, types);
      for (int r = 0; r < n_registers_; ++r) cotangents_[r * tape_.n_columns + tape_.outputs[0]] = Vec<T>{} + weight;
      tape_.backward(tape_.n_shared, tape_.n_backward, member, n_registers_, columns_.data(), is_mean && member > 0,
                     cotangents_.data());
      if (!is_mean) pull_back_to_density(member);
    }
    if (is_mean) pull_back_to_density(0);
  }

  void store_outputs(std::int64_t member, const std::int32_t* types) {
    double* energies = target_.energies + member * graph_.n_centers + first_;
    for (int k = 0; k < count_; ++k) energies[k] = view_.reference[types[k]] + double(output(0, k));
    const std::int64_t n_aleatoric = tape_.n_outputs - 1;
    if (!target_.aleatoric_variances) return;
    double* variances = target_.aleatoric_variances + (member * graph_.n_centers + first_) * n_aleatoric;
    for (int k = 0; k < count_; ++k)
      for (std::int64_t i = 0; i < n_aleatoric; ++i) variances[k * n_aleatoric + i] = double(output(i + 1, k));
  }

  T output(std::int64_t number, int k) const {
    return columns_[k / lanes * tape_.n_columns + tape_.outputs[number]][k % lanes];
  }

  void pull_back_to_density(std::int64_t energy) {
    tape_.backward(0, tape_.n_shared, 0, n_registers_, columns_.data(), false, cotangents_.data());
    for (int r = 0; r < n_registers_; ++r)
      spectrum_.pull_back(density_columns_.data() + r * stride_, cotangents_.data() + r * tape_.n_columns,
                          columns_by_density(energy, r));
  }

  Vec<T>* columns_by_density(std::int64_t energy, int r) {
    return by_density_columns_.data() + (energy * kAbreast + r) * stride_;
  }

  // From by_density_columns_ to forces and virials.
  void pull_back(std::int64_t begin, std::int64_t end, int r) {
    if (has_energies_in_lanes<T>(target_.n_energies))
      pull_back_by_energy(begin, end, r);
    else
      pull_back_by_pair(begin, end, r);
  }

  // Adds the pair term's energies of `count` pairs, and sets its slopes over the distance for every energy in
  // pair_gradients_. False when there is nothing to add.
  bool add_pair_term(const PairBlock& block, std::int64_t first, int count) {
    if (!pair_terms_.count()) return false;
    const std::int32_t* centers = graph_.centers + first;
    if (!pair_terms_.read(block.r_squared, graph_.types, centers, graph_.neighbors + first, count)) return false;
    const bool is_shared = pair_terms_.count() == 1;
    Vec<T> energy, slope, mean = {};
    for (std::int64_t number = 0; number < pair_terms_.count(); ++number) {
      pair_terms_.evaluate(number, energy, slope);
      for (std::int64_t member = number; member < (is_shared ? view_.n_members : number + 1); ++member)
        for (int k = 0; k < count; ++k) target_.energies[member * graph_.n_centers + centers[k]] += double(energy[k]);
      mean += slope / T(pair_terms_.count());
      if (target_.n_energies > 1 && !is_shared) pair_gradients_[number] = slope;
    }
    if (target_.n_energies == 1 || is_shared)
      for (std::int64_t number = 0; number < target_.n_energies; ++number) pair_gradients_[number] = mean;
    return true;
  }

  // One pair in each lane; the energies share the polynomials of every register of pairs.
  void pull_back_by_pair(std::int64_t begin, std::int64_t end, int r) {
    for (std::int64_t energy = 0; energy < target_.n_energies; ++energy) {
      T* rows[lanes];
      for (int k = 0; k < lanes; ++k) rows[k] = numbers(by_density_) + (energy * lanes + k) * stride_;
      store_transposed<T>(columns_by_density(energy, r), n_density_, rows);
    }
    PairBlock block;
    Vec<T> gathered[SegmentSum<T, L>::kTiles * lanes];
    for (std::int64_t first = begin; first < end; first += lanes) {
      const int count = int(smaller<std::int64_t>(lanes, end - first));
      if (!block.read(graph_.vectors + 3 * first, count, series_)) continue;
      const bool has_pair_term = add_pair_term(block, first, count);
      const Vec<T> vector[3] = {block.x, block.y, block.z};
      for (std::int64_t energy = 0; energy < target_.n_energies; ++energy) {
        Vec<T> gradient[3];
        const T* cotangent = numbers(by_density_) + energy * lanes * stride_;
        gather_rows<T, L>(cotangent, segments_[r].data() + (first - begin), count, gathered);
        contract<T, L>(block, gathered, series_.inverse_square, gradient);
        if (has_pair_term)
          for (int axis = 0; axis < 3; ++axis) gradient[axis] += pair_gradients_[energy] * vector[axis];
        actions_.add(energy, vector, gradient, graph_.centers + first, graph_.neighbors + first, count);
      }
    }
  }

  // One energy in each lane: nothing is gathered or scattered but whole registers.
  void pull_back_by_energy(std::int64_t begin, std::int64_t end, int r) {
    const std::int64_t n_registers = actions_.width / lanes, first_atom = first_ + r * lanes;
    transpose_to_energies(r, n_registers);
    fill_zero(sums_.data(), sums_.size());
    PairBlock block;
    Vec<T> derivatives[Counts<L>::channels][3];
    for (std::int64_t first = begin; first < end; first += lanes) {
      const int count = int(smaller<std::int64_t>(lanes, end - first));
      if (!block.read(graph_.vectors + 3 * first, count, series_)) continue;
      const bool has_pair_term = add_pair_term(block, first, count);
      differentiate<T, L>(block, series_.inverse_square, derivatives);
      for (int k = 0; k < count; ++k) {
        const std::int64_t pair = first + k, row = segments_[r][pair - begin];
        const T vector[3] = {block.x[k], block.y[k], block.z[k]};
        for (std::int64_t e = 0; e < n_registers; ++e) {
          Vec<T> g[3];
          contract_pair<T, L>(derivatives, k, by_density_.data() + row * n_registers + e, n_registers, g);
          if (has_pair_term) {
            Vec<T> slopes = {};
            for (std::int64_t energy = e * lanes; energy < smaller((e + 1) * lanes, target_.n_energies); ++energy)
              slopes[energy % lanes] = pair_gradients_[energy][k];
            for (int axis = 0; axis < 3; ++axis) g[axis] += slopes * vector[axis];
          }
          Vec<T>* sum = sums_.data() + (kForce + kVirial) * ((graph_.centers[pair] - first_atom) * n_registers + e);
          act(vector, g, actions_.of(graph_.neighbors[pair], e * lanes), sum);
        }
      }
    }
    store_sums(first_atom, n_registers);
  }

  // (energies, channels, atoms) -> (atoms, channels, energies).
  void transpose_to_energies(int r, std::int64_t n_registers) {
    for (std::int64_t e = 0; e < n_registers; ++e)
      for (int c = 0; c < n_density_; ++c) {
        Vec<T> square[lanes] = {};
        for (std::int64_t energy = e * lanes; energy < smaller((e + 1) * lanes, target_.n_energies); ++energy)
          square[energy % lanes] = columns_by_density(energy, r)[c];
        transpose<T>(square);
        for (int k = 0; k < lanes; ++k) by_density_[(k * stride_ + c) * n_registers + e] = square[k];
      }
  }

  // What one pair does by a register of energies: to its neighbour, and added to what its centre gets.
  void act(const T* vector, const Vec<T>* g, T* recoil, Vec<T>* sum) const {
    for (int a = 0; a < 3; ++a) {
      T* component = recoil + a * actions_.width;
      store<T>(load<T>(component) - g[a], component);
      sum[a] += g[a];
    }
    for (int a = 0; a < 3; ++a)
      for (int b = 0; b < 3; ++b) sum[kForce + 3 * a + b] += vector[a] * g[b];
    if (target_.n_components == kForce) return;
    for (int i = 0; i < kVirial; ++i) {
      T* component = recoil + (kForce + i) * actions_.width;
      store<T>(load<T>(component) + vector[i / 3] * g[i % 3], component);
    }
  }

  void store_sums(std::int64_t first_atom, std::int64_t n_registers) {
    for (std::int64_t k = 0; k < smaller<std::int64_t>(lanes, first_ + count_ - first_atom); ++k)
      for (std::int64_t energy = 0; energy < target_.n_energies; ++energy) {
        const Vec<T>* sum = sums_.data() + (kForce + kVirial) * (k * n_registers + energy / lanes);
        T values[kForce + kVirial];
        for (int i = 0; i < kForce + kVirial; ++i) values[i] = sum[i][energy % lanes];
        actions_.add_to_center(first_atom + k, energy, values);
      }
  }

  const Graph& graph_;
  const Radial<T>& series_;
  const Tape<T> tape_;
  const View<T>& view_;
  const Target<T>& target_;
  const Actions<T> actions_;
  PairTerms<T> pair_terms_;
  const Spectrum<T, L> spectrum_;
  const int n_density_, stride_;
  std::int64_t first_ = 0;  // the block's first atom, and how many it has
  int count_ = 0, n_registers_ = 0;
  Buffer<std::int32_t> segments_[kAbreast];
  // Rows of atoms, `stride_` apart; by_density_ is (energies, atoms, density), with energies in lanes (atoms, density,
  // energies).
  Buffer<T> density_;
  Buffer<Vec<T>> by_density_;
  Buffer<Vec<T>> density_columns_, by_density_columns_;
  Buffer<Vec<T>> sums_;  // with energies in lanes: force and virial of every centre, (atoms, 12, energies)
  Buffer<Vec<T>> columns_, cotangents_;
  Buffer<Vec<T>> pair_gradients_;  // of the pair term: slope over distance for every energy
};

template <class T, int L>
bool run(const View<T>& view, const Graph& graph, const Part& part, const Target<T>& target) {
  return Evaluation<T, L>(view, graph, target).run(part);
}

}  // namespace neuralil::NEURALIL_ISA

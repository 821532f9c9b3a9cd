// Pair lists: both directions of new pairs in their order, and the filter of every step. Called by the host, not by
// XLA.

#include <algorithm>
#include <cstdint>
#include <exception>
#include <vector>

#include "../include/neuralil.h"

// Candidate pairs of one replica; shifts count lattice vectors.
struct Candidates {
  const std::int32_t *shifts, *centers, *neighbors;
};

// Those candidates of all replicas that are shorter than r_cut, in their order; returns how many, or -1 if a candidate
// names no atom. Each replica has n_atoms atoms, which are numbered on from those of the one before. There has to be
// room for all candidates: a pair that is too long is written, too, and overwritten by the next.
extern "C" NEURALIL_EXPORT std::int64_t neuralil_filter_pairs(const double* positions, const double* cells,
                                                              const Candidates* candidates, const std::int64_t* counts,
                                                              double* found_vectors, std::int32_t* found_centers,
                                                              std::int32_t* found_neighbors, std::int64_t n_replicas,
                                                              std::int64_t n_atoms, double r_cut) {
  std::int64_t found = 0;
  for (std::int64_t replica = 0; replica < n_replicas; ++replica) {
    const Candidates list = candidates[replica];
    const std::int64_t first = replica * n_atoms;
    const double* atoms = positions + 3 * first;
    double cell[9];  // a copy, which what is written cannot overlap: it stays in registers
    std::copy_n(cells + 9 * replica, 9, cell);
    for (std::int64_t pair = 0; pair < counts[replica]; ++pair) {
      const std::uint32_t center = list.centers[pair], neighbor = list.neighbors[pair];  // no negative ones
      if (std::max(center, neighbor) >= n_atoms) return -1;
      const double* from = atoms + 3 * std::int64_t(center);
      const double* to = atoms + 3 * std::int64_t(neighbor);
      const double a = list.shifts[3 * pair], b = list.shifts[3 * pair + 1], c = list.shifts[3 * pair + 2];
      double vector[3];
      for (int i = 0; i < 3; ++i) vector[i] = to[i] - from[i] + (a * cell[i] + b * cell[3 + i] + c * cell[6 + i]);
      std::copy_n(vector, 3, found_vectors + 3 * found);
      found_centers[found] = std::int32_t(first + center);
      found_neighbors[found] = std::int32_t(first + neighbor);
      found += vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2] < r_cut * r_cut;
    }
  }
  return found;
}

// Both directions of `count` pairs (two atoms each), in the order of their centers, then of the neighbour's type, then
// as they come, the given direction first.
static neuralil_status order_pairs(const std::uint64_t* pairs, const std::int32_t* shifts, const std::int32_t* types,
                                   std::int32_t* sorted_shifts, std::int32_t* sorted_centers,
                                   std::int32_t* sorted_neighbors, std::int64_t count, std::int64_t n_atoms,
                                   std::int64_t n_types) {
  for (std::int64_t atom = 0; atom < n_atoms; ++atom)
    if (types[atom] < 0 || types[atom] >= n_types) return NEURALIL_BAD_GRAPH;
  std::vector<std::int64_t> place(n_atoms * n_types + 1);
  const auto segment = [&](std::uint64_t center, std::uint64_t neighbor) { return center * n_types + types[neighbor]; };
  for (std::int64_t pair = 0; pair < count; ++pair) {
    const std::uint64_t first = pairs[2 * pair], second = pairs[2 * pair + 1];
    if (std::max(first, second) >= std::uint64_t(n_atoms)) return NEURALIL_BAD_GRAPH;
    ++place[segment(first, second) + 1];
    ++place[segment(second, first) + 1];
  }
  for (std::size_t k = 1; k < place.size(); ++k) place[k] += place[k - 1];
  for (int turned = 0; turned < 2; ++turned)
    for (std::int64_t pair = 0; pair < count; ++pair) {
      const std::uint64_t center = pairs[2 * pair + turned], neighbor = pairs[2 * pair + 1 - turned];
      const std::int64_t to = place[segment(center, neighbor)]++;
      sorted_centers[to] = std::int32_t(center);
      sorted_neighbors[to] = std::int32_t(neighbor);
      for (int i = 0; i < 3; ++i) sorted_shifts[3 * to + i] = turned ? -shifts[3 * pair + i] : shifts[3 * pair + i];
    }
  return NEURALIL_OK;
}

extern "C" NEURALIL_EXPORT int neuralil_order_pairs(const std::uint64_t* pairs, const std::int32_t* shifts,
                                                    const std::int32_t* types, std::int32_t* sorted_shifts,
                                                    std::int32_t* sorted_centers, std::int32_t* sorted_neighbors,
                                                    std::int64_t count, std::int64_t n_atoms, std::int64_t n_types) {
  try {
    return order_pairs(pairs, shifts, types, sorted_shifts, sorted_centers, sorted_neighbors, count, n_atoms, n_types);
  } catch (const std::exception&) {  // no C++ exception may leave a function that Python calls
    return NEURALIL_NO_MEMORY;
  }
}

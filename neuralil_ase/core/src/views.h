// What the baseline hands to the code of an instruction set: pointers and numbers, no functions.

#pragma once

#include <cstddef>
#include <cstdint>

namespace neuralil {

#ifndef NEURALIL_MAX_ORDER
#define NEURALIL_MAX_ORDER 8
#endif
constexpr int kMaxOrder = NEURALIL_MAX_ORDER;  // largest n_max with compiled code
constexpr int kMaxTerms = 49;                  // of a radial series; radial_basis.MAX_DEGREE is 48

// Atoms and their neighbours. The first n_centers atoms are centres; pairs are sorted by centre.
struct Graph {
  const double* vectors;  // r_j - r_i, (pairs, 3)
  const std::int32_t *centers, *neighbors, *types;
  std::int64_t n_pairs, n_atoms, n_centers;
};

// Consecutive centres, and the pairs whose centres they are.
struct Part {
  std::int64_t first_atom, last_atom, first_pair, last_pair;
};

// g_nl / r^l = (1 - s)^3 sum_k C_k T_k(2s - 1), s = r^2 / r_cut^2.
template <class T>
struct Radial {
  const T* coefficients;  // (terms, radial functions)
  int terms;
  T inverse_square;  // 1 / r_cut^2
};

// ---------------------------------------------------------------- networks

enum Kind : std::int64_t { kEmbed, kDense, kNorm, kSwish, kTanh, kSoftplus, kAdd, kPick };

// One step of a network. It reads columns from `source` on and writes new ones from `target` on; a column is one number
// of every atom. kPick copies the column of the atom's element.
struct Operation {
  Kind kind;
  std::int64_t source, target, n_in, n_out;
  std::int64_t weights, bias;  // parameters by number, -1 without; for kAdd `weights` is the second source
  bool adds;                   // for kDense: later operations read the source too, and have left cotangents there
};

// A parameter of all members, or of none: then all share it.
template <class T>
struct Parameter {
  const T* data;
  std::int64_t size;  // of one member's share
};

template <class T>
struct Network {
  const Operation* operations;
  std::int64_t n_operations;
  std::int64_t n_shared;    // the first ones have the same parameters in all members
  std::int64_t n_backward;  // those behind do not act on the energy
  std::int64_t n_columns, n_shared_columns;
  const std::int64_t* outputs;  // columns; the first is the energy
  std::int64_t n_outputs;
  const Parameter<T>* parameters;
};

// ---------------------------------------------------------------- pair terms

enum class PairKind { kNone, kZbl, kMorse, kRepulsiveMorse };

// Numbers of a pair of elements, that of the centre first, in tables (elements, elements).
template <class T>
struct ZblPair {
  T strength;  // Z_i Z_j e^2 / (8 pi epsilon_0), in eV Å: half of a pair belongs to either atom
  T inverse_a;
  T radius;
};

template <class T>
struct MorsePair {
  T d;                 // phi = d x (x - 2), or d x where repulsive
  T constant, factor;  // x = exp(constant + factor r)
};

// The C^infinity switch of one member, from 1 at r^2 = on to 0 at r_cut^2; 1 - t = (end - r^2) scale.
template <class T>
struct MorseSwitch {
  T end, scale;
};

template <class T>
struct PairTerm {
  PairKind kind;
  std::int64_t count;  // of different terms: 0, 1 for all members, or one each
  const T* reach;      // squared, for each element of the centre
  const ZblPair<T>* zbl;
  const MorsePair<T>* morse;  // (members, elements, elements)
  const MorseSwitch<T>* switches;
};

// ---------------------------------------------------------------- all together

template <class T>
struct View {
  int n_max, n_elements;
  bool has_cross_terms;
  std::int64_t n_members;
  Radial<T> radial;
  Network<T> network;
  PairTerm<T> pair_term;
  const double* reference;  // energy of every element
};

// Where results go. n_energies is 1 for forces of the mean over members, else the number of members.
template <class T>
struct Target {
  std::int64_t n_energies;
  double* energies;             // (members, centres)
  double* aleatoric_variances;  // (members, centres, outputs - 1), or null
  double* virials;              // of the mean, (centres, 9), or null
  double* member_virials;       // (members, centres, 9), or null
  // What pairs do to atoms: (atoms, components, width) with 3 components, or 12 when the virial of a pair is also given
  // to its neighbour. Every part of the work has its own.
  T* actions;
  int n_components;
};

// The code of one instruction set in one precision.
template <class T>
struct Instance {
  // Numbers from one component of `actions` to the next.
  std::int64_t (*width)(std::int64_t n_energies);
  // By n_max - 1. False when pairs are not sorted by centre, or an index is out of range; throws std::bad_alloc.
  bool (*run[kMaxOrder])(const View<T>&, const Graph&, const Part&, const Target<T>&);
};

// Memory for registers, from code that is compiled for every processor; throws std::bad_alloc.
void* allocate(std::size_t bytes);
void release(void* memory) noexcept;

}  // namespace neuralil

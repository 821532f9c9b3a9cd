// Density coefficients of a flat list of pairs, the power spectrum, the pullbacks of both, and the sums of
// pair gradients to forces and virials, as handlers of XLA's foreign-function interface on the CPU.
//
//   c[segment, nlm] = sum over the segment's pairs of g_nl(r) Y_lm(r)
//
// The definitions are those of radial_basis.py and solid_harmonics.py, which are the reference. One
// lane of a SIMD register holds one pair (for the power spectrum, one atom); a block as long as a register goes
// through all polynomials at once. Only sums over a segment mix lanes: there, squares of (channel, pair) are
// transposed in registers, so that rows of c are read and written contiguously.
//
// The file is compiled once for every instruction set (see setup.py); the length of a register is the
// only thing that differs. No option that relaxes IEEE arithmetic is needed: not-a-number passes through.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

constexpr int kMaxTerms = 64;  // of a radial series; radial_basis.MAX_DEGREE is 48
constexpr int kMaxOrder = 8;   // largest n_max with compiled code

template <class T>
struct Register {
  typedef T type __attribute__((vector_size(kRegisterBytes)));
};
template <class T>
using Vec = typename Register<T>::type;
template <class T>
constexpr int kLanes = kRegisterBytes / sizeof(T);

// Numbers of functions at n_max = L; n = 0 ... L - l for every order l.
template <int L>
struct Counts {
  static constexpr int radial = (L + 1) * (L + 2) / 2;
  static constexpr int harmonics = (L + 1) * (L + 1);
  static constexpr int channels = (L + 1) * (L + 2) * (2 * L + 3) / 6;
};

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

// columns[i] = element i of every row, for rows of `width` numbers; room for padded(width) columns.
template <class T>
inline void load_transposed(const T* const* rows, int width, Vec<T>* columns) {
  constexpr int lanes = kLanes<T>;
  const int whole = width / lanes * lanes;
  for (int first = 0; first < whole; first += lanes) {
    for (int k = 0; k < lanes; ++k) std::memcpy(columns + first + k, rows[k] + first, sizeof(Vec<T>));
    transpose<T>(columns + first);
  }
  if (whole == width) return;
  for (int k = 0; k < lanes; ++k) {
    T tail[lanes] = {};
    std::memcpy(tail, rows[k] + whole, sizeof(T) * (width - whole));
    std::memcpy(columns + whole + k, tail, sizeof tail);
  }
  transpose<T>(columns + whole);
}

// The inverse, for the first `count` rows; overwrites the columns.
template <class T>
inline void store_transposed(Vec<T>* columns, int width, int count, T* const* rows) {
  constexpr int lanes = kLanes<T>;
  for (int first = 0; first < width; first += lanes) {
    transpose<T>(columns + first);
    const int size = width - first < lanes ? width - first : lanes;
    for (int k = 0; k < count; ++k) std::memcpy(rows[k] + first, columns + first + k, sizeof(T) * size);
  }
}

// ---------------------------------------------------------------- constants of the harmonics

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

// ---------------------------------------------------------------- one block of pairs

// The radial series and the cutoff, as handed over by Python.
template <class T>
struct Radial {
  const T* coefficients;  // (terms, radial functions): g_nl / r^l = (1 - s)^3 sum_k C_k T_k(2s - 1)
  int terms;
  T inverse_square;  // 1 / r_cut^2; s = r^2 / r_cut^2
};

template <class T, int L, bool kDerivatives>
struct Block {
  Vec<T> x, y, z;
  Vec<T> radial[Counts<L>::radial];
  Vec<T> slope[kDerivatives ? Counts<L>::radial : 1];  // d radial / ds
  Vec<T> cosine[L + 1] = {}, sine[L + 1] = {};         // real and imaginary part of (x + iy)^m
  Vec<T> legendre[L + 1][L + 1];                       // norm_lm r^(l-m) P_lm(z/r) / sin^m(theta)
  Vec<T> harmonic[Counts<L>::harmonics];

  // Reads `count` pairs, at most a register full; the lanes behind them lie outside the cutoff.
  // Returns false when no pair is inside: then all sums and derivatives are zero.
  bool read(const T* vectors, std::int64_t count, const Radial<T>& series) {
    alignas(kRegisterBytes) T component[3][kLanes<T>];
    for (int k = 0; k < kLanes<T>; ++k)
      for (int axis = 0; axis < 3; ++axis)
        component[axis][k] = k < count ? vectors[3 * k + axis] : T(0);
    std::memcpy(&x, component[0], sizeof x);
    std::memcpy(&y, component[1], sizeof y);
    std::memcpy(&z, component[2], sizeof z);
    Vec<T> s = (x * x + y * y + z * z) * series.inverse_square;
    for (int k = 0; k < kLanes<T>; ++k) s[k] = k < count && !(s[k] > 1) ? s[k] : T(1);
    bool any = false;
    for (int k = 0; k < kLanes<T>; ++k) any |= !(s[k] >= 1);
    if (!any) return false;
    set_radial(s, series);
    set_harmonics();
    return true;
  }

 private:
  void set_radial(Vec<T> s, const Radial<T>& series) {
    Vec<T> basis[kMaxTerms], basis_slope[kDerivatives ? kMaxTerms : 1];
    const Vec<T> t = 2 * s - 1, rest = 1 - s, envelope = rest * rest * rest;
    basis[0] = envelope;
    basis[1] = envelope * t;
    for (int k = 2; k < series.terms; ++k) basis[k] = 2 * t * basis[k - 1] - basis[k - 2];
    if constexpr (kDerivatives) {
      basis_slope[0] = -3 * rest * rest;
      basis_slope[1] = basis_slope[0] * t + 2 * envelope;
      for (int k = 2; k < series.terms; ++k)
        basis_slope[k] = 2 * t * basis_slope[k - 1] - basis_slope[k - 2] + 4 * basis[k - 1];
    }
    expand(basis, series, radial);
    if constexpr (kDerivatives) expand(basis_slope, series, slope);
  }

  // Product of the coefficients with the basis, some functions at a time to stay in registers.
  static void expand(const Vec<T>* basis, const Radial<T>& series, Vec<T>* functions) {
    constexpr int n = Counts<L>::radial, group = 8;
    int first = 0;
    for (; first + group <= n; first += group) expand_group<group>(basis, series, functions, first);
    expand_group<n % group>(basis, series, functions, first);
  }

  template <int kGroup>
  static void expand_group(const Vec<T>* basis, const Radial<T>& series, Vec<T>* functions, int first) {
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

  void set_harmonics() {
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

// ---------------------------------------------------------------- pairs -> coefficients

// Sums rows of one segment in registers and adds them to its row of c when the segment ends.
template <class T, int L>
class SegmentSum {
 public:
  static constexpr int kTiles = padded<T>(Counts<L>::channels) / kLanes<T>;

  SegmentSum(T* density, std::int64_t n_segments) : density_(density), n_segments_(n_segments) {}
  ~SegmentSum() { flush(); }

  void add(std::int32_t segment, const Vec<T>* row, std::int64_t stride) {
    if (segment != segment_) {
      flush();
      segment_ = segment;
      for (Vec<T>& sum : sums_) sum = Vec<T>{};
    }
    for (int tile = 0; tile < kTiles; ++tile) sums_[tile] += row[tile * stride];
  }

 private:
  void flush() {
    if (segment_ < 0 || segment_ >= n_segments_) return;
    T values[kTiles * kLanes<T>];
    std::memcpy(values, sums_, sizeof values);
    T* row = density_ + std::int64_t(segment_) * Counts<L>::channels;
    for (int i = 0; i < Counts<L>::channels; ++i) row[i] += values[i];
  }

  T* density_;
  std::int64_t n_segments_;
  std::int32_t segment_ = -1;
  Vec<T> sums_[kTiles] = {};
};

template <class T, int L>
void sum_pairs(const T* vectors, const std::int32_t* segments, std::int64_t n_pairs,
               const Radial<T>& series, T* density, std::int64_t n_segments) {
  constexpr int lanes = kLanes<T>;
  std::memset(density, 0, sizeof(T) * n_segments * Counts<L>::channels);
  SegmentSum<T, L> sum(density, n_segments);
  Block<T, L, false> block;
  // products[channel][pair]; after transposition tile by tile, products[tile * lanes + pair][channel]
  Vec<T> products[SegmentSum<T, L>::kTiles * lanes] = {};
  for (std::int64_t first = 0; first < n_pairs; first += lanes) {
    const std::int64_t count = n_pairs - first < lanes ? n_pairs - first : lanes;
    if (!block.read(vectors + 3 * first, count, series)) continue;
    Vec<T>* product = products;
    const Vec<T>* radial = block.radial;
#pragma GCC unroll 9
    for (int l = 0; l <= L; ++l)
#pragma GCC unroll 9
      for (int n = 0; n <= L - l; ++n, ++radial)
#pragma GCC unroll 17
        for (int m = 0; m < 2 * l + 1; ++m) *product++ = *radial * block.harmonic[l * l + m];
    for (int tile = 0; tile < SegmentSum<T, L>::kTiles; ++tile) transpose<T>(products + tile * lanes);
    for (int k = 0; k < count; ++k) sum.add(segments[first + k], products + k, lanes);
    for (int i = Counts<L>::channels; i < SegmentSum<T, L>::kTiles * lanes; ++i) products[i] = Vec<T>{};
  }
}

// ---------------------------------------------------------------- cotangents of c -> pair gradients

// Reads the rows of the cotangent that belong to a block's pairs, one pair in each lane.
template <class T, int L>
void gather_rows(const T* cotangent, const std::int32_t* segments, std::int64_t count,
                 std::int64_t n_segments, Vec<T>* gathered) {
  constexpr int channels = Counts<L>::channels;
  static const T zeros[channels] = {};
  const T* rows[kLanes<T>];
  for (int k = 0; k < kLanes<T>; ++k) {
    const bool inside = k < count && segments[k] >= 0 && segments[k] < n_segments;
    rows[k] = inside ? cotangent + std::int64_t(segments[k]) * channels : zeros;
  }
  load_transposed<T>(rows, channels, gathered);
}

// Derivatives of sum_q cotangent_q radial_q harmonic_q by x, y and z. With Q_lm the Legendre part,
// dQ_lm/dx = -x Q_{l-1,m+1}, dQ_lm/dz = (l + m) Q_{l-1,m}, d(x + iy)^m/dx = m (x + iy)^(m-1).
template <class T, int L>
void contract(const Block<T, L, true>& block, const Vec<T>* cotangent, T inverse_square, Vec<T>* gradient) {
  static const HarmonicConstants<T, L> constants;
  Vec<T> by_s = {};  // derivative by s = r^2 / r_cut^2
  // For every m: sums over l for the cosine and the sine part, with Q_lm, Q_{l-1,m+1} and Q_{l-1,m}.
  Vec<T> same_c[L + 1] = {}, same_s[L + 1] = {}, raised_c[L + 1] = {}, raised_s[L + 1] = {};
  Vec<T> lowered_c[L + 1] = {}, lowered_s[L + 1] = {};
  const Vec<T>*radial = block.radial, *slope = block.slope;
#pragma GCC unroll 9
  for (int l = 0; l <= L; ++l) {
    Vec<T> by_harmonic[2 * L + 1] = {};
#pragma GCC unroll 9
    for (int n = 0; n <= L - l; ++n, ++radial, ++slope) {
      Vec<T> by_radial = {};
#pragma GCC unroll 17
      for (int m = 0; m < 2 * l + 1; ++m, ++cotangent) {
        by_harmonic[m] += *cotangent * *radial;
        by_radial += *cotangent * block.harmonic[l * l + m];
      }
      by_s += by_radial * *slope;
    }
#pragma GCC unroll 9
    for (int m = 0; m <= l; ++m) {
      const Vec<T> by_cosine = by_harmonic[l + m], by_sine = m ? by_harmonic[l - m] : Vec<T>{};
      same_c[m] += by_cosine * block.legendre[l][m];
      same_s[m] += by_sine * block.legendre[l][m];
      if (m + 1 < l) {
        const Vec<T> raised = constants.raise[l][m] * block.legendre[l - 1][m + 1];
        raised_c[m] += by_cosine * raised;
        raised_s[m] += by_sine * raised;
      }
      if (m < l) {
        const Vec<T> lowered = constants.lower[l][m] * block.legendre[l - 1][m];
        lowered_c[m] += by_cosine * lowered;
        lowered_s[m] += by_sine * lowered;
      }
    }
  }
  const Vec<T> along_r = 2 * inverse_square * by_s;
  Vec<T> along_xy = along_r, x = {}, y = {}, z = along_r * block.z;
#pragma GCC unroll 9
  for (int m = 0; m <= L; ++m) {
    along_xy -= raised_c[m] * block.cosine[m] + raised_s[m] * block.sine[m];
    z += lowered_c[m] * block.cosine[m] + lowered_s[m] * block.sine[m];
    if (m) {
      x += T(m) * (same_c[m] * block.cosine[m - 1] + same_s[m] * block.sine[m - 1]);
      y += T(m) * (same_s[m] * block.cosine[m - 1] - same_c[m] * block.sine[m - 1]);
    }
  }
  gradient[0] = x + along_xy * block.x;
  gradient[1] = y + along_xy * block.y;
  gradient[2] = z;
}

// `n_members` cotangents of shape (n_segments, channels) share the polynomials of every block.
template <class T, int L>
void pull_back_pairs(const T* vectors, const std::int32_t* segments, std::int64_t n_pairs,
                     const Radial<T>& series, const T* cotangents, std::int64_t n_members,
                     std::int64_t n_segments, T* gradients) {
  constexpr int lanes = kLanes<T>;
  Block<T, L, true> block;
  Vec<T> gathered[SegmentSum<T, L>::kTiles * lanes];
  for (std::int64_t first = 0; first < n_pairs; first += lanes) {
    const std::int64_t count = n_pairs - first < lanes ? n_pairs - first : lanes;
    const bool any = block.read(vectors + 3 * first, count, series);
    for (std::int64_t member = 0; member < n_members; ++member) {
      T* out = gradients + 3 * (member * n_pairs + first);
      if (!any) {
        std::memset(out, 0, sizeof(T) * 3 * count);
        continue;
      }
      const T* cotangent = cotangents + member * n_segments * Counts<L>::channels;
      gather_rows<T, L>(cotangent, segments + first, count, n_segments, gathered);
      Vec<T> gradient[3];
      contract<T, L>(block, gathered, series.inverse_square, gradient);
      T components[3][lanes];
      std::memcpy(components, gradient, sizeof components);
      for (int k = 0; k < count; ++k)
        for (int axis = 0; axis < 3; ++axis) out[3 * k + axis] = components[axis][k];
    }
  }
}

// ---------------------------------------------------------------- coefficients -> power spectrum

// Calls function(atoms, count) with the indices of every block of atoms; the last block repeats its last atom.
template <class T, class Function>
void for_blocks_of_atoms(std::int64_t n_atoms, Function&& function) {
  constexpr int lanes = kLanes<T>;
  for (std::int64_t first = 0; first < n_atoms; first += lanes) {
    const int count = int(n_atoms - first < lanes ? n_atoms - first : lanes);
    std::int64_t atoms[lanes];
    for (int k = 0; k < lanes; ++k) atoms[k] = first + (k < count ? k : count - 1);
    function(atoms, count);
  }
}

// Pointers to the rows of some atoms in an array of rows of `width` numbers.
template <class T, class Row>
void point_to_rows(Row* base, const std::int64_t* atoms, int width, Row** rows) {
  for (int k = 0; k < kLanes<T>; ++k) rows[k] = base + atoms[k] * width;
}

// p_{ab,nl} = sum_m c_{a,nlm} c_{b,nlm} for every unordered pair of elements.
template <class T, int L>
void power_spectrum(const T* density, std::int64_t n_atoms, int n_elements, T* features) {
  constexpr int channels = Counts<L>::channels, lanes = kLanes<T>;
  const int n_density = n_elements * channels;
  const int n_features = n_elements * (n_elements + 1) / 2 * Counts<L>::radial;
  std::vector<Vec<T>> c(padded<T>(n_density)), p(padded<T>(n_features));
  for_blocks_of_atoms<T>(n_atoms, [&](const std::int64_t* atoms, int count) {
    const T* from[lanes];
    T* to[lanes];
    point_to_rows<T>(density, atoms, n_density, from);
    point_to_rows<T>(features, atoms, n_features, to);
    load_transposed<T>(from, n_density, c.data());
    Vec<T>* feature = p.data();
    for (int a = 0; a < n_elements; ++a)
      for (int b = a; b < n_elements; ++b) {
        const Vec<T>*c_a = c.data() + a * channels, *c_b = c.data() + b * channels;
#pragma GCC unroll 9
        for (int l = 0; l <= L; ++l)
          for (int n = 0; n <= L - l; ++n) {
            Vec<T> sum = {};
#pragma GCC unroll 17
            for (int m = 0; m < 2 * l + 1; ++m) sum += *c_a++ * *c_b++;
            *feature++ = sum;
          }
      }
    store_transposed<T>(p.data(), n_features, count, to);
  });
}

// `n_members` cotangents of shape (n_atoms, features) share the coefficients.
template <class T, int L>
void pull_back_spectrum(const T* density, std::int64_t n_atoms, int n_elements, const T* cotangents,
                        std::int64_t n_members, T* gradients) {
  constexpr int channels = Counts<L>::channels, lanes = kLanes<T>;
  const int n_density = n_elements * channels;
  const int n_features = n_elements * (n_elements + 1) / 2 * Counts<L>::radial;
  std::vector<Vec<T>> c(padded<T>(n_density)), by_c(padded<T>(n_density)), by_p(padded<T>(n_features));
  for_blocks_of_atoms<T>(n_atoms, [&](const std::int64_t* atoms, int count) {
    const T* from[lanes];
    T* to[lanes];
    point_to_rows<T>(density, atoms, n_density, from);
    load_transposed<T>(from, n_density, c.data());
    for (std::int64_t member = 0; member < n_members; ++member) {
      point_to_rows<T>(cotangents + member * n_atoms * n_features, atoms, n_features, from);
      point_to_rows<T>(gradients + member * n_atoms * n_density, atoms, n_density, to);
      load_transposed<T>(from, n_features, by_p.data());
      std::fill(by_c.begin(), by_c.end(), Vec<T>{});
      const Vec<T>* feature = by_p.data();
      for (int a = 0; a < n_elements; ++a)
        for (int b = a; b < n_elements; ++b) {
          const Vec<T>*c_a = c.data() + a * channels, *c_b = c.data() + b * channels;
          Vec<T>*by_a = by_c.data() + a * channels, *by_b = by_c.data() + b * channels;
#pragma GCC unroll 9
          for (int l = 0; l <= L; ++l)
            for (int n = 0; n <= L - l; ++n, ++feature)
#pragma GCC unroll 17
              for (int m = 0; m < 2 * l + 1; ++m) {
                *by_a++ += *feature * *c_b++;
                *by_b++ += *feature * *c_a++;
              }
        }
      store_transposed<T>(by_c.data(), n_density, count, to);
    }
  });
}

// ---------------------------------------------------------------- pair gradients -> forces, virials

// With r_ij = r_j - r_i and g_ij = dE/dr_ij: F_i = sum_j g_ij - g_ji; virial of the center i, symmetrised,
// sum_j r_ij g_ij in the order xx yy zz yz xz xy.
template <class T>
void scatter_pairs(const T* vectors, const std::int32_t* centers, const std::int32_t* neighbors,
                   std::int64_t n_pairs, const T* gradients, std::int64_t n_atoms, T* forces, T* virials) {
  std::memset(forces, 0, sizeof(T) * 3 * n_atoms);
  std::memset(virials, 0, sizeof(T) * 6 * n_atoms);
  for (std::int64_t pair = 0; pair < n_pairs;) {
    const std::int32_t center = centers[pair];
    T force[3] = {}, virial[6] = {};
    for (; pair < n_pairs && centers[pair] == center; ++pair) {
      const T *r = vectors + 3 * pair, *g = gradients + 3 * pair;
      T* recoil = forces + 3 * std::int64_t(neighbors[pair]);
      for (int axis = 0; axis < 3; ++axis) {
        force[axis] += g[axis];
        recoil[axis] -= g[axis];
        virial[axis] += r[axis] * g[axis];
      }
      virial[3] += (r[1] * g[2] + r[2] * g[1]) / 2;
      virial[4] += (r[0] * g[2] + r[2] * g[0]) / 2;
      virial[5] += (r[0] * g[1] + r[1] * g[0]) / 2;
    }
    for (int axis = 0; axis < 3; ++axis) forces[3 * std::int64_t(center) + axis] += force[axis];
    for (int i = 0; i < 6; ++i) virials[6 * std::int64_t(center) + i] += virial[i];
  }
}

// ---------------------------------------------------------------- handlers

// Calls function(std::integral_constant<int, n_max>, T()) with the compiled n_max and the buffer's type.
template <class Function, int L = 1>
ffi::Error with_order(std::int64_t n_max, Function&& function) {
  if (n_max == L) return function(std::integral_constant<int, L>{});
  if constexpr (L < kMaxOrder) return with_order<Function, L + 1>(n_max, std::forward<Function>(function));
  return ffi::Error::InvalidArgument("pair kernel: no code for this n_max");
}

template <class Function>
ffi::Error with_type(ffi::DataType type, Function&& function) {
  if (type == ffi::DataType::F32) return function(float());
  if (type == ffi::DataType::F64) return function(double());
  return ffi::Error::InvalidArgument("pair kernel: vectors must be float32 or float64");
}

template <class T>
ffi::ErrorOr<Radial<T>> read_series(const ffi::AnyBuffer& buffer, double r_cut, int n_radial) {
  const auto shape = buffer.dimensions();
  if (shape.size() != 2 || shape[0] < 2 || shape[0] > kMaxTerms || shape[1] != n_radial)
    return ffi::Unexpected(ffi::Error::InvalidArgument("pair kernel: radial series of a wrong shape"));
  return Radial<T>{buffer.typed_data<T>(), int(shape[0]), T(1 / (r_cut * r_cut))};
}

ffi::Error sum_handler(ffi::AnyBuffer vectors, ffi::AnyBuffer segments, ffi::AnyBuffer coefficients,
                       ffi::Result<ffi::AnyBuffer> density, std::int64_t n_max, double r_cut) {
  return with_type(vectors.element_type(), [&](auto zero) {
    using T = decltype(zero);
    return with_order(n_max, [&](auto order) -> ffi::Error {
      constexpr int L = decltype(order)::value;
      auto series = read_series<T>(coefficients, r_cut, Counts<L>::radial);
      if (!series.has_value()) return series.error();
      sum_pairs<T, L>(vectors.typed_data<T>(), segments.typed_data<std::int32_t>(),
                      segments.element_count(), *series, density->typed_data<T>(),
                      density->element_count() / Counts<L>::channels);
      return ffi::Error::Success();
    });
  });
}

// cotangents: (members, segments, channels)
ffi::Error pull_back_handler(ffi::AnyBuffer vectors, ffi::AnyBuffer segments, ffi::AnyBuffer coefficients,
                             ffi::AnyBuffer cotangents, ffi::Result<ffi::AnyBuffer> gradients,
                             std::int64_t n_max, double r_cut) {
  const auto shape = cotangents.dimensions();
  const std::int64_t n_segments = shape[1];
  return with_type(vectors.element_type(), [&](auto zero) {
    using T = decltype(zero);
    return with_order(n_max, [&](auto order) -> ffi::Error {
      constexpr int L = decltype(order)::value;
      auto series = read_series<T>(coefficients, r_cut, Counts<L>::radial);
      if (!series.has_value()) return series.error();
      const std::int64_t n_pairs = segments.element_count();
      pull_back_pairs<T, L>(vectors.typed_data<T>(), segments.typed_data<std::int32_t>(), n_pairs, *series,
                            cotangents.typed_data<T>(), shape[0], n_segments, gradients->typed_data<T>());
      return ffi::Error::Success();
    });
  });
}

// density: (atoms, elements, channels)
ffi::Error spectrum_handler(ffi::AnyBuffer density, ffi::Result<ffi::AnyBuffer> features, std::int64_t n_max) {
  const auto shape = density.dimensions();
  return with_type(density.element_type(), [&](auto zero) {
    using T = decltype(zero);
    return with_order(n_max, [&](auto order) -> ffi::Error {
      power_spectrum<T, decltype(order)::value>(density.typed_data<T>(), shape[0], int(shape[1]),
                                                features->typed_data<T>());
      return ffi::Error::Success();
    });
  });
}

// cotangents: (members, atoms, features)
ffi::Error pull_back_spectrum_handler(ffi::AnyBuffer density, ffi::AnyBuffer cotangents,
                                      ffi::Result<ffi::AnyBuffer> gradients, std::int64_t n_max) {
  const auto shape = density.dimensions();
  return with_type(density.element_type(), [&](auto zero) {
    using T = decltype(zero);
    return with_order(n_max, [&](auto order) -> ffi::Error {
      pull_back_spectrum<T, decltype(order)::value>(density.typed_data<T>(), shape[0], int(shape[1]),
                                                    cotangents.typed_data<T>(), cotangents.dimensions()[0],
                                                    gradients->typed_data<T>());
      return ffi::Error::Success();
    });
  });
}

ffi::Error scatter_handler(ffi::AnyBuffer vectors, ffi::AnyBuffer centers, ffi::AnyBuffer neighbors,
                           ffi::AnyBuffer gradients, ffi::Result<ffi::AnyBuffer> forces,
                           ffi::Result<ffi::AnyBuffer> virials) {
  const auto shape = forces->dimensions();
  const std::int64_t n_members = shape[0], n_atoms = shape[1], n_pairs = centers.element_count();
  return with_type(vectors.element_type(), [&](auto zero) {
    using T = decltype(zero);
    for (std::int64_t member = 0; member < n_members; ++member)
      scatter_pairs<T>(vectors.typed_data<T>(), centers.typed_data<std::int32_t>(),
                       neighbors.typed_data<std::int32_t>(), n_pairs,
                       gradients.typed_data<T>() + 3 * member * n_pairs, n_atoms,
                       forces->typed_data<T>() + 3 * member * n_atoms,
                       virials->typed_data<T>() + 6 * member * n_atoms);
    return ffi::Error::Success();
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(neuralil_sum_pairs, sum_handler,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<std::int64_t>("n_max")
                                  .Attr<double>("r_cut"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(neuralil_pull_back_pairs, pull_back_handler,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<std::int64_t>("n_max")
                                  .Attr<double>("r_cut"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(neuralil_power_spectrum, spectrum_handler,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<std::int64_t>("n_max"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(neuralil_pull_back_spectrum, pull_back_spectrum_handler,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<std::int64_t>("n_max"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(neuralil_scatter_pairs, scatter_handler,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

// The level of the x86-64 instruction set of this processor: 4, 3 or 1; 0 elsewhere.
extern "C" int neuralil_x86_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return 4;
  if (__builtin_cpu_supports("x86-64-v3")) return 3;
  return 1;
#else
  return 0;
#endif
}

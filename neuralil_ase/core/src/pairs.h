// Pairs -> density coefficients, and cotangents of those -> pair gradients -> forces and virials.
//
//   c[segment, nlm] = sum over the segment's pairs of g_nl(r) Y_lm(r)
//
// The definitions are those of radial_basis.py and solid_harmonics.py. One lane holds one pair; a register full of
// pairs goes through all polynomials at once. Only sums over a segment mix lanes: there, squares of (channel, pair)
// are transposed in registers.

#pragma once

#include "registers.h"

namespace neuralil {

constexpr int kMaxTerms = 64;  // of a radial series; radial_basis.MAX_DEGREE is 48


// Numbers of functions at n_max = L; n = 0 ... L - l for every order l.
template <int L>
struct Counts {
  static constexpr int radial = (L + 1) * (L + 2) / 2;
  static constexpr int harmonics = (L + 1) * (L + 1);
  static constexpr int channels = (L + 1) * (L + 2) * (2 * L + 3) / 6;
};

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
    T few[3 * kLanes<T>] = {};
    if (count < kLanes<T>) {
      std::copy_n(vectors, 3 * count, few);
      vectors = few;
    }
    constexpr std::make_index_sequence<kLanes<T>> all{};
    x = component<T, 0>(vectors, all), y = component<T, 1>(vectors, all), z = component<T, 2>(vectors, all);
    Vec<T> s = (x * x + y * y + z * z) * series.inverse_square;
    s = s > 1 ? Vec<T>{} + 1 : s;  // not-a-number stays
    for (int k = count; k < kLanes<T>; ++k) s[k] = 1;
    bool any = false;
    for (int k = 0; k < kLanes<T>; ++k) any |= s[k] != 1;
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

// Sums rows of one segment in registers and adds them to its row of c, which begins at `segment`, when it ends.
template <class T, int L>
class SegmentSum {
 public:
  static constexpr int kTiles = padded<T>(Counts<L>::channels) / kLanes<T>;

  explicit SegmentSum(T* density) : density_(density) {}
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
    if (segment_ < 0) return;
    T values[kTiles * kLanes<T>];
    std::memcpy(values, sums_, sizeof values);
    T* row = density_ + segment_;
    for (int i = 0; i < Counts<L>::channels; ++i) row[i] += values[i];
  }

  T* density_;
  std::int32_t segment_ = -1;
  Vec<T> sums_[kTiles] = {};
};

template <class T, int L>
void sum_pairs(const T* vectors, const std::int32_t* segments, std::int64_t n_pairs,
               const Radial<T>& series, T* density, std::int64_t size) {
  constexpr int lanes = kLanes<T>;
  std::fill_n(density, size, T(0));
  SegmentSum<T, L> sum(density);
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
void gather_rows(const T* cotangent, const std::int32_t* segments, int count, Vec<T>* gathered) {
  static const T zeros[padded<T>(Counts<L>::channels)] = {};
  const T* rows[kLanes<T>];
  for (int k = 0; k < kLanes<T>; ++k) rows[k] = k < count ? cotangent + segments[k] : zeros;
  load_transposed<T>(rows, Counts<L>::channels, gathered);
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

// ---------------------------------------------------------------- many energies

// Derivatives of every radial_nl harmonic_lm by x, y and z, from which those of many energies are sums.
template <class T, int L>
void differentiate(const Block<T, L, true>& block, T inverse_square, Vec<T> (*derivatives)[3]) {
  static const HarmonicConstants<T, L> constants;
  const Vec<T>*radial = block.radial, *slope = block.slope;
  const Vec<T> r[3] = {block.x, block.y, block.z};
#pragma GCC unroll 9
  for (int l = 0; l <= L; ++l) {
    Vec<T> by_vector[2 * L + 1][3] = {};  // derivatives of harmonic_lm
#pragma GCC unroll 9
    for (int m = 0; m <= l; ++m) {
      Vec<T> raised = {}, lowered = {}, same = {}, cosine = {}, sine = {};
      if (m + 1 < l) raised = constants.raise[l][m] * block.legendre[l - 1][m + 1];
      if (m < l) lowered = constants.lower[l][m] * block.legendre[l - 1][m];
      if (m) same = T(m) * block.legendre[l][m], cosine = block.cosine[m - 1], sine = block.sine[m - 1];
      by_vector[l + m][0] = same * cosine - raised * block.x * block.cosine[m];
      by_vector[l + m][1] = -(same * sine) - raised * block.y * block.cosine[m];
      by_vector[l + m][2] = lowered * block.cosine[m];
      if (!m) continue;
      by_vector[l - m][0] = same * sine - raised * block.x * block.sine[m];
      by_vector[l - m][1] = same * cosine - raised * block.y * block.sine[m];
      by_vector[l - m][2] = lowered * block.sine[m];
    }
#pragma GCC unroll 9
    for (int n = 0; n <= L - l; ++n, ++radial, ++slope) {
      const Vec<T> along_r = 2 * inverse_square * *slope;
#pragma GCC unroll 17
      for (int m = 0; m < 2 * l + 1; ++m, ++derivatives)
        for (int axis = 0; axis < 3; ++axis)
          (*derivatives)[axis] = along_r * block.harmonic[l * l + m] * r[axis] + *radial * by_vector[m][axis];
    }
  }
}

// Gradients of one pair, one energy in each lane; the cotangents of its segment are `apart` from channel to channel.
template <class T, int L>
void contract_pair(const Vec<T> (*derivatives)[3], int pair, const Vec<T>* cotangent, std::int64_t apart,
                   Vec<T>* gradient) {
  Vec<T> sum[4][3] = {};  // four for each axis, which need not wait for each other
  const auto add = [&](int channel, int which) {
    for (int axis = 0; axis < 3; ++axis)
      sum[which][axis] += derivatives[channel][axis][pair] * cotangent[channel * apart];
  };
  int channel = 0;
  for (; channel + 4 <= Counts<L>::channels; channel += 4)
    for (int k = 0; k < 4; ++k) add(channel + k, k);
  for (; channel < Counts<L>::channels; ++channel) add(channel, 0);
  for (int axis = 0; axis < 3; ++axis) gradient[axis] = (sum[0][axis] + sum[1][axis]) + (sum[2][axis] + sum[3][axis]);
}

// ---------------------------------------------------------------- pair gradients -> forces, virials

// With r_ij = r_j - r_i and g_ij = dE/dr_ij: F_i = sum_j g_ij - g_ji, shape (atoms, 3); virial of the center i,
// symmetrised, sum_j r_ij g_ij in the order xx yy zz yz xz xy, shape (atoms, 6).
template <class T>
struct Forces {
  T* forces;
  std::int64_t width;  // numbers from one component of a force to the next
  T* virials;

  // Adds what `count` pairs, one in each lane, do to their atoms.
  void add(const Vec<T>* r, const Vec<T>* g, const std::int32_t* centers, const std::int32_t* neighbors,
           int count) const {
    constexpr int lanes = kLanes<T>, tiles = padded<T>(9) / lanes;
    Vec<T> rows[tiles * lanes];
    for (int i = 0; i < 3; ++i) {
      const int a = (i + 1) % 3, b = (i + 2) % 3;
      rows[i] = g[i];
      rows[3 + i] = r[i] * g[i];
      rows[6 + i] = (r[a] * g[b] + r[b] * g[a]) / 2;
    }
    for (int i = 9; i < tiles * lanes; ++i) rows[i] = g[0];  // whatever, but numbers
    for (int tile = 0; tile < tiles; ++tile) transpose<T>(rows + tile * lanes);
    Vec<T> sum[tiles] = {};
    for (int k = 0; k < count; ++k) {
      T* recoil = forces + 3 * width * std::int64_t(neighbors[k]);
      for (int axis = 0; axis < 3; ++axis) recoil[axis * width] -= rows[axis / lanes * lanes + k][axis % lanes];
      for (int tile = 0; tile < tiles; ++tile) sum[tile] += rows[tile * lanes + k];
      if (k + 1 == count || centers[k + 1] != centers[k]) {
        add_to_center(centers[k], sum);
        for (Vec<T>& part : sum) part = Vec<T>{};
      }
    }
  }

 private:
  void add_to_center(std::int64_t center, const Vec<T>* sum) const {
    T values[padded<T>(9)];
    std::memcpy(values, sum, sizeof values);
    for (int i = 0; i < 3; ++i) forces[(3 * center + i) * width] += values[i];
    for (int i = 0; i < 6; ++i) virials[6 * center + i] += values[3 + i];
  }
};

}  // namespace neuralil

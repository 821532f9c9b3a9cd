// Pairs -> density coefficients, and cotangents of those -> pair gradients.
//
//   c[segment, nlm] = sum over the segment's pairs of g_nl(r) Y_lm(r)
//
// One lane holds one pair; a register full of pairs goes through all polynomials at once. Only sums over a segment mix
// lanes: there, squares of (channel, pair) are transposed in registers.

#pragma once

#include "harmonics.h"
#include "radial.h"

namespace neuralil::NEURALIL_ISA {

// ---------------------------------------------------------------- one block of pairs

template <class T, int L, bool kDerivatives>
struct Block : Harmonics<T, L> {
  using Harmonics<T, L>::x;
  using Harmonics<T, L>::y;
  using Harmonics<T, L>::z;
  Vec<T> radial[Counts<L>::radial];
  Vec<T> slope[kDerivatives ? Counts<L>::radial : 1];  // d radial / ds, s = r^2 / r_cut^2
  Vec<T> r_squared;                                    // of lanes without a pair: beyond the cutoff

  // Reads `count` pairs, at most a register full; the lanes behind them lie outside the cutoff.
  // Returns false when no pair is inside: then all sums and derivatives are zero.
  bool read(const double* vectors, std::int64_t count, const Radial<T>& series) {
    double few[3 * kLanes<T>];
    if (count < kLanes<T>) {
      for (std::int64_t i = 0; i < 3 * count; ++i) few[i] = vectors[i];
      for (std::int64_t i = 3 * count; i < 3 * kLanes<T>; ++i) few[i] = 0;
      vectors = few;
    }
    const Vec<T> a = load_rounded<T>(vectors), b = load_rounded<T>(vectors + kLanes<T>),
                 c = load_rounded<T>(vectors + 2 * kLanes<T>);
    constexpr std::make_index_sequence<kLanes<T>> all{};
    x = component<T, 0>(a, b, c, all), y = component<T, 1>(a, b, c, all), z = component<T, 2>(a, b, c, all);
    r_squared = x * x + y * y + z * z;
    Vec<T> s = r_squared * series.inverse_square;
    s = s > 1 ? Vec<T>{} + 1 : s;  // not-a-number stays
    for (int k = count; k < kLanes<T>; ++k) s[k] = 1;
    bool any = false;
    for (int k = 0; k < kLanes<T>; ++k) any |= s[k] != 1;
    if (!any) return false;
    radial_functions<T, L, kDerivatives>(s, series, radial, slope);
    this->set();
    return true;
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
void sum_pairs(const double* vectors, const std::int32_t* segments, std::int64_t n_pairs, const Radial<T>& series,
               T* density, std::int64_t size) {
  constexpr int lanes = kLanes<T>;
  fill_zero(density, size);
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

}  // namespace neuralil::NEURALIL_ISA

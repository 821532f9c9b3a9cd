// Energies, forces and virials of a padded graph, as one handler of XLA's foreign-function interface on the CPU.
//
// A register full of atoms at a time goes the whole way, from its pairs to density coefficients, power spectrum and
// networks and back to pair gradients, forces and virials: nothing in between leaves the processor's cache.
// The pure JAX functions of the package are the reference. Large graphs are shared out among JAX's own threads.
//
// The file is compiled once for every instruction set (see build.py); the length of a register is the
// only thing that differs. No option that relaxes IEEE arithmetic is needed: not-a-number passes through.

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "network.h"
#include "pairs.h"
#include "spectrum.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace neuralil {

constexpr int kMaxOrder = 8;             // largest n_max with compiled code
constexpr std::int64_t kFewestAtoms = 256;  // that are worth a thread

template <class T>
struct Graph {
  const T* vectors;
  const std::int32_t *centers, *neighbors, *types;
  std::int64_t n_pairs, n_atoms;
};

// Gradients of other pair terms, (count, pairs, 3), added to the descriptor's: for each energy, or one for all.
template <class T>
struct PairTerm {
  const T* gradients;
  std::int64_t count, n_pairs;

  T operator()(std::int64_t energy, std::int64_t pair, int axis) const {
    return count ? gradients[3 * ((count == 1 ? 0 : energy) * n_pairs + pair) + axis] : T(0);
  }
};

// Results: outputs (members, atoms, columns); forces and virials of every member or of the mean, (energies, atoms, 3
// and 6), but forces under way are (atoms, 3, width). Outputs and virials of an atom are written by whoever has it as a
// center; forces also act on neighbours.
template <class T>
struct Results {
  T *outputs, *forces, *virials;
  std::int64_t n_members, n_energies;

  bool has_energies_in_lanes() const { return n_energies > kLanes<T> / 4; }
  std::int64_t width() const { return has_energies_in_lanes() ? padded<T>(n_energies) : n_energies; }
};

// Consecutive atoms, and the pairs whose centers they are.
struct Part {
  std::int64_t first_atom, last_atom, first_pair, last_pair;
};

template <class T, int L>
class Evaluation {
 public:
  Evaluation(const Graph<T>& graph, const Radial<T>& series, const Tape<T>& tape, const PairTerm<T>& pair_term,
             int n_elements, bool has_cross_terms, const Results<T>& results)
      : graph_(graph), series_(series), tape_(tape), pair_term_(pair_term), results_(results),
        spectrum_(n_elements, has_cross_terms), n_density_(n_elements * Counts<L>::channels),
        stride_(padded<T>(n_density_)), density_((lanes + 1) * stride_),
        by_density_(results.width() * stride_ + 1),
        density_columns_(kAbreast * stride_), by_density_columns_(results.n_energies * kAbreast * stride_),
        sums_(9 * results.width()), columns_(kAbreast * tape.n_columns), cotangents_(kAbreast * tape.n_columns) {}

  // Adds what the atoms of a part do to forces and virials, and writes their outputs. False when pairs are not sorted
  // by centers, or an index is out of range.
  bool run(const Part& part) {
    std::int64_t ends[kAbreast + 1] = {part.first_pair};
    for (first_ = part.first_atom; first_ < part.last_atom; first_ += count_) {
      count_ = int(std::min<std::int64_t>(kAbreast * lanes, part.last_atom - first_));
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

  static T* numbers(std::vector<Vec<T>>& registers) { return reinterpret_cast<T*>(registers.data()); }

  // Where the coefficients of center and neighbour element begin for every pair of a register's atoms; the pairs begin
  // at `begin`. Returns their end, or -1.
  std::int64_t find_segments(std::int64_t begin, std::int64_t last, int r) {
    const std::int64_t first_atom = first_ + r * lanes, last_atom = first_ + std::min((r + 1) * lanes, count_);
    segments_[r].clear();
    std::int64_t pair = begin;
    for (; pair < last && graph_.centers[pair] < last_atom; ++pair) {
      const std::int64_t center = graph_.centers[pair], neighbor = graph_.neighbors[pair];
      if (center < first_atom || neighbor < 0 || neighbor >= graph_.n_atoms) return -1;
      const std::int64_t element = graph_.types[neighbor];
      segments_[r].push_back(std::int32_t((center - first_atom) * stride_ + element * Counts<L>::channels));
    }
    return pair;
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

  // From features to outputs and by_density_columns_. Where only the mean is asked for, all members' cotangents meet in
  // the columns that they share, and go back from there as one.
  void run_networks() {
    std::int32_t types[kAbreast * lanes];
    for (int k = 0; k < kAbreast * lanes; ++k) types[k] = graph_.types[std::min(first_ + k, graph_.n_atoms - 1)];
    tape_.forward(0, tape_.n_shared, 0, types, n_registers_, columns_.data());
    const bool is_mean = results_.n_energies == 1;
    const T weight = is_mean ? T(1) / T(results_.n_members) : T(1);
    for (std::int64_t member = 0; member < results_.n_members; ++member) {
      tape_.forward(tape_.n_shared, tape_.n_operations, member, types, n_registers_, columns_.data());
      store_outputs(member);
      for (int r = 0; r < n_registers_; ++r)
        cotangents_[r * tape_.n_columns + tape_.outputs[0]] = Vec<T>{} + weight;
      tape_.backward(tape_.n_shared, tape_.n_backward, member, n_registers_, columns_.data(), is_mean && member > 0,
                     cotangents_.data());
      if (!is_mean) pull_back_to_density(member);
    }
    if (is_mean) pull_back_to_density(0);
  }

  void store_outputs(std::int64_t member) {
    const std::int64_t width = tape_.outputs.size();
    T* out = results_.outputs + (member * graph_.n_atoms + first_) * width;
    for (int k = 0; k < count_; ++k)
      for (std::int64_t i = 0; i < width; ++i)
        out[k * width + i] = columns_[k / lanes * tape_.n_columns + tape_.outputs[i]][k % lanes];
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
    if (results_.has_energies_in_lanes())
      pull_back_by_energy(begin, end, r);
    else
      pull_back_by_pair(begin, end, r);
  }

  // One pair in each lane; the energies share the polynomials of every register of pairs.
  void pull_back_by_pair(std::int64_t begin, std::int64_t end, int r) {
    for (std::int64_t energy = 0; energy < results_.n_energies; ++energy) {
      T* rows[lanes];
      for (int k = 0; k < lanes; ++k) rows[k] = numbers(by_density_) + (energy * lanes + k) * stride_;
      store_transposed<T>(columns_by_density(energy, r), n_density_, rows);
    }
    Block<T, L, true> block;
    Vec<T> gathered[SegmentSum<T, L>::kTiles * lanes];
    for (std::int64_t first = begin; first < end; first += lanes) {
      const int count = int(std::min<std::int64_t>(lanes, end - first));
      const bool any = block.read(graph_.vectors + 3 * first, count, series_);
      if (!any && !pair_term_.count) continue;
      const Vec<T> vector[3] = {block.x, block.y, block.z};
      for (std::int64_t energy = 0; energy < results_.n_energies; ++energy) {
        Vec<T> gradient[3] = {};
        if (any) {
          const T* cotangent = numbers(by_density_) + energy * lanes * stride_;
          gather_rows<T, L>(cotangent, segments_[r].data() + (first - begin), count, gathered);
          contract<T, L>(block, gathered, series_.inverse_square, gradient);
        }
        for (int k = 0; k < count; ++k)
          for (int axis = 0; axis < 3; ++axis) gradient[axis][k] += pair_term_(energy, first + k, axis);
        const Forces<T> forces{results_.forces + energy, results_.width(),
                               results_.virials + 6 * energy * graph_.n_atoms};
        forces.add(vector, gradient, graph_.centers + first, graph_.neighbors + first, count);
      }
    }
  }

  // One energy in each lane, which pays for many: nothing is gathered or scattered but whole registers.
  void pull_back_by_energy(std::int64_t begin, std::int64_t end, int r) {
    const std::int64_t n_registers = results_.width() / lanes, first_atom = first_ + r * lanes;
    for (std::int64_t e = 0; e < n_registers; ++e)
      for (int c = 0; c < n_density_; ++c) {
        Vec<T> square[lanes] = {};
        for (std::int64_t energy = e * lanes; energy < std::min((e + 1) * lanes, results_.n_energies); ++energy)
          square[energy % lanes] = columns_by_density(energy, r)[c];
        transpose<T>(square);
        for (int k = 0; k < lanes; ++k) by_density_[(k * stride_ + c) * n_registers + e] = square[k];
      }
    std::fill(sums_.begin(), sums_.end(), Vec<T>{});
    Block<T, L, true> block;
    Vec<T> derivatives[Counts<L>::channels][3];
    for (std::int64_t first = begin; first < end; first += lanes) {
      const int count = int(std::min<std::int64_t>(lanes, end - first));
      const bool any = block.read(graph_.vectors + 3 * first, count, series_);
      if (!any && !pair_term_.count) continue;
      if (any) differentiate<T, L>(block, series_.inverse_square, derivatives);
      for (int k = 0; k < count; ++k) {
        const std::int64_t pair = first + k, row = segments_[r][pair - begin];
        T* recoil = results_.forces + 3 * results_.width() * graph_.neighbors[pair];
        for (std::int64_t e = 0; e < n_registers; ++e) {
          Vec<T> g[3] = {};
          if (any) contract_pair<T, L>(derivatives, k, by_density_.data() + row * n_registers + e, n_registers, g);
          if (pair_term_.count)
            for (int i = 0; i < 3 * lanes && e * lanes + i / 3 < results_.n_energies; ++i)
              g[i % 3][i / 3] += pair_term_(e * lanes + i / 3, pair, i % 3);
          const T x = block.x[k], y = block.y[k], z = block.z[k];
          const Vec<T> terms[9] = {g[0], g[1], g[2], x * g[0], y * g[1], z * g[2],
                                   (y * g[2] + z * g[1]) / 2, (x * g[2] + z * g[0]) / 2, (x * g[1] + y * g[0]) / 2};
          Vec<T>* sum = sums_.data() + 9 * ((graph_.centers[pair] - first_atom) * n_registers + e);
          for (int i = 0; i < 9; ++i) sum[i] += terms[i];
          for (int axis = 0; axis < 3; ++axis) {
            T* component = recoil + axis * results_.width() + e * lanes;
            store<T>(load<T>(component) - g[axis], component);
          }
        }
      }
    }
    for (std::int64_t k = 0; k < std::min<std::int64_t>(lanes, first_ + count_ - first_atom); ++k)
      for (std::int64_t energy = 0; energy < results_.n_energies; ++energy) {
        const Vec<T>* sum = sums_.data() + 9 * (k * n_registers + energy / lanes);
        const std::int64_t atom = first_atom + k;
        T* force = results_.forces + 3 * atom * results_.width() + energy;
        for (int i = 0; i < 3; ++i) force[i * results_.width()] += sum[i][energy % lanes];
        for (int i = 0; i < 6; ++i)
          results_.virials[6 * (energy * graph_.n_atoms + atom) + i] = sum[3 + i][energy % lanes];
      }
  }

  const Graph<T>& graph_;
  const Radial<T>& series_;
  const Tape<T>& tape_;
  const PairTerm<T>& pair_term_;
  const Results<T> results_;
  const Spectrum<T, L> spectrum_;
  const int n_density_, stride_;
  std::int64_t first_ = 0;  // the block's first atom, and how many it has
  int count_ = 0, n_registers_ = 0;
  std::vector<std::int32_t> segments_[kAbreast];
  // Rows of atoms, `stride_` apart; by_density_ is (energies, atoms, density), with energies in lanes (atoms, density,
  // energies).
  std::vector<T> density_;
  std::vector<Vec<T>> by_density_;
  std::vector<Vec<T>> density_columns_, by_density_columns_;
  std::vector<Vec<T>> sums_;  // with energies in lanes: force and virial of every center, (atoms, 9, energies)
  std::vector<Vec<T>> columns_, cotangents_;
};

// ---------------------------------------------------------------- many threads

// Runs task(0) ... task(count - 1) on this thread and on those of the pool that come in time; none is waited for
// that has not begun. `task` outlives all calls of it, not the threads that come too late.
template <class Task>
void share_out(int count, const ffi::ThreadPool& pool, const Task& task) {
  struct Progress {
    std::atomic<int> next{0}, done{0};
  };
  const auto progress = std::make_shared<Progress>();
  const auto work = [progress, count, &task] {
    for (int k; (k = progress->next++) < count; ++progress->done) task(k);
  };
  ffi::ThreadPool workers = pool;
  for (int k = 1; k < count; ++k) workers.Schedule(std::function<void()>(work));
  work();
  while (progress->done < count) std::this_thread::yield();
}

template <class T>
std::vector<Part> parts_of(const Graph<T>& graph, std::int64_t count) {
  std::vector<Part> parts;
  const std::int32_t* end = graph.centers + graph.n_pairs;
  for (std::int64_t k = 0; k < count; ++k) {
    const std::int64_t first = k * graph.n_atoms / count, last = (k + 1) * graph.n_atoms / count;
    const std::int64_t first_pair = k ? parts.back().last_pair : 0;
    const std::int64_t last_pair =
        k + 1 == count ? graph.n_pairs : std::lower_bound(graph.centers, end, last) - graph.centers;
    parts.push_back({first, last, first_pair, last_pair});
  }
  return parts;
}

// Evaluates all atoms. Every part adds its forces in an array of its own, and these are added in order, so that results
// depend on the number of parts alone, not on who did them when.
template <class T, int L>
bool evaluate_in_parts(const Graph<T>& graph, const Radial<T>& series, const Tape<T>& tape,
                       const PairTerm<T>& pair_term, int n_elements, bool cross_terms, const Results<T>& results,
                       const ffi::ThreadPool& pool) {
  for (std::int64_t atom = 0; atom < graph.n_atoms; ++atom)
    if (graph.types[atom] < 0 || graph.types[atom] >= n_elements) return false;
  std::fill_n(results.virials, results.n_energies * graph.n_atoms * 6, T(0));
  const auto most = std::max<std::int64_t>(graph.n_atoms / kFewestAtoms, 1);
  const std::vector<Part> parts = parts_of(graph, std::clamp<std::int64_t>(pool.num_threads(), 1, most));
  const std::int64_t n_components = 3 * graph.n_atoms, width = results.width();
  std::vector<std::vector<T>> forces(parts.size());
  std::vector<char> good(parts.size());
  share_out(int(parts.size()), pool, [&](int k) {
    Results<T> target = results;
    forces[k].assign(n_components * width, T(0));
    target.forces = forces[k].data();
    good[k] = Evaluation<T, L>(graph, series, tape, pair_term, n_elements, cross_terms, target).run(parts[k]);
  });
  const auto n_parts = std::int64_t(parts.size());
  share_out(int(n_parts), pool, [&](int slice) {
    for (std::int64_t i = slice * n_components / n_parts; i < (slice + 1) * n_components / n_parts; ++i)
      for (std::int64_t energy = 0; energy < results.n_energies; ++energy) {
        T sum = 0;
        for (const std::vector<T>& part : forces) sum += part[i * width + energy];
        results.forces[energy * n_components + i] = sum;
      }
  });
  return std::all_of(good.begin(), good.end(), [](char is_good) { return is_good; });
}

// ---------------------------------------------------------------- the handler

// Calls function(std::integral_constant<int, n_max>) with the compiled n_max.
template <class Function, int L = 1>
ffi::Error with_order(std::int64_t n_max, Function&& function) {
  if (n_max == L) return function(std::integral_constant<int, L>{});
  if constexpr (L < kMaxOrder) return with_order<Function, L + 1>(n_max, std::forward<Function>(function));
  return ffi::Error::InvalidArgument("pair kernel: no code for this n_max");
}

// Calls function(T()) with the type of the vectors.
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

struct TapeAttributes {
  ffi::Span<const std::int64_t> operations, outputs;
  std::int64_t n_shared, n_backward, n_columns, n_shared_columns;
};

template <class T>
ffi::ErrorOr<Tape<T>> read_tape(const TapeAttributes& tape, const ffi::RemainingArgs& buffers,
                                std::int64_t n_members) {
  std::vector<Parameter<T>> parameters;
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    const auto buffer = buffers.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value()) return ffi::Unexpected(buffer.error());
    parameters.push_back({buffer->template typed_data<T>(), std::int64_t(buffer->element_count()) / n_members});
  }
  return Tape<T>{reinterpret_cast<const Operation*>(tape.operations.begin()),
                 std::int64_t(tape.operations.size() * sizeof(std::int64_t) / sizeof(Operation)),
                 tape.n_shared, tape.n_backward, tape.n_columns, tape.n_shared_columns,
                 {tape.outputs.begin(), tape.outputs.end()}, std::move(parameters)};
}

ffi::Error evaluate(ffi::ThreadPool pool, ffi::AnyBuffer vectors, ffi::AnyBuffer centers, ffi::AnyBuffer neighbors, ffi::AnyBuffer types,
                    ffi::AnyBuffer coefficients, ffi::AnyBuffer pair_gradients, ffi::RemainingArgs parameters,
                    ffi::Result<ffi::AnyBuffer> outputs, ffi::Result<ffi::AnyBuffer> forces,
                    ffi::Result<ffi::AnyBuffer> virials, std::int64_t n_max, double r_cut, std::int64_t n_elements,
                    bool cross_terms,
                    ffi::Span<const std::int64_t> operations, ffi::Span<const std::int64_t> output_columns,
                    std::int64_t n_shared, std::int64_t n_backward, std::int64_t n_columns,
                    std::int64_t n_shared_columns) {
  const TapeAttributes attributes{operations, output_columns, n_shared, n_backward, n_columns, n_shared_columns};
  return with_type(vectors.element_type(), [&](auto zero) {
    using T = decltype(zero);
    return with_order(n_max, [&](auto order) -> ffi::Error {
      constexpr int L = decltype(order)::value;
      const auto series = read_series<T>(coefficients, r_cut, Counts<L>::radial);
      if (!series.has_value()) return series.error();
      const Results<T> results{outputs->typed_data<T>(), forces->typed_data<T>(), virials->typed_data<T>(),
                               outputs->dimensions()[0], forces->dimensions()[0]};
      const auto tape = read_tape<T>(attributes, parameters, results.n_members);
      if (!tape.has_value()) return tape.error();
      const Graph<T> graph{vectors.typed_data<T>(), centers.typed_data<std::int32_t>(),
                           neighbors.typed_data<std::int32_t>(), types.typed_data<std::int32_t>(),
                           std::int64_t(centers.element_count()), std::int64_t(types.element_count())};
      const PairTerm<T> pair_term{pair_gradients.typed_data<T>(), pair_gradients.dimensions()[0], graph.n_pairs};
      if (!evaluate_in_parts<T, L>(graph, *series, *tape, pair_term, int(n_elements), cross_terms, results, pool))
        return ffi::Error::InvalidArgument("pair kernel: pairs must be sorted by center, with indices of atoms");
      return ffi::Error::Success();
    });
  });
}

}  // namespace neuralil

XLA_FFI_DEFINE_HANDLER_SYMBOL(neuralil_evaluate, neuralil::evaluate,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // vectors (pairs, 3)
                                  .Arg<ffi::AnyBuffer>()  // centers (pairs,)
                                  .Arg<ffi::AnyBuffer>()  // neighbors (pairs,)
                                  .Arg<ffi::AnyBuffer>()  // types (atoms,)
                                  .Arg<ffi::AnyBuffer>()  // coefficients (terms, radial functions)
                                  .Arg<ffi::AnyBuffer>()  // pair gradients (0, 1 or energies, pairs, 3)
                                  .RemainingArgs()        // parameters of the networks
                                  .Ret<ffi::AnyBuffer>()  // outputs (members, atoms, columns)
                                  .Ret<ffi::AnyBuffer>()  // forces (energies, atoms, 3)
                                  .Ret<ffi::AnyBuffer>()  // virials (energies, atoms, 6)
                                  .Attr<std::int64_t>("n_max")
                                  .Attr<double>("r_cut")
                                  .Attr<std::int64_t>("n_elements")
                                  .Attr<bool>("cross_terms")
                                  .Attr<ffi::Span<const std::int64_t>>("operations")
                                  .Attr<ffi::Span<const std::int64_t>>("outputs")
                                  .Attr<std::int64_t>("n_shared")
                                  .Attr<std::int64_t>("n_backward")
                                  .Attr<std::int64_t>("n_columns")
                                  .Attr<std::int64_t>("n_shared_columns"));

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

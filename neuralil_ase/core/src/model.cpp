#include "model.h"

#include <cmath>
#include <limits>

#include "failure.h"
#include "radial_series.h"

namespace neuralil {
namespace {

typedef std::int64_t Int;

constexpr double kCoulomb = 14.399645478425668;  // e^2 / (4 pi epsilon_0) in eV Å (CODATA 2018)
constexpr char kReference[] = "energy_reference";

[[noreturn]] void misfit(const std::string& what) {
  throw BadFile("it is inconsistent: " + what + ". Usually the file was changed on its way; copy it again");
}

// The values of an array, which must exist and be finite.
template <class T>
std::vector<T> values(const ModelFile& file, const std::string& name, const std::vector<Int>& shape) {
  const auto found = file.arrays.find(name);
  if (found == file.arrays.end()) misfit("the array " + name + " is missing");
  if (found->second.shape != shape) misfit("the array " + name + " has another shape than the architecture says");
  std::vector<T> numbers(found->second.size());
  for (Int i = 0; i < Int(numbers.size()); ++i) {
    numbers[i] = T(found->second[i]);
    if (!std::isfinite(numbers[i])) misfit("the array " + name + " holds values that are not finite");
  }
  return numbers;
}

std::vector<Int> with_members(const Tape::Entry& entry, Int n_members) {
  std::vector<Int> shape = entry.shape;
  if (!entry.is_shared) shape.insert(shape.begin(), n_members);
  return shape;
}

bool has_morse(const Config& config) { return config.pair_term == "morse" || config.pair_term == "repulsive-morse"; }

}  // namespace

std::vector<double> read_reference(const ModelFile& file, const Config& config) {
  return values<double>(file, kReference, {config.n_elements()});
}

std::map<std::string, std::vector<Int>> expected_arrays(const Config& config, const Tape& tape) {
  std::map<std::string, std::vector<Int>> shapes{{kReference, {config.n_elements()}}};
  for (const Tape::Entry& entry : tape.parameters) shapes[entry.name] = with_members(entry, config.n_members);
  if (has_morse(config)) {
    shapes["pair/embedding"] = {config.n_members, config.n_elements(), 3};
    shapes["pair/switch"] = {config.n_members, 1, 1};
  }
  return shapes;
}

template <class T>
Model<T>::Model(const ModelFile& file, const Config& config, const std::vector<double>& reference)
    : tape_(write_tape(config)), reference_(reference) {
  const auto expected = expected_arrays(config, tape_);
  for (const auto& [name, shape] : expected)
    if (!file.arrays.count(name)) misfit("the array " + name + " is missing");
  for (const auto& [name, array] : file.arrays)
    if (!expected.count(name)) misfit("the array " + name + " belongs to another architecture");
  check_tape(tape_);
  view_.n_max = int(config.n_max);
  view_.n_elements = int(config.n_elements());
  view_.has_cross_terms = config.cross_terms;
  view_.n_members = config.n_members;
  view_.reference = reference_.data();
  const double tolerance = sizeof(T) == sizeof(float) ? 1e-7 : 1e-12;  // descriptors.SERIES_TOLERANCE
  const std::vector<double> series =
      radial_series(int(config.n_max), config.r_cut, int(config.radial_scaling), tolerance);
  series_.assign(series.begin(), series.end());
  const Int n_radial = (config.n_max + 1) * (config.n_max + 2) / 2;
  view_.radial = {series_.data(), int(Int(series_.size()) / n_radial), T(1 / (config.r_cut * config.r_cut))};
  read_network(file, config);
  read_pair_term(file, config);
}

template <class T>
void Model<T>::read_network(const ModelFile& file, const Config& config) {
  std::vector<Int> starts;
  for (const Tape::Entry& entry : tape_.parameters) {
    const std::vector<T> found = values<T>(file, entry.name, with_members(entry, config.n_members));
    starts.push_back(Int(numbers_.size()));
    numbers_.insert(numbers_.end(), found.begin(), found.end());
  }
  for (std::size_t i = 0; i < starts.size(); ++i)
    parameters_.push_back({numbers_.data() + starts[i], tape_.parameters[i].size()});
  view_.network = {
      tape_.operations.data(), Int(tape_.operations.size()), tape_.n_shared,       tape_.n_backward,
      tape_.n_columns,         tape_.n_shared_columns,       tape_.outputs.data(), Int(tape_.outputs.size()),
      parameters_.data()};
}

template <class T>
void Model<T>::read_pair_term(const ModelFile& file, const Config& config) {
  view_.pair_term = {PairKind::kNone, 0, nullptr, nullptr, nullptr, nullptr};
  if (config.pair_term == "zbl") read_zbl(config);
  if (has_morse(config)) read_morse(file, config, config.pair_term == "repulsive-morse");
}

template <class T>
void Model<T>::read_zbl(const Config& config) {
  const Int n = config.n_elements();
  std::vector<double> reach(n, 0.0);
  zbl_.resize(n * n);
  for (Int i = 0, k = 0; i < n; ++i)
    for (Int j = i; j < n; ++j, ++k) {
      const double radius = config.zbl_radii[k], z_i = config.atomic_numbers[i], z_j = config.atomic_numbers[j];
      const double inverse_a = (std::pow(z_i, 0.23) + std::pow(z_j, 0.23)) / 0.46850;
      zbl_[i * n + j] = zbl_[j * n + i] = {T(0.5 * kCoulomb * z_i * z_j), T(inverse_a), T(radius)};
      for (const Int element : {i, j}) reach[element] = std::max(reach[element], radius * radius);
    }
  reach_.assign(reach.begin(), reach.end());
  view_.pair_term = {PairKind::kZbl, 1, reach_.data(), zbl_.data(), nullptr, nullptr};
}

template <class T>
void Model<T>::read_morse(const ModelFile& file, const Config& config, bool is_repulsive) {
  const Int n = config.n_elements();
  const auto embedding = values<double>(file, "pair/embedding", {config.n_members, n, 3});
  const auto switches = values<double>(file, "pair/switch", {config.n_members, 1, 1});
  const auto positive = [&](double v) {
    return is_repulsive ? 0.01 + v * v : std::log1p(std::exp(-std::abs(v))) + std::max(v, 0.0);
  };
  for (Int member = 0; member < config.n_members; ++member) {
    for (Int i = 0; i < n; ++i)
      for (Int j = 0; j < n; ++j) {
        const double *of_i = &embedding[3 * (member * n + i)], *of_j = &embedding[3 * (member * n + j)];
        const double a_i = positive(of_i[0]), b_i = positive(of_i[1]), d_i = positive(of_i[2]);
        const double a_j = positive(of_j[0]), b_j = positive(of_j[1]), d_j = positive(of_j[2]);
        const double offset = std::log(a_i * d_i / (a_j * d_j)) / 4 + (a_i * b_i - a_j * b_j) / 2;
        const double scale = is_repulsive ? -4 * a_i : -a_i;  // of the mixed distance (a_j r + offset) / (a_i + a_j)
        const double constant = scale * offset / (a_i + a_j) + (is_repulsive ? 2 : 1) * a_i * b_i;
        morse_.push_back({T(d_i), T(constant), T(scale * a_j / (a_i + a_j))});
      }
    const double on = 0.5 * (1 + 1 / (1 + std::exp(-switches[member]))) * config.r_cut;
    const double end = config.r_cut * config.r_cut;
    // A switch as steep as numbers allow where it would begin at the cutoff itself.
    const double width = std::max(end - on * on, end * double(std::numeric_limits<T>::epsilon()));
    switches_.push_back({T(end), T(1 / width)});
  }
  reach_.assign(n, T(config.r_cut * config.r_cut));
  view_.pair_term = {is_repulsive ? PairKind::kRepulsiveMorse : PairKind::kMorse,
                     config.n_members,
                     reach_.data(),
                     nullptr,
                     morse_.data(),
                     switches_.data()};
}

template class Model<float>;
template class Model<double>;

}  // namespace neuralil

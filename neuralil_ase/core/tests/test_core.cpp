// Tests of the library through its C interface, meant to run under sanitizers; README.md has the commands.

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "neuralil.h"

// ---------------------------------------------------------------- memory that runs out when told to

static std::atomic<long> allocations_left{-1};

static void* allocate(std::size_t size, std::size_t alignment) {
  if (allocations_left.load() >= 0 && allocations_left.fetch_sub(1) <= 0) throw std::bad_alloc();
  const std::size_t whole = (size + alignment - 1) / alignment * alignment;
  if (void* found =
          alignment > 16 ? std::aligned_alloc(alignment, whole ? whole : alignment) : std::malloc(size ? size : 1))
    return found;
  throw std::bad_alloc();
}

void* operator new(std::size_t size) { return allocate(size, 16); }
void* operator new[](std::size_t size) { return allocate(size, 16); }
void* operator new(std::size_t size, std::align_val_t alignment) { return allocate(size, std::size_t(alignment)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

// ---------------------------------------------------------------- small tools

static int failures = 0;

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) {                                                     \
      std::printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                           \
    }                                                                       \
  } while (0)

typedef std::vector<std::int64_t> Shape;
typedef std::vector<double> Numbers;

static std::mt19937_64 random_bits(1);

static double uniform(double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(random_bits);
}
static int integer(int count) { return int(random_bits() % std::uint64_t(count)); }

// ---------------------------------------------------------------- model files

struct Settings {
  std::string kind = "core", activation = "swish", pair_term = "none";
  std::vector<int> widths{6, 4}, head_widths;
  int n_max = 2, n_members = 2, embed_d = 2, shared_layers = 0;
  bool cross_terms = false, linear = false;

  int n_elements() const { return 3; }
  int n_features() const {
    if (!cross_terms) return 6 * (n_max + 1) * (n_max + 2) / 2;
    int sum = 0;
    for (int k = 1; k <= n_max + 1; ++k) sum += 3 * k * (3 * k + 1) / 2;
    return sum;
  }
};

constexpr double kCutoff = 3.0;

// Arrays of a core network, by name.
static std::map<std::string, Shape> shapes(const Settings& settings) {
  std::map<std::string, Shape> found;
  const auto add = [&](const std::string& name, Shape shape, bool is_shared) {
    if (!is_shared) shape.insert(shape.begin(), settings.n_members);
    found["network/" + name] = shape;
  };
  const auto dense = [&](const std::string& name, int n_in, int n_out, bool is_shared) {
    add(name + "/kernel", {n_in, n_out}, is_shared);
    add(name + "/bias", {n_out}, is_shared);
  };
  const auto norm = [&](const std::string& name, int n, bool is_shared) {
    add(name + "/scale", {n}, is_shared);
    add(name + "/bias", {n}, is_shared);
  };
  if (settings.embed_d) add("embed/embedding", {settings.n_elements(), settings.embed_d}, settings.shared_layers > 0);
  if (settings.linear) dense("linear", settings.n_features(), settings.n_elements(), false);
  int width = settings.n_features() + settings.embed_d;
  const int n = int(settings.widths.size());
  for (int k = 0; k < n; ++k) {
    dense("body/Dense_" + std::to_string(k), width, settings.widths[k], k < settings.shared_layers);
    width = settings.widths[k];
    if (k) norm("body/LayerNorm_" + std::to_string(k), width, k < settings.shared_layers);
  }
  dense("body/Dense_" + std::to_string(n), width, 1, false);
  dense("body/denormalizer", 1, 1, false);
  width = settings.widths[0];
  for (std::size_t k = 0; k < settings.head_widths.size(); ++k) {
    dense("body/sigma2_Dense_" + std::to_string(k), width, settings.head_widths[k], false);
    norm("body/sigma2_LayerNorm_" + std::to_string(k), width = settings.head_widths[k], false);
  }
  if (!settings.head_widths.empty())
    for (const char* name : {"sigma2e", "sigma2f"})
      dense(std::string("body/") + name + "_denormalizer", width, 1, false);
  if (settings.pair_term == "morse" || settings.pair_term == "repulsive-morse") {
    found["pair/embedding"] = {settings.n_members, settings.n_elements(), 3};
    found["pair/switch"] = {settings.n_members, 1, 1};
  }
  found["energy_reference"] = {settings.n_elements()};
  return found;
}

static std::string list(const std::vector<int>& numbers) {
  std::string text = "[";
  for (const int number : numbers) text += (text.size() > 1 ? "," : "") + std::to_string(number);
  return text + "]";
}

static std::string description(const Settings& settings) {
  return "{\"format\":\"neuralil-ase\",\"format_version\":1,\"config\":{\"descriptor\":{\"elements\":[\"C\",\"H\","
         "\"O\"],"
         "\"n_max\":" +
         std::to_string(settings.n_max) +
         ",\"r_cut\":3.0,\"cross_terms\":" + (settings.cross_terms ? "true" : "false") + "},\"network\":{\"kind\":\"" +
         settings.kind + "\",\"widths\":" + list(settings.widths) + ",\"head_widths\":" + list(settings.head_widths) +
         ",\"activation\":\"" + settings.activation + "\",\"embed_d\":" + std::to_string(settings.embed_d) +
         ",\"shared_layers\":" + std::to_string(settings.shared_layers) + (settings.linear ? ",\"linear\":true" : "") +
         "},\"n_members\":" + std::to_string(settings.n_members) + ",\"pair_term\":\"" + settings.pair_term +
         "\",\"zbl_radii\":" + (settings.pair_term == "zbl" ? "[1.5,1.6,1.7,1.8,1.9,2.0]" : "[]") + "}}";
}

static std::string quoted(const std::string& text) {
  std::string found = "\"";
  for (const char c : text) found += c == '"' ? std::string("\\\"") : std::string(1, c);
  return found + "\"";
}

static std::string model_file(const Settings& settings) {
  std::string header = "{\"__metadata__\":{\"neuralil-ase\":" + quoted(description(settings)) + "}", data;
  for (const auto& [name, shape] : shapes(settings)) {
    std::int64_t size = 1;
    std::string lengths;
    for (const std::int64_t length : shape)
      size *= length, lengths += (lengths.empty() ? "" : ",") + std::to_string(length);
    const std::size_t first = data.size();
    const bool is_scale = name.size() > 5 && name.compare(name.size() - 5, 5, "scale") == 0;
    const double spread = name.find("Dense_0/kernel") != name.npos ? 2 : 0.7;
    for (std::int64_t i = 0; i < size; ++i) {
      const double value = (is_scale ? 1 : 0) + uniform(-spread, spread);
      data.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
    header += ",\"" + name + "\":{\"dtype\":\"F64\",\"shape\":[" + lengths + "],\"data_offsets\":[" +
              std::to_string(first) + "," + std::to_string(data.size()) + "]}";
  }
  header += "}";
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

static neuralil_model* load(const Settings& settings, neuralil_precision precision = NEURALIL_FLOAT64) {
  const std::string content = model_file(settings);
  neuralil_model* model = nullptr;
  if (neuralil_load_bytes(content.data(), content.size(), precision, &model)) {
    std::printf("%s\n", neuralil_message());
    std::exit(1);
  }
  return model;
}

// ---------------------------------------------------------------- structures

struct Structure {
  std::vector<std::int32_t> types;
  Numbers positions;
  int n_centers;
};

static Structure random_structure(int n_atoms, int n_centers) {
  Structure found{{}, {}, n_centers};
  const double side = 1.4 * std::cbrt(double(n_atoms));
  for (int i = 0; i < n_atoms; ++i) {
    found.types.push_back(integer(3));
    for (int axis = 0; axis < 3; ++axis) found.positions.push_back(uniform(0, side));
  }
  return found;
}

struct Pairs {
  std::vector<std::int32_t> centers, neighbors;
  Numbers vectors;
};

static Pairs pairs_of(const Structure& structure) {
  Pairs found;
  for (int i = 0; i < structure.n_centers; ++i)
    for (int j = 0; j < int(structure.types.size()); ++j) {
      const double *from = &structure.positions[3 * i], *to = &structure.positions[3 * j];
      const double v[3] = {to[0] - from[0], to[1] - from[1], to[2] - from[2]};
      if (i == j || v[0] * v[0] + v[1] * v[1] + v[2] * v[2] > 1.1 * kCutoff * kCutoff) continue;
      found.centers.push_back(i), found.neighbors.push_back(j);
      found.vectors.insert(found.vectors.end(), v, v + 3);
    }
  return found;
}

struct Results {
  neuralil_status status;
  Numbers energies, aleatoric_variances, forces, virials, neighbor_virials, member_forces, member_virials;

  double energy(int member, int n_centers) const {
    double sum = 0;
    for (int i = 0; i < n_centers; ++i) sum += energies[member * n_centers + i];
    return sum;
  }
  double mean_energy(int n_members, int n_centers) const {
    double sum = 0;
    for (int member = 0; member < n_members; ++member) sum += energy(member, n_centers) / n_members;
    return sum;
  }
};

static Results evaluate(const neuralil_model* model, const Structure& structure, bool by_member = true,
                        int threads = 0) {
  const Pairs pairs = pairs_of(structure);
  const neuralil_info info = neuralil_get_info(model);
  const std::size_t n = structure.types.size(), centers = structure.n_centers, members = info.n_members;
  Results found{NEURALIL_OK,
                Numbers(members * centers, NAN),
                Numbers(members * centers * info.n_aleatoric, NAN),
                Numbers(3 * n, NAN),
                Numbers(9 * centers, NAN),
                Numbers(9 * n, NAN),
                Numbers(by_member ? members * 3 * n : 0, NAN),
                Numbers(by_member ? members * 9 * centers : 0, NAN)};
  const neuralil_graph graph{std::int64_t(n),        structure.n_centers,  std::int64_t(pairs.centers.size()),
                             structure.types.data(), pairs.centers.data(), pairs.neighbors.data(),
                             pairs.vectors.data()};
  const neuralil_results results{found.energies.data(),
                                 info.n_aleatoric ? found.aleatoric_variances.data() : nullptr,
                                 found.forces.data(),
                                 found.virials.data(),
                                 found.neighbor_virials.data(),
                                 by_member ? found.member_forces.data() : nullptr,
                                 by_member ? found.member_virials.data() : nullptr};
  const neuralil_executor executor = neuralil_threads(threads ? threads : 1);
  found.status = neuralil_evaluate(model, &graph, &results, threads ? &executor : nullptr);
  return found;
}

static bool is_close(const Numbers& a, const Numbers& b, double tolerance) {
  if (a.size() != b.size()) return false;
  double largest = 1e-3;
  for (const double value : b) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!(std::abs(a[i] - b[i]) <= tolerance * largest)) return false;
  return true;
}

// ---------------------------------------------------------------- tests

static std::vector<Settings> all_settings() {
  std::vector<Settings> all(12);
  all[1].cross_terms = true, all[1].n_members = 1;
  all[2].pair_term = "zbl", all[2].n_members = 9;
  all[3].pair_term = "morse", all[3].activation = "tanh";
  all[4].pair_term = "repulsive-morse", all[4].n_members = 17;
  all[5].shared_layers = 1, all[5].n_members = 3, all[5].embed_d = 0;
  all[6].head_widths = {5}, all[6].n_members = 3;
  all[7].n_max = 1, all[7].widths = {1}, all[7].pair_term = "zbl";
  all[8].widths = {33, 5, 3}, all[8].shared_layers = 2, all[8].head_widths = {4};
  all[9].pair_term = "morse", all[9].n_members = 1, all[9].cross_terms = true;
  all[10].linear = true, all[10].n_members = 3;
  all[11].linear = true, all[11].shared_layers = 1, all[11].cross_terms = true, all[11].n_members = 9;
  return all;
}

// Forces and virials are derivatives of energies, of the mean and of every member, with ghosts.
static void test_derivatives() {
  for (const Settings& settings : all_settings()) {
    neuralil_model* model = load(settings);
    Structure structure = random_structure(23, 14);
    const Results found = evaluate(model, structure);
    CHECK(found.status == NEURALIL_OK);
    const Results mean = evaluate(model, structure, false);
    CHECK(is_close(mean.energies, found.energies, 1e-14));
    for (auto part : {&Results::forces, &Results::virials, &Results::neighbor_virials})
      CHECK(is_close(mean.*part, found.*part, 1e-11));
    const double step = 1e-5;
    for (const int i : {0, 13, 14, 22})
      for (int axis = 0; axis < 3; ++axis) {
        Results ends[2];
        for (int k = 0; k < 2; ++k) {
          structure.positions[3 * i + axis] += k ? 2 * step : -step;
          ends[k] = evaluate(model, structure, false);
        }
        structure.positions[3 * i + axis] -= step;
        for (int member = 0; member < settings.n_members; ++member) {
          const double slope = (ends[1].energy(member, 14) - ends[0].energy(member, 14)) / (2 * step);
          const double force = found.member_forces[3 * (member * 23 + i) + axis];
          CHECK(std::abs(force + slope) <= 1e-6 * (1 + std::abs(force)));
        }
      }
    const Numbers still = structure.positions;
    for (int a = 0; a < 3; ++a)
      for (int b = 0; b < 3; ++b) {
        double ends[2];
        for (int k = 0; k < 2; ++k) {
          structure.positions = still;
          for (int i = 0; i < 23; ++i) structure.positions[3 * i + b] += (k ? step : -step) * still[3 * i + a];
          ends[k] = evaluate(model, structure, false).mean_energy(settings.n_members, 14);
        }
        double virial = 0, by_neighbor = 0, by_member = 0;
        for (int i = 0; i < 14; ++i) virial += found.virials[9 * i + 3 * a + b];
        for (int i = 0; i < 23; ++i) by_neighbor += found.neighbor_virials[9 * i + 3 * a + b];
        for (int i = 0; i < 14 * settings.n_members; ++i)
          by_member += found.member_virials[9 * i + 3 * a + b] / settings.n_members;
        CHECK(std::abs(virial - (ends[1] - ends[0]) / (2 * step)) <= 1e-6 * (1 + std::abs(virial)));
        CHECK(std::abs(virial - by_neighbor) <= 1e-10 * (1 + std::abs(virial)));
        CHECK(std::abs(virial - by_member) <= 1e-10 * (1 + std::abs(virial)));
      }
    for (const double variance : found.aleatoric_variances) CHECK(variance >= 0);
    neuralil_free(model);
  }
}

static void test_precisions_agree() {
  for (const Settings& settings : all_settings()) {
    const std::string content = model_file(settings);
    neuralil_model* models[2];
    for (int k = 0; k < 2; ++k)
      CHECK(neuralil_load_bytes(content.data(), content.size(), k ? NEURALIL_FLOAT64 : NEURALIL_FLOAT32, &models[k]) ==
            NEURALIL_OK);
    const Structure structure = random_structure(40, 40);
    const Results single = evaluate(models[0], structure), exact = evaluate(models[1], structure);
    CHECK(is_close(single.energies, exact.energies, 1e-4));
    CHECK(is_close(single.member_forces, exact.member_forces, 1e-3));
    CHECK(is_close(single.virials, exact.virials, 1e-3));
    for (neuralil_model* model : models) neuralil_free(model);
  }
}

static void test_threads() {
  neuralil_model* models[2] = {load(Settings()), load(all_settings()[2], NEURALIL_FLOAT32)};
  const Structure structure = random_structure(1300, 1200);
  Results alone[2];
  for (int k = 0; k < 2; ++k) alone[k] = evaluate(models[k], structure, true, 3);
  CHECK(is_close(alone[0].member_forces, evaluate(models[0], structure).member_forces, 1e-12));
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 6; ++caller)
    callers.emplace_back([&, caller] {
      const Results found = evaluate(models[caller % 2], structure, true, 3);
      if (found.member_forces != alone[caller % 2].member_forces || found.energies != alone[caller % 2].energies)
        ++wrong;
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
  for (neuralil_model* model : models) neuralil_free(model);
}

static void test_sizes() {
  neuralil_model* model = load(Settings());
  for (const int n : {0, 1, 2, 15, 16, 17, 33, 64})
    for (const int n_centers : {0, 1, n / 2, n}) {
      if (n_centers > n) continue;
      CHECK(evaluate(model, random_structure(n, n_centers)).status == NEURALIL_OK);
    }
  neuralil_free(model);
}

static void test_bad_graphs() {
  neuralil_model* model = load(Settings());
  const std::vector<std::int32_t> types{0, 1, 2}, centers{0, 1, 1}, neighbors{1, 0, 2};
  const Numbers vectors{1, 0, 0, -1, 0, 0, 0, 1, 0};
  Numbers energies(6), forces(9);
  const auto status = [&](auto change) {
    std::vector<std::int32_t> t = types, c = centers, b = neighbors;
    neuralil_graph graph{3, 2, 3, t.data(), c.data(), b.data(), vectors.data()};
    neuralil_results results{};
    results.energies = energies.data(), results.forces = forces.data();
    change(graph, results, t, c, b);
    return neuralil_evaluate(model, &graph, &results, nullptr);
  };
  CHECK(status([](auto&, auto&, auto&, auto&, auto&) {}) == NEURALIL_OK);
  CHECK(status([](auto&, auto&, auto& t, auto&, auto&) { t[2] = 3; }) == NEURALIL_BAD_GRAPH);
  CHECK(std::strstr(neuralil_message(), "atom 2 has type 3"));
  CHECK(status([](auto&, auto&, auto& t, auto&, auto&) { t[0] = -1; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([](auto&, auto&, auto&, auto& c, auto&) { c[0] = 2; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([](auto&, auto&, auto&, auto& c, auto&) { c[2] = 2; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([](auto&, auto&, auto&, auto& c, auto&) { c[2] = -1; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([](auto&, auto&, auto&, auto& c, auto&) { c[2] = 1 << 30; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([](auto&, auto&, auto&, auto&, auto& b) { b[1] = 3; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([](auto&, auto&, auto&, auto&, auto& b) { b[1] = -2; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([](auto& g, auto&, auto&, auto&, auto&) { g.n_centers = 4; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([](auto& g, auto&, auto&, auto&, auto&) { g.n_centers = 0; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([](auto& g, auto&, auto&, auto&, auto&) { g.n_pairs = -1; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([](auto& g, auto&, auto&, auto&, auto&) { g.vectors = nullptr; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([](auto&, auto& r, auto&, auto&, auto&) { r.forces = nullptr; }) == NEURALIL_BAD_GRAPH);
  CHECK(status([&](auto&, auto& r, auto&, auto&, auto&) { r.member_virials = forces.data(); }) == NEURALIL_BAD_GRAPH);
  CHECK(neuralil_evaluate(nullptr, nullptr, nullptr, nullptr) == NEURALIL_FAILED);
  neuralil_free(model);
  neuralil_free(nullptr);
}

static bool is_answer(neuralil_status status) {
  return status == NEURALIL_OK || status == NEURALIL_BAD_FILE || status == NEURALIL_UNSUPPORTED;
}

// Files cut short, and files with changed bytes: an error, or a model that computes.
static void test_hostile_files() {
  const Structure structure = random_structure(9, 9);
  int survivors = 0;
  for (const Settings& settings : {all_settings()[4], all_settings()[8]}) {
    const std::string whole = model_file(settings);
    const auto attempt = [&](const std::string& content) {
      neuralil_model* model = nullptr;
      const neuralil_status status = neuralil_load_bytes(content.data(), content.size(), NEURALIL_FLOAT32, &model);
      CHECK(is_answer(status) && (status == NEURALIL_OK) == (model != nullptr));
      if (!model) return;
      ++survivors;
      const neuralil_status result = evaluate(model, structure).status;
      CHECK(result == NEURALIL_OK || result == NEURALIL_BAD_GRAPH);  // it may know fewer elements now
      neuralil_free(model);
    };
    std::uint64_t header;
    std::memcpy(&header, whole.data(), 8);
    for (std::size_t length = 0; length < 8 + header; length += 13) attempt(whole.substr(0, length));
    for (int k = 0; k < 1500; ++k) {
      std::string changed = whole;
      for (int count = 1 + integer(3); count > 0; --count)
        changed[integer(int(k % 3 ? 8 + header : whole.size()))] =
            k % 2 ? char(integer(256)) : "0123456789[]{},:\"-eE"[integer(20)];
      attempt(changed);
    }
  }
  CHECK(survivors > 50);
  std::string deep(20, ' ');
  deep = std::string(100000, '[');
  const std::uint64_t length = deep.size();
  deep = std::string(reinterpret_cast<const char*>(&length), 8) + deep;
  neuralil_model* model = nullptr;
  CHECK(neuralil_load_bytes(deep.data(), deep.size(), NEURALIL_FLOAT32, &model) == NEURALIL_BAD_FILE);
  CHECK(neuralil_load("/nowhere/model", NEURALIL_FLOAT32, &model) == NEURALIL_BAD_FILE);
  CHECK(std::strstr(neuralil_message(), "/nowhere/model: it cannot be opened"));
  Settings large;
  large.n_max = 9;
  CHECK(neuralil_check(description(large).c_str()) == NEURALIL_UNSUPPORTED);
  CHECK(neuralil_check(description(Settings()).c_str()) == NEURALIL_OK);
}

// A model file whose header has this calibration.
static std::string with_calibration(const Settings& settings, const std::string& table) {
  std::string content = model_file(settings);
  const std::string entry = "\\\"calibration\\\":" + table + ",";
  content.insert(content.find("\\\"config"), entry);
  std::uint64_t length;
  std::memcpy(&length, content.data(), 8);
  length += entry.size();
  std::memcpy(content.data(), &length, 8);
  return content;
}

static void test_error_bars() {
  Settings settings;
  neuralil_model* model = load(settings);
  const std::int32_t types[2] = {0, 2};
  const double spreads[2] = {0.1, 0.3}, aleatoric[2] = {0.2, 0.4};
  double bars[2];
  CHECK(neuralil_force_error_bars(model, 2, types, spreads, nullptr, bars) == NEURALIL_UNSUPPORTED);
  neuralil_free(model);
  const std::string scale = "\\\"force_scale\\\":{\\\"C\\\":2},\\\"force_floor\\\":{\\\"C\\\":0.5}";
  std::string content = with_calibration(settings, "{\\\"with_noise\\\":true," + scale + "}");
  CHECK(neuralil_load_bytes(content.data(), content.size(), NEURALIL_FLOAT32, &model) == NEURALIL_OK);
  CHECK(neuralil_force_error_bars(model, 2, types, spreads, aleatoric, bars) == NEURALIL_OK);
  CHECK(std::abs(bars[0] - std::sqrt(4 * 0.05 + 0.25)) < 1e-12 && std::isnan(bars[1]));
  neuralil_free(model);
  // Spreads alone, with an exponent: (scale * s0 (s / s0)^exponent)^2 + floor^2.
  const std::string power =
      "\\\"force_exponent\\\":{\\\"C\\\":0.5},\\\"force_std_quantiles\\\":{\\\"C\\\":{\\\"0.99\\\":0.4}}";
  content = with_calibration(settings, "{" + scale + "," + power + "}");
  CHECK(neuralil_load_bytes(content.data(), content.size(), NEURALIL_FLOAT32, &model) == NEURALIL_OK);
  CHECK(neuralil_force_error_bars(model, 2, types, spreads, nullptr, bars) == NEURALIL_OK);
  CHECK(std::abs(bars[0] - std::hypot(2 * 0.4 * std::sqrt(0.25), 0.5)) < 1e-12 && std::isnan(bars[1]));
  neuralil_free(model);
}

// Every single allocation may fail.
static void test_no_memory() {
  const Settings settings = all_settings()[6];
  const std::string content = model_file(settings);
  const auto until_it_works = [](const std::function<neuralil_status()>& attempt) {
    for (long k = 0;; ++k) {
      allocations_left = k;
      const neuralil_status status = attempt();
      allocations_left = -1;
      if (status == NEURALIL_OK) return k;
      CHECK(status == NEURALIL_NO_MEMORY);
      if (status != NEURALIL_NO_MEMORY) return k;
    }
  };
  neuralil_model* model = nullptr;
  CHECK(until_it_works([&] { return neuralil_load_bytes(content.data(), content.size(), NEURALIL_FLOAT32, &model); }) >
        20);
  const Structure structure = random_structure(600, 600);
  const Pairs pairs = pairs_of(structure);
  Numbers energies(3 * 600), forces(3 * 600);
  const neuralil_graph graph{600,
                             600,
                             std::int64_t(pairs.centers.size()),
                             structure.types.data(),
                             pairs.centers.data(),
                             pairs.neighbors.data(),
                             pairs.vectors.data()};
  neuralil_results results{};
  results.energies = energies.data(), results.forces = forces.data();
  for (const int threads : {1, 2}) {
    const neuralil_executor executor = neuralil_threads(threads);
    CHECK(until_it_works([&] { return neuralil_evaluate(model, &graph, &results, &executor); }) > 5);
  }
  neuralil_free(model);
}

int main() {
  std::printf("%s\n", neuralil_instruction_set());
  CHECK(neuralil_api_version() == NEURALIL_API_VERSION);
  test_derivatives();
  test_precisions_agree();
  test_threads();
  test_sizes();
  test_bad_graphs();
  test_hostile_files();
  test_error_bars();
  test_no_memory();
  std::printf(failures ? "%d checks failed\n" : "all is well\n", failures);
  return failures != 0;
}

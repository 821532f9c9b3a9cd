#include "config.h"

#include <algorithm>
#include <set>

#include "failure.h"
#include "views.h"

namespace neuralil {
namespace {

constexpr const char* kSymbols[] = {
    "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si", "P",  "S",  "Cl",
    "Ar", "K",  "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se",
    "Br", "Kr", "Rb", "Sr", "Y",  "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb",
    "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er",
    "Tm", "Yb", "Lu", "Hf", "Ta", "W",  "Re", "Os", "Ir", "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At",
    "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es", "Fm", "Md", "No",
    "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};

constexpr std::size_t kMostLayers = 4096;  // each owns an array of the file, which has no more

void require(bool condition, const std::string& what) {
  if (!condition) throw BadFile("its description is not valid: " + what);
}

// One table of settings: each is read once, and none may be left over.
class Settings {
 public:
  Settings(const Json* table, std::string name) : name_(std::move(name)) {
    require(table && table->object(), name_ + " is not a table");
    table_ = table->object();
    for (const auto& [key, value] : *table_) rest_.insert(key);
  }

  const Json* take(const char* key) {
    rest_.erase(key);
    const auto found = table_->find(std::string_view(key));
    return found == table_->end() ? nullptr : &found->second;
  }

  void read(const char* key, std::int64_t& to) {
    if (const Json* value = take(key)) to = integer(key, *value);
  }
  void read(const char* key, double& to) {
    if (const Json* value = take(key)) to = real(key, *value);
  }
  void read(const char* key, bool& to) {
    const Json* value = take(key);
    require(!value || value->boolean(), where(key) + " is neither true nor false");
    if (value) to = *value->boolean();
  }
  void read(const char* key, std::string& to) {
    if (const Json* value = take(key)) to = string(key, *value);
  }
  template <class Item>
  void read(const char* key, std::vector<Item>& to) {
    const Json* value = take(key);
    if (!value) return;
    require(value->array(), where(key) + " is not a list");
    to.clear();
    for (const Json& item : *value->array()) {
      if constexpr (std::is_same_v<Item, std::int64_t>)
        to.push_back(integer(key, item));
      else if constexpr (std::is_same_v<Item, double>)
        to.push_back(real(key, item));
      else
        to.push_back(string(key, item));
    }
  }

  void finish() const { require(rest_.empty(), "unknown setting " + (rest_.empty() ? "" : where(*rest_.begin()))); }

 private:
  std::string where(const std::string& key) const { return name_ + "." + key; }
  std::int64_t integer(const char* key, const Json& value) const {
    require(value.integer(), where(key) + " is not an integer");
    return *value.integer();
  }
  double real(const char* key, const Json& value) const {
    require(value.is_number(), where(key) + " is not a number");
    return value.number();
  }
  const std::string& string(const char* key, const Json& value) const {
    require(value.string(), where(key) + " is not a string");
    return *value.string();
  }

  std::string name_;
  const Json::Object* table_ = nullptr;
  std::set<std::string> rest_;
};

bool is_one_of(const std::string& value, std::initializer_list<const char*> choices) {
  return std::any_of(choices.begin(), choices.end(), [&](const char* choice) { return value == choice; });
}

bool within(std::int64_t value, std::int64_t low, std::int64_t high) { return low <= value && value <= high; }

void check_descriptor(Config& config) {
  require(!config.elements.empty(), "no elements");
  require(std::adjacent_find(config.elements.begin(), config.elements.end(), std::greater_equal<>()) ==
              config.elements.end(),
          "elements are not unique and in alphabetical order");
  for (const std::string& symbol : config.elements) {
    const auto found = std::find(std::begin(kSymbols), std::end(kSymbols), symbol);
    require(found != std::end(kSymbols), "unknown element " + symbol);
    config.atomic_numbers.push_back(std::int32_t(found - std::begin(kSymbols)) + 1);
  }
  require(within(config.n_max, 0, 13), "n_max out of range");
  require(config.r_cut >= 0.1 && config.r_cut <= 50, "r_cut out of range");
  require(within(config.radial_scaling, 0, 8), "radial_scaling out of range");
}

void check_network(const Config& config) {
  require(is_one_of(config.kind, {"core", "resnet", "heteroscedastic"}), "unknown kind " + config.kind);
  require(!config.widths.empty(), "a network without layers");
  require(config.widths.size() + config.head_widths.size() <= kMostLayers, "too many layers");
  for (const auto* widths : {&config.widths, &config.head_widths})
    for (const std::int64_t width : *widths) require(within(width, 1, 65536), "a layer width out of range");
  require(config.kind == "core" || (config.kind == "heteroscedastic") == !config.head_widths.empty(),
          "head_widths do not fit the kind of network");
  require(within(config.embed_d, 0, 1024), "embed_d out of range");
  require(within(config.shared_layers, 0, config.kind == "core" ? std::int64_t(config.widths.size()) : 0),
          "shared_layers out of range");
}

void check_pair_term(const Config& config) {
  require(is_one_of(config.pair_term, {"none", "zbl", "morse", "repulsive-morse"}),
          "unknown pair term " + config.pair_term);
  const std::int64_t n = config.n_elements();
  require(std::int64_t(config.zbl_radii.size()) == (config.pair_term == "zbl" ? n * (n + 1) / 2 : 0),
          "zbl_radii do not fit the elements");
  for (const double radius : config.zbl_radii)
    require(radius >= 0.05 && radius <= config.r_cut, "a ZBL radius out of range");
}

void check_support(const Config& config) {
  if (!within(config.n_max, 1, kMaxOrder))
    throw Unsupported("the compiled core has code for n_max 1 to " + std::to_string(kMaxOrder) +
                      ", and the model has n_max " + std::to_string(config.n_max));
  if (!is_one_of(config.activation, {"swish", "silu", "tanh"}))
    throw Unsupported("the compiled core has code for the activations swish, silu and tanh, and the model has " +
                      config.activation);
}

}  // namespace

std::int64_t Config::n_features() const {
  const std::int64_t n = n_elements();
  if (!cross_terms) return n * (n + 1) / 2 * ((n_max + 1) * (n_max + 2) / 2);
  std::int64_t sum = 0;
  for (std::int64_t k = 1; k <= n_max + 1; ++k) sum += n * k * (n * k + 1) / 2;
  return sum;
}

Config read_config(const Json& header) {
  const auto& table = *header.object();
  const auto found = table.find(std::string_view("config"));
  Settings model(found == table.end() ? nullptr : &found->second, "config");
  Settings descriptor(model.take("descriptor"), "descriptor"), network(model.take("network"), "network");
  Config config;
  descriptor.read("elements", config.elements);
  descriptor.read("n_max", config.n_max);
  descriptor.read("r_cut", config.r_cut);
  descriptor.read("cross_terms", config.cross_terms);
  descriptor.read("radial_scaling", config.radial_scaling);
  network.read("kind", config.kind);
  network.read("widths", config.widths);
  network.read("head_widths", config.head_widths);
  network.read("activation", config.activation);
  network.read("embed_d", config.embed_d);
  network.read("shared_layers", config.shared_layers);
  network.read("linear", config.linear);
  model.read("n_members", config.n_members);
  model.read("pair_term", config.pair_term);
  model.read("zbl_radii", config.zbl_radii);
  for (const Settings* settings : {&descriptor, &network, &model}) settings->finish();
  check_descriptor(config);
  check_network(config);
  check_pair_term(config);
  require(within(config.n_members, 1, 1024), "n_members out of range");
  check_support(config);
  return config;
}

}  // namespace neuralil

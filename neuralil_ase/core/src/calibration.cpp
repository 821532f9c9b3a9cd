#include "calibration.h"

#include <cmath>

#include "failure.h"

namespace neuralil {
namespace {

constexpr char kUnusual[] = "0.99";  // quantile of held-out spreads, calibration.REFERENCE

const Json* find(const Json::Object& table, std::string_view key) {
  const auto found = table.find(key);
  return found == table.end() ? nullptr : &found->second;
}

// One number for every element; NaN for those that the table lacks. `inner` is looked up in tables of tables.
std::vector<double> by_element(const Json::Object& table, const char* key, const std::vector<std::string>& elements,
                               const char* inner = nullptr) {
  std::vector<double> found(elements.size(), std::nan(""));
  const Json* entries = find(table, key);
  if (!entries) return found;
  if (!entries->object()) throw BadFile(std::string("its calibration has ") + key + " that is not a table");
  for (std::size_t i = 0; i < elements.size(); ++i) {
    const Json* value = find(*entries->object(), elements[i]);
    if (value && inner) value = value->object() ? find(*value->object(), inner) : nullptr;
    if (!value) continue;
    if (!value->is_number()) throw BadFile(std::string("its calibration has ") + key + " that is not a number");
    found[i] = value->number();
  }
  return found;
}

}  // namespace

double Calibration::force_error_bar(std::int32_t type, double spread, const double* aleatoric) const {
  if (!uses_aleatoric) return force_error_bar_of_spread(type, spread);
  const double combined = aleatoric ? std::hypot(spread, *aleatoric) : spread;
  const double found = std::hypot(scale[type] * combined, floor[type]);
  if (!aleatoric || !has_spread_alone || !(spread > unusual[type])) return found;
  const double alone = force_error_bar_of_spread(type, spread);
  return alone > found || std::isnan(alone) ? alone : found;
}

double Calibration::force_error_bar_of_spread(std::int32_t type, double spread) const {
  const auto& scales = has_spread_alone ? scale_of_spread : scale;
  const auto& floors = has_spread_alone ? floor_of_spread : floor;
  double flattened = spread;
  if (has_exponent) {
    const double unit = unusual[type] > 0 ? unusual[type] : 1.0;  // no spread at all: any unit will do
    const double power = std::isnan(exponent[type]) ? 1.0 : exponent[type];
    flattened = unit * std::pow(spread / unit, power);
  }
  return std::hypot(scales[type] * flattened, floors[type]);
}

Calibration read_calibration(const Json& header, const std::vector<std::string>& elements) {
  Calibration found;
  const Json* entry = find(*header.object(), "calibration");
  if (!entry || entry->is_null()) return found;
  if (!entry->object()) throw BadFile("its calibration is not a table");
  const Json::Object& table = *entry->object();
  const Json* uses_aleatoric = find(table, "with_noise");
  found.is_there = true;
  found.uses_aleatoric = uses_aleatoric && uses_aleatoric->boolean() && *uses_aleatoric->boolean();
  found.has_spread_alone = find(table, "force_scale_of_spread") != nullptr;
  found.has_exponent = find(table, "force_exponent") != nullptr;
  found.exponent = by_element(table, "force_exponent", elements);
  found.scale = by_element(table, "force_scale", elements);
  found.floor = by_element(table, "force_floor", elements);
  found.scale_of_spread = by_element(table, "force_scale_of_spread", elements);
  found.floor_of_spread = by_element(table, "force_floor_of_spread", elements);
  found.unusual = by_element(table, "force_std_quantiles", elements, kUnusual);
  return found;
}

}  // namespace neuralil

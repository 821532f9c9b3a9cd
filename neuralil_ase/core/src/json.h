// A strict reader of JSON: what model files hold as text.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace neuralil {

// A value; objects keep no order. Integers that fit are kept apart from other numbers.
class Json {
 public:
  typedef std::vector<Json> Array;
  typedef std::map<std::string, Json, std::less<>> Object;

  // Throws BadFile: not JSON, a key that occurs twice, NaN or infinity, nesting deeper than 64.
  static Json parse(std::string_view text);

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  const bool* boolean() const { return std::get_if<bool>(&value_); }
  const std::int64_t* integer() const { return std::get_if<std::int64_t>(&value_); }
  const std::string* string() const { return std::get_if<std::string>(&value_); }
  const Array* array() const { return std::get_if<Array>(&value_); }
  const Object* object() const { return std::get_if<Object>(&value_); }
  // Any number, or null.
  bool is_number() const { return integer() || std::holds_alternative<double>(value_); }
  double number() const { return integer() ? double(*integer()) : std::get<double>(value_); }

  std::variant<std::monostate, bool, std::int64_t, double, std::string, Array, Object> value_;
};

}  // namespace neuralil

// Model files: safetensors with a JSON description in the metadata; files/model_file.py writes them.

#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace neuralil {

// An array of the file; the data lie in its content.
struct Array {
  std::string dtype;  // F16, F32 or F64
  std::vector<std::int64_t> shape;
  std::string_view data;

  std::int64_t size() const { return std::int64_t(data.size()) / item_size(); }
  int item_size() const { return dtype == "F64" ? 8 : dtype == "F32" ? 4 : 2; }
  double operator[](std::int64_t i) const;
};

struct ModelFile {
  std::string content;
  std::map<std::string, Array> arrays;
  std::string description;
  Json header;
};

// Both throw BadFile: missing, not readable, damaged, or of a newer format.
std::string read_file(const char* path);
ModelFile parse_model_file(std::string content);

}  // namespace neuralil

#include "model_file.h"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>

#include "failure.h"
#include "sha256.h"

namespace neuralil {
namespace {

constexpr char kFormat[] = "neuralil-ase";
constexpr std::int64_t kNewestFormat = 1;
constexpr std::size_t kMostBytes = std::size_t(2) << 30, kMostHeaderBytes = std::size_t(16) << 20;
constexpr std::size_t kMostArrays = 4096;
constexpr char kDamaged[] =
    ". Usually the file was cut short or changed on its way: compare it with its source and copy it again";
constexpr char kForeign[] = ". Usually it was written by another program: give a model file that neuralil-ase wrote";

[[noreturn]] void damaged(const std::string& what) { throw BadFile(what + kDamaged); }
[[noreturn]] void foreign(const std::string& what) { throw BadFile(what + kForeign); }

double from_half(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

std::uint64_t little_endian(const char* bytes, int count) {
  std::uint64_t value = 0;
  for (int k = 0; k < count; ++k) value |= std::uint64_t(static_cast<unsigned char>(bytes[k])) << (8 * k);
  return value;
}

template <class To, class From>
To reinterpret(From bits) {
  To value;
  static_assert(sizeof value == sizeof bits, "same size");
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

const Json* find(const Json::Object& object, std::string_view key) {
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &found->second;
}

// A list of integers that are not negative.
std::vector<std::int64_t> sizes(const Json* list, const std::string& name) {
  if (!list || !list->array()) damaged("no shape or offsets for array '" + name + "'");
  std::vector<std::int64_t> found;
  for (const Json& item : *list->array()) {
    if (!item.integer() || *item.integer() < 0) damaged("a shape or offset of array '" + name + "' is not a size");
    found.push_back(*item.integer());
  }
  return found;
}

Array read_array(const std::string& name, const Json& entry, std::string_view data) {
  if (!entry.object()) damaged("the entry of array '" + name + "' is not a table");
  const Json* dtype = find(*entry.object(), "dtype");
  if (!dtype || !dtype->string()) damaged("array '" + name + "' has no dtype");
  if (*dtype->string() != "F16" && *dtype->string() != "F32" && *dtype->string() != "F64")
    foreign("array '" + name + "' has dtype " + *dtype->string() + ", not F16, F32 or F64");
  Array array{*dtype->string(), sizes(find(*entry.object(), "shape"), name), {}};
  const auto offsets = sizes(find(*entry.object(), "data_offsets"), name);
  if (offsets.size() != 2 || offsets[0] > offsets[1] || std::uint64_t(offsets[1]) > data.size())
    damaged("the offsets of array '" + name + "' lie outside the file");
  array.data = data.substr(offsets[0], offsets[1] - offsets[0]);
  std::uint64_t bytes = array.item_size();
  for (const std::int64_t length : array.shape) {
    if (length && bytes > kMostBytes / std::uint64_t(length)) damaged("array '" + name + "' is too large");
    bytes *= std::uint64_t(length);
  }
  if (bytes != array.data.size()) damaged("array '" + name + "' has a shape that does not fit its data");
  return array;
}

void check_version(const Json::Object& header) {
  const Json *format = find(header, "format"), *version = find(header, "format_version");
  if (!format || !format->string() || *format->string() != kFormat) foreign("it has another format");
  if (!version || !version->integer() || *version->integer() < 1) damaged("it has no format version");
  if (*version->integer() > kNewestFormat)
    throw BadFile("it has format version " + std::to_string(*version->integer()) + ", and this library reads up to " +
                  std::to_string(kNewestFormat) + ". Upgrade neuralil-ase");
}

// As checksum() in files/model_file.py: names, types and shapes as NumPy writes them, and the bytes.
std::string checksum(const std::map<std::string, Array>& arrays) {
  Sha256 digest;
  for (const auto& [name, array] : arrays) {
    std::string shape;
    for (const std::int64_t length : array.shape) shape += (shape.empty() ? "" : ", ") + std::to_string(length);
    if (array.shape.size() == 1) shape += ",";
    digest.update(name + " <f" + std::to_string(array.item_size()) + " (" + shape + ")\n");
    digest.update(array.data);
  }
  return digest.digest();
}

}  // namespace

double Array::operator[](std::int64_t i) const {
  const int bytes = item_size();
  const std::uint64_t bits = little_endian(data.data() + i * bytes, bytes);
  if (bytes == 8) return reinterpret<double>(bits);
  return bytes == 4 ? double(reinterpret<float>(std::uint32_t(bits))) : from_half(std::uint16_t(bits));
}

std::string read_file(const char* path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path, "rb"), &std::fclose);
  if (!file) throw BadFile(std::string("it cannot be opened: ") + std::strerror(errno));
  std::string content;
  char buffer[1 << 16];
  for (std::size_t count; (count = std::fread(buffer, 1, sizeof buffer, file.get()));) {
    if (content.size() + count > kMostBytes) foreign("it is larger than a model file may be");
    content.append(buffer, count);
  }
  if (std::ferror(file.get())) throw BadFile(std::string("it cannot be read: ") + std::strerror(errno));
  return content;
}

ModelFile parse_model_file(std::string content) {
  ModelFile file;
  file.content = std::move(content);
  const std::string_view all = file.content;
  if (all.size() < 8) damaged("it is truncated");
  const std::uint64_t length = little_endian(all.data(), 8);
  if (length > kMostHeaderBytes && all[0] == '\x80')
    throw BadFile("it is a Python pickle. Import published parameters once with: neuralil-ase import");
  if (length > kMostHeaderBytes) foreign("it announces a header of " + std::to_string(length) + " bytes");
  if (length > all.size() - 8) damaged("it is truncated: it ends within its header");
  const std::string_view data = all.substr(8 + length);
  const Json table = Json::parse(all.substr(8, length));
  if (!table.object()) foreign("its header is not a table");
  if (table.object()->size() > kMostArrays) foreign("it holds too many arrays");
  std::size_t end = 0;
  for (const auto& [name, entry] : *table.object()) {
    if (name == "__metadata__") continue;
    const Array& array = file.arrays[name] = read_array(name, entry, data);
    end = std::max(end, std::size_t(array.data.data() - data.data()) + array.data.size());
  }
  if (end != data.size()) damaged("it is longer or shorter than its header says");
  const Json* metadata = find(*table.object(), "__metadata__");
  const Json* text = metadata && metadata->object() ? find(*metadata->object(), kFormat) : nullptr;
  if (!text || !text->string()) foreign("it is a safetensors file without a description of a model");
  file.description = *text->string();
  file.header = Json::parse(file.description);
  if (!file.header.object()) foreign("its description is not a table");
  check_version(*file.header.object());
  const Json* sum = find(*file.header.object(), "sha256");  // files of the first releases have none
  if (sum && (!sum->string() || *sum->string() != checksum(file.arrays)))
    damaged("it holds other numbers than were written to it");
  return file;
}

}  // namespace neuralil

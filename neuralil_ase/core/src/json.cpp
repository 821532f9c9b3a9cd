#include "json.h"

#include <charconv>
#include <cmath>
#include <locale>
#include <sstream>

#include "failure.h"

namespace neuralil {
namespace {

constexpr int kDeepest = 64;

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  Json document() {
    Json value = read(0);
    skip_space();
    if (at_ != text_.size()) fail("something follows the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw BadFile("not valid JSON (" + what + " at byte " + std::to_string(at_) + ")");
  }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
      ++at_;
  }

  char peek() {
    skip_space();
    if (at_ == text_.size()) fail("it ends too early");
    return text_[at_];
  }

  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!take(wanted)) fail(std::string("no '") + wanted + "'");
  }

  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json read(int depth) {
    if (depth > kDeepest) fail("nested too deeply");
    switch (peek()) {
      case '{': return {object(depth)};
      case '[': return {array(depth)};
      case '"': return {string()};
      case 't':
        if (take_word("true")) return {true};
        break;
      case 'f':
        if (take_word("false")) return {false};
        break;
      case 'n':
        if (take_word("null")) return {};
        break;
      default: return number();
    }
    fail("an unknown word");
  }

  Json::Object object(int depth) {
    Json::Object members;
    expect('{');
    if (take('}')) return members;
    do {
      if (peek() != '"') fail("a key that is not a string");
      std::string key = string();
      expect(':');
      if (!members.emplace(std::move(key), read(depth + 1)).second) fail("a key occurs twice");
    } while (take(','));
    expect('}');
    return members;
  }

  Json::Array array(int depth) {
    Json::Array items;
    expect('[');
    if (take(']')) return items;
    do items.push_back(read(depth + 1));
    while (take(','));
    expect(']');
    return items;
  }

  std::string string() {
    std::string text;
    expect('"');
    while (true) {
      if (at_ == text_.size()) fail("a string without end");
      const char c = text_[at_++];
      if (c == '"') return text;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      if (c != '\\') {
        text += c;
        continue;
      }
      if (at_ == text_.size()) fail("a string without end");
      append_escape(text_[at_++], text);
    }
  }

  void append_escape(char c, std::string& text) {
    switch (c) {
      case '"':
      case '\\':
      case '/': text += c; return;
      case 'b': text += '\b'; return;
      case 'f': text += '\f'; return;
      case 'n': text += '\n'; return;
      case 'r': text += '\r'; return;
      case 't': text += '\t'; return;
      case 'u': append_utf8(code_point(), text); return;
      default: fail("an unknown escape");
    }
  }

  std::uint32_t hex4() {
    std::uint32_t value = 0;
    const char* end = text_.data() + at_ + 4;
    if (at_ + 4 > text_.size() || std::from_chars(text_.data() + at_, end, value, 16).ptr != end)
      fail("an escape without four hexadecimal digits");
    at_ += 4;
    return value;
  }

  // Of one escape, or of a pair of surrogates; a lone surrogate becomes the replacement character.
  std::uint32_t code_point() {
    const std::uint32_t first = hex4();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first < 0xDC00 && take_word("\\u")) {
      const std::uint32_t second = hex4();
      if (second >= 0xDC00 && second <= 0xDFFF) return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
    }
    return 0xFFFD;
  }

  static void append_utf8(std::uint32_t code, std::string& text) {
    if (code < 0x80) {
      text += char(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    constexpr unsigned char marks[] = {0, 0xC0, 0xE0, 0xF0};
    text += char(marks[more] | (code >> (6 * more)));
    for (int k = more - 1; k >= 0; --k) text += char(0x80 | ((code >> (6 * k)) & 0x3F));
  }

  bool digits() {
    const std::size_t first = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    return at_ > first;
  }

  bool next_is(std::string_view any) const { return at_ < text_.size() && any.find(text_[at_]) != any.npos; }

  Json number() {
    const char* begin = text_.data() + at_;
    if (next_is("-")) ++at_;
    const bool starts_with_zero = next_is("0");
    const std::size_t first = at_;
    if (!digits() || (starts_with_zero && at_ > first + 1)) fail("no value");
    bool is_integer = true;
    if (next_is(".")) {
      ++at_, is_integer = false;
      if (!digits()) fail("a number without digits behind its point");
    }
    if (next_is("eE")) {
      ++at_, is_integer = false;
      if (next_is("+-")) ++at_;
      if (!digits()) fail("a number without digits in its exponent");
    }
    const char* end = text_.data() + at_;
    std::int64_t whole = 0;
    if (is_integer && std::from_chars(begin, end, whole).ec == std::errc()) return {whole};
    const double value = real(begin, end);
    if (!std::isfinite(value)) fail("a number out of range");
    return {value};
  }

  // Of text that is known to be a number; independent of the locale, which hosts change.
  static double real(const char* begin, const char* end) {
    double value = 0;
#if defined(__cpp_lib_to_chars)
    if (std::from_chars(begin, end, value).ec == std::errc()) return value;
#else
    std::istringstream stream(std::string(begin, end));
    stream.imbue(std::locale::classic());
    if (stream >> value) return value;
#endif
    return HUGE_VAL;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

Json Json::parse(std::string_view text) { return Reader(text).document(); }

}  // namespace neuralil

#include "tape.h"

#include <algorithm>
#include <stdexcept>

namespace neuralil {
namespace {

typedef std::int64_t Int;

// Where a value stands.
struct Columns {
  Int start, width;
};

constexpr const char* kAleatoric[] = {"sigma2e", "sigma2f"};

class Writer {
 public:
  explicit Writer(const Config& config) : config_(config) {
    tape_.n_features = config.n_features();
    tape_.n_elements = config.n_elements();
    tape_.n_columns = tape_.n_features + config.embed_d;
  }

  Tape write() {
    const Columns x{0, tape_.n_columns};
    share();
    if (config_.shared_layers == 0) linear();
    if (config_.embed_d)
      operate(kEmbed, {0, 0}, {tape_.n_features, config_.embed_d},
              parameter("embed/embedding", {tape_.n_elements, config_.embed_d}), -1);
    if (config_.kind == "core")
      core(x);
    else if (config_.kind == "resnet")
      resnet(x);
    else
      heteroscedastic(x);
    finish();
    return std::move(tape_);
  }

 private:
  // ---------------------------------------------------------------- networks, as in network.py

  // The first operations of every member.
  void linear() {
    if (!config_.linear) return;
    linear_ = operate(kPick, dense("linear", {0, tape_.n_features}, tape_.n_elements), take(1), -1, -1);
  }

  void core(Columns x) {
    std::vector<Columns> layers;
    for (std::size_t k = 0; k < config_.widths.size(); ++k) {
      x = dense("body/Dense_" + std::to_string(k), x, config_.widths[k]);
      if (k) x = norm("body/LayerNorm_" + std::to_string(k), x);
      layers.push_back(x = activate(x));
      if (Int(k) + 1 == config_.shared_layers) share(), linear();
    }
    x = activate(dense("body/Dense_" + std::to_string(config_.widths.size()), x, 1));
    end_energy(dense("body/denormalizer", x, 1));
    if (config_.head_widths.empty()) return;
    Columns h = layers[0];
    for (std::size_t k = 0; k < config_.head_widths.size(); ++k) {
      const std::string number = std::to_string(k);
      h = dense("body/sigma2_Dense_" + number, h, config_.head_widths[k]);
      h = activate(norm("body/sigma2_LayerNorm_" + number, h));
    }
    for (const std::string name : kAleatoric)
      tape_.outputs.push_back(function(kSoftplus, dense("body/" + name + "_denormalizer", h, 1)).start);
  }

  void resnet(Columns x) {
    std::vector<Int> widths = config_.widths;
    widths.push_back(1);
    end_energy(dense("body/denormalizer", blocks("body/blocks", x, widths), 1));
  }

  void heteroscedastic(Columns x) {
    x = blocks("body/trunk", x, config_.widths);
    end_energy(head("energy", x, true));
    for (const std::string name : kAleatoric) tape_.outputs.push_back(function(kSoftplus, head(name, x, false)).start);
  }

  Columns head(const std::string& name, Columns x, bool has_bias) {
    std::vector<Int> widths = config_.head_widths;
    widths.push_back(1);
    const Columns h = blocks("body/" + name + "_head", x, widths);
    return dense("body/" + name + "_denormalizer", h, 1, has_bias);
  }

  Columns blocks(const std::string& name, Columns x, const std::vector<Int>& widths) {
    for (std::size_t k = 0; k + 1 < widths.size(); ++k)
      x = block(name + "/block_" + std::to_string(k), x, widths[k], widths[k + 1]);
    return x;
  }

  Columns block(const std::string& name, Columns x, Int inner, Int outer) {
    const auto layer = [&](int k, Columns value, Int width) {
      value = dense(name + "/Dense_" + std::to_string(k), value, width);
      return width == 1 ? value : norm(name + "/LayerNorm_" + std::to_string(k), value);
    };
    Columns h = activate(layer(0, x, inner));
    h = activate(layer(1, h, inner));
    h = layer(2, h, outer);
    const bool is_identity = x.width == inner && inner == outer;
    return activate(add(h, is_identity ? x : layer(3, x, outer)));
  }

  // ---------------------------------------------------------------- layers

  Columns dense(const std::string& name, Columns x, Int width, bool has_bias = true) {
    const Int weights = parameter(name + "/kernel", {x.width, width});
    return operate(kDense, x, take(width), weights, has_bias ? parameter(name + "/bias", {width}) : -1);
  }

  // Overwrites x, which nothing else may read.
  Columns norm(const std::string& name, Columns x) {
    const Int scale = parameter(name + "/scale", {x.width}), bias = parameter(name + "/bias", {x.width});
    const Columns value = operate(kNorm, x, take(x.width), scale, bias);
    take(1);  // 1 / standard deviation, kept for the way back
    return value;
  }

  // Overwrites x, which nothing else may read, with its slope.
  Columns function(Kind kind, Columns x) { return operate(kind, x, take(x.width), -1, -1); }
  Columns activate(Columns x) { return function(config_.activation == "tanh" ? kTanh : kSwish, x); }

  // Neither value may be read again.
  Columns add(Columns x, Columns y) { return operate(kAdd, x, take(x.width), y.start, -1); }

  // ---------------------------------------------------------------- the tape

  // All members share what has been written up to here.
  void share() { tape_.n_shared = Int(tape_.operations.size()), tape_.n_shared_columns = tape_.n_columns; }

  void end_energy(Columns energy) {
    if (config_.linear) energy = add(energy, linear_);
    tape_.outputs.push_back(energy.start);
    tape_.n_backward = Int(tape_.operations.size());
  }

  Columns take(Int width) {
    tape_.n_columns += width;
    return {tape_.n_columns - width, width};
  }

  Int parameter(const std::string& name, std::vector<Int> shape) {
    tape_.parameters.push_back({"network/" + name, std::move(shape), false});
    return Int(tape_.parameters.size()) - 1;
  }

  Columns operate(Kind kind, Columns x, Columns y, Int weights, Int bias) {
    tape_.operations.push_back({kind, x.start, y.start, x.width, y.width, weights, bias, false});
    return y;
  }

  // What is known only at the end: which parameters are shared, and whose cotangents are added to others.
  void finish() {
    std::vector<char> is_read(tape_.n_columns, false);
    for (Int k = Int(tape_.operations.size()); k-- > 0;) {
      Operation& op = tape_.operations[k];
      if (op.kind != kAdd && k < tape_.n_shared)
        for (const Int number : {op.weights, op.bias})
          if (number >= 0) tape_.parameters[number].is_shared = true;
      if (k >= tape_.n_backward || op.kind == kEmbed) continue;
      op.adds = op.kind == kDense && is_read[op.source];
      is_read[op.source] = true;
      if (op.kind == kAdd) is_read[op.weights] = true;
    }
  }

  const Config& config_;
  Tape tape_;
  Columns linear_{0, 0};
};

void require(bool condition) {
  if (!condition) throw std::logic_error("a network that does not fit its columns or parameters");
}

}  // namespace

Int Tape::Entry::size() const {
  Int product = 1;
  for (const Int length : shape) product *= length;
  return product;
}

Tape write_tape(const Config& config) { return Writer(config).write(); }

void check_tape(const Tape& tape) {
  const auto columns = [&](Int start, Int width) {
    require(start >= 0 && width >= 0 && width <= tape.n_columns && start <= tape.n_columns - width);
  };
  const auto parameter = [&](Int number, Int size) {
    require(number >= 0 && number < Int(tape.parameters.size()) && tape.parameters[number].size() == size);
  };
  const Int count = Int(tape.operations.size());
  require(0 <= tape.n_shared && tape.n_shared <= tape.n_backward && tape.n_backward <= count);
  require(tape.n_features >= 0 && tape.n_features <= tape.n_columns);
  require(!tape.outputs.empty());
  for (const Int output : tape.outputs) columns(output, 1);
  for (const Operation& op : tape.operations) {
    columns(op.source, op.n_in);
    columns(op.target, op.n_out + (op.kind == kNorm ? 1 : 0));
    if (op.kind == kPick) require(op.n_in == tape.n_elements && op.n_out == 1);
    if (op.kind != kDense && op.kind != kEmbed && op.kind != kPick) require(op.n_in == op.n_out);
    if (op.kind == kAdd) {
      columns(op.weights, op.n_in);
    } else if (op.kind == kDense || op.kind == kEmbed || op.kind == kNorm) {
      parameter(op.weights, op.kind == kNorm ? op.n_in : op.n_out * (op.kind == kDense ? op.n_in : tape.n_elements));
      if (op.kind == kNorm || op.bias >= 0) parameter(op.bias, op.n_out);
    } else {
      require(op.weights < 0 && op.bias < 0);
    }
  }
}

}  // namespace neuralil

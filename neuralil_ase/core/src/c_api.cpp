// The C interface: no exception leaves it.

#include <cstdio>
#include <memory>
#include <new>
#include <variant>

#include "../include/neuralil.h"
#include "calibration.h"
#include "dispatch.h"
#include "failure.h"
#include "model.h"
#include "run.h"
#include "threads.h"

struct neuralil_model {
  std::string description;
  neuralil::Config config;
  std::vector<double> reference;
  neuralil::Calibration calibration;
  std::vector<const char*> elements;
  std::int64_t n_parameters = 0, n_aleatoric = 0;
  std::variant<std::monostate, neuralil::Model<float>, neuralil::Model<double>> numbers;
};

namespace {

thread_local char last_message[1024] = "";

neuralil_status fail(neuralil_status status, const char* what, const char* path = nullptr) {
  std::snprintf(last_message, sizeof last_message, "%s%s%s", path ? path : "", path ? ": " : "", what);
  return status;
}

// Runs a function and turns what it throws into a status.
template <class Function>
neuralil_status guarded(const char* path, const Function& function) noexcept {
  try {
    function();
    return NEURALIL_OK;
  } catch (const neuralil::BadFile& error) {
    return fail(NEURALIL_BAD_FILE, error.what(), path);
  } catch (const neuralil::Unsupported& error) {
    return fail(NEURALIL_UNSUPPORTED, error.what(), path);
  } catch (const neuralil::BadGraph& error) {
    return fail(NEURALIL_BAD_GRAPH, error.what());
  } catch (const std::bad_alloc&) {
    return fail(NEURALIL_NO_MEMORY, "out of memory", path);
  } catch (const std::exception& error) {
    return fail(NEURALIL_FAILED, error.what(), path);
  } catch (...) {
    return fail(NEURALIL_FAILED, "an unknown failure", path);
  }
}

std::unique_ptr<neuralil_model> build(std::string content, neuralil_precision precision) {
  const neuralil::ModelFile file = neuralil::parse_model_file(std::move(content));
  auto model = std::make_unique<neuralil_model>();
  model->config = neuralil::read_config(file.header);
  model->description = file.description;
  model->reference = neuralil::read_reference(file, model->config);
  model->calibration = neuralil::read_calibration(file.header, model->config.elements);
  for (const std::string& symbol : model->config.elements) model->elements.push_back(symbol.c_str());
  if (precision == NEURALIL_FLOAT32)
    model->numbers.emplace<neuralil::Model<float>>(file, model->config, model->reference);
  else
    model->numbers.emplace<neuralil::Model<double>>(file, model->config, model->reference);
  for (const auto& [name, array] : file.arrays) model->n_parameters += array.size();
  model->n_parameters -= std::int64_t(model->reference.size());
  model->n_aleatoric = model->config.head_widths.empty() ? 0 : 2;
  return model;
}

void run(void* context, void (*task)(void*, int), void* data, int count) {
  neuralil::run_on_pool(context, task, data, count);
}

}  // namespace

extern "C" {

int neuralil_api_version(void) { return NEURALIL_API_VERSION; }

const char* neuralil_message(void) { return last_message; }

neuralil_status neuralil_load(const char* path, neuralil_precision precision, neuralil_model** model) {
  if (!path || !model) return fail(NEURALIL_FAILED, "neuralil_load got a null pointer");
  *model = nullptr;
  return guarded(path, [&] { *model = build(neuralil::read_file(path), precision).release(); });
}

neuralil_status neuralil_load_bytes(const void* content, size_t size, neuralil_precision precision,
                                    neuralil_model** model) {
  if (!content || !model) return fail(NEURALIL_FAILED, "neuralil_load_bytes got a null pointer");
  *model = nullptr;
  return guarded("model",
                 [&] { *model = build(std::string(static_cast<const char*>(content), size), precision).release(); });
}

neuralil_status neuralil_check(const char* description) {
  if (!description) return fail(NEURALIL_FAILED, "neuralil_check got a null pointer");
  return guarded(nullptr, [&] {
    const neuralil::Json header = neuralil::Json::parse(description);
    if (!header.object()) throw neuralil::BadFile("the description is not a table");
    neuralil::read_config(header);
  });
}

void neuralil_free(neuralil_model* model) { delete model; }

neuralil_info neuralil_get_info(const neuralil_model* model) {
  return {model->config.r_cut,
          std::int32_t(model->config.elements.size()),
          model->elements.data(),
          model->config.atomic_numbers.data(),
          model->reference.data(),
          model->config.n_members,
          model->n_aleatoric,
          model->n_parameters,
          model->numbers.index() == 1 ? NEURALIL_FLOAT32 : NEURALIL_FLOAT64,
          model->description.c_str()};
}

neuralil_status neuralil_evaluate(const neuralil_model* model, const neuralil_graph* graph,
                                  const neuralil_results* results, const neuralil_executor* executor) {
  if (!model || !graph || !results) return fail(NEURALIL_FAILED, "neuralil_evaluate got a null pointer");
  return guarded(nullptr, [&] {
    if (const auto* numbers = std::get_if<neuralil::Model<float>>(&model->numbers))
      neuralil::evaluate(numbers->view(), *graph, *results, executor);
    else
      neuralil::evaluate(std::get<neuralil::Model<double>>(model->numbers).view(), *graph, *results, executor);
  });
}

neuralil_status neuralil_force_error_bars(const neuralil_model* model, int64_t n, const int32_t* types,
                                          const double* spreads, const double* aleatoric, double* error_bars) {
  if (!model || n < 0 || (n && (!types || !spreads || !error_bars)))
    return fail(NEURALIL_FAILED, "neuralil_force_error_bars got a null pointer");
  if (!model->calibration.is_there)
    return fail(NEURALIL_UNSUPPORTED, "the model carries no calibration; make one with: neuralil-ase calibrate");
  for (int64_t i = 0; i < n; ++i) {
    if (types[i] < 0 || types[i] >= std::int32_t(model->config.elements.size()))
      return fail(NEURALIL_BAD_GRAPH, "a type that is not an element of the model");
    error_bars[i] = model->calibration.force_error_bar(types[i], spreads[i], aleatoric ? aleatoric + i : nullptr);
  }
  return NEURALIL_OK;
}

neuralil_executor neuralil_threads(int n_threads) {
  return {n_threads > 0 ? n_threads : neuralil::usable_processors(), &run, nullptr};
}

const char* neuralil_instruction_set(void) { return neuralil::instruction_set().name; }

}  // extern "C"

#include "run.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "dispatch.h"
#include "failure.h"

namespace neuralil {
namespace {

typedef std::int64_t Int;

constexpr Int kFewestAtoms = 256;  // that are worth a thread
constexpr Int kVirial = 9;

void check(const neuralil_graph& graph, const neuralil_results& results, int n_elements) {
  if (graph.n_atoms < 0 || graph.n_centers < 0 || graph.n_centers > graph.n_atoms || graph.n_pairs < 0)
    throw BadGraph("numbers of atoms, centres or pairs are negative, or there are more centres than atoms");
  if ((graph.n_atoms && (!graph.types || !results.forces)) || (graph.n_centers && !results.energies) ||
      (graph.n_pairs && (!graph.centers || !graph.neighbors || !graph.vectors)))
    throw BadGraph("an array that is needed is missing");
  if (results.member_virials && !results.member_forces) throw BadGraph("member_virials need member_forces");
  if (graph.n_pairs && !graph.n_centers) throw BadGraph("there are pairs, but no centres");
  for (Int atom = 0; atom < graph.n_atoms; ++atom)
    if (graph.types[atom] < 0 || graph.types[atom] >= n_elements)
      throw BadGraph("atom " + std::to_string(atom) + " has type " + std::to_string(graph.types[atom]) +
                     ", and the model knows " + std::to_string(n_elements) + " elements");
}

std::vector<Part> parts_of(const neuralil_graph& graph, Int count) {
  std::vector<Part> parts;
  const std::int32_t* end = graph.centers + graph.n_pairs;
  for (Int k = 0; k < count; ++k) {
    const Int first = k * graph.n_centers / count, last = (k + 1) * graph.n_centers / count;
    const Int first_pair = k ? parts.back().last_pair : 0;
    const Int last_pair = k + 1 == count ? graph.n_pairs : std::lower_bound(graph.centers, end, last) - graph.centers;
    parts.push_back({first, last, first_pair, last_pair});
  }
  return parts;
}

// Calls task(k) for k = 0 ... count - 1 by the executor; the first exception is thrown again here.
template <class Task>
void share_out(const neuralil_executor* executor, Int count, Task task) {
  struct Shared {
    Task& task;
    std::vector<std::exception_ptr> errors;
  } shared{task, std::vector<std::exception_ptr>(count)};
  const auto call = [](void* data, int k) {
    Shared& all = *static_cast<Shared*>(data);
    try {
      all.task(k);
    } catch (...) {
      all.errors[k] = std::current_exception();
    }
  };
  if (count > 1)
    executor->run(executor->context, call, &shared, int(count));
  else
    call(&shared, 0);
  for (const std::exception_ptr& error : shared.errors)
    if (error) std::rethrow_exception(error);
}

// What pairs do to atoms, as every part found it: (atoms, components, width).
template <class T>
struct Found {
  std::vector<std::unique_ptr<T[]>> parts;
  Int n_components, width;

  double sum(Int atom, Int component, Int energy) const {
    double all = 0;
    for (const auto& part : parts) all += double(part[(atom * n_components + component) * width + energy]);
    return all;
  }
};

// Forces of atoms first ... last - 1: of every energy, and of their mean; and their virials.
template <class T>
void collect(const Found<T>& found, Int n_atoms, Int n_energies, Int first, Int last, const neuralil_results& results) {
  for (Int atom = first; atom < last; ++atom)
    for (Int component = 0; component < found.n_components; ++component) {
      double mean = 0;
      for (Int energy = 0; energy < n_energies; ++energy) {
        const double value = found.sum(atom, component, energy);
        if (component < 3 && results.member_forces)
          results.member_forces[3 * (energy * n_atoms + atom) + component] = value;
        mean += value;
      }
      mean /= double(n_energies);
      if (component < 3)
        results.forces[3 * atom + component] = mean;
      else
        results.neighbor_virials[kVirial * atom + component - 3] = mean;
    }
}

}  // namespace

template <class T>
void evaluate(const View<T>& view, const neuralil_graph& graph, const neuralil_results& results,
              const neuralil_executor* executor) {
  check(graph, results, view.n_elements);
  if (graph.n_atoms == 0) return;
  const Int n_energies = results.member_forces ? view.n_members : 1;
  if (results.virials) std::fill_n(results.virials, graph.n_centers * kVirial, 0.0);
  if (results.member_virials) std::fill_n(results.member_virials, n_energies * graph.n_centers * kVirial, 0.0);
  const Int most = std::max<Int>(graph.n_centers / kFewestAtoms, 1);
  const std::vector<Part> parts = parts_of(graph, std::clamp<Int>(executor ? executor->n_threads : 1, 1, most));
  const Graph pairs{graph.vectors, graph.centers, graph.neighbors, graph.types,
                    graph.n_pairs, graph.n_atoms, graph.n_centers};
  const Instance<T>& code = instance<T>();
  Found<T> found{{}, results.neighbor_virials ? 3 + kVirial : 3, code.width(n_energies)};
  found.parts.resize(parts.size());
  std::vector<char> is_good(parts.size());
  share_out(executor, Int(parts.size()), [&](int k) {
    found.parts[k].reset(new T[graph.n_atoms * found.n_components * found.width]());
    const Target<T> target{n_energies,
                           results.energies,
                           view.network.n_outputs > 1 ? results.aleatoric_variances : nullptr,
                           results.virials,
                           results.member_virials,
                           found.parts[k].get(),
                           int(found.n_components)};
    is_good[k] = code.run[view.n_max - 1](view, pairs, parts[k], target);
  });
  if (!std::all_of(is_good.begin(), is_good.end(), [](char good) { return good; }))
    throw BadGraph("pairs must be sorted by centre, with indices of atoms");
  const Int n_parts = Int(parts.size());
  share_out(executor, n_parts, [&](int k) {
    collect(found, graph.n_atoms, n_energies, k * graph.n_atoms / n_parts, (k + 1) * graph.n_atoms / n_parts, results);
  });
}

template void evaluate(const View<float>&, const neuralil_graph&, const neuralil_results&, const neuralil_executor*);
template void evaluate(const View<double>&, const neuralil_graph&, const neuralil_results&, const neuralil_executor*);

}  // namespace neuralil

// A whole evaluation: graphs are checked, cut into parts, and the parts' results added.

#pragma once

#include "../include/neuralil.h"
#include "views.h"

namespace neuralil {

// Throws BadGraph and std::bad_alloc.
template <class T>
void evaluate(const View<T>& view, const neuralil_graph& graph, const neuralil_results& results,
              const neuralil_executor* executor);

}  // namespace neuralil

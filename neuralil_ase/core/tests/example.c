/* Two atoms of the first element of a model, 1 Å apart: ./example MODEL */

#include <stdio.h>
#include <stdlib.h>

#include "neuralil.h"

int main(int count, char** arguments) {
  neuralil_model* model;
  if (count < 2 || neuralil_load(arguments[1], NEURALIL_FLOAT64, &model))
    return fprintf(stderr, "%s\n", count < 2 ? "usage: example MODEL" : neuralil_message()), 1;
  const int32_t types[2] = {0, 0}, centers[2] = {0, 1}, neighbors[2] = {1, 0};
  const double vectors[6] = {1, 0, 0, -1, 0, 0};
  const neuralil_graph graph = {2, 2, 2, types, centers, neighbors, vectors};
  double forces[6], *energies = malloc(2 * sizeof(double) * neuralil_get_info(model).n_members);
  const neuralil_results results = {.energies = energies, .forces = forces};
  const neuralil_status status = neuralil_evaluate(model, &graph, &results, NULL);
  if (status)
    fprintf(stderr, "%s\n", neuralil_message());
  else
    printf("%.8f eV by the first member, %.8f eV/Å\n", energies[0] + energies[1], forces[0]);
  free(energies);
  neuralil_free(model);
  return status;
}

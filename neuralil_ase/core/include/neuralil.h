/* NeuralIL potentials: energies, forces and virials of atoms and their neighbours, for any host.
 *
 * Lengths are in Å, energies in eV, forces in eV/Å. All functions may be called from any thread; one model may be
 * evaluated by several threads at once. No exception crosses this border: functions return a status, and
 * neuralil_message() says more about the last failure in the calling thread.
 *
 *   neuralil_model *model;
 *   if (neuralil_load("model.safetensors", NEURALIL_FLOAT32, &model)) exit(puts(neuralil_message()));
 *   neuralil_graph graph = {n_atoms, n_centers, n_pairs, types, centers, neighbors, vectors};
 *   neuralil_results results = {.energies = energies, .forces = forces};
 *   if (neuralil_evaluate(model, &graph, &results, NULL)) exit(puts(neuralil_message()));
 *   neuralil_free(model);
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */

#ifndef NEURALIL_H
#define NEURALIL_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define NEURALIL_EXPORT __attribute__((visibility("default")))
#else
#define NEURALIL_EXPORT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a function or a structure of this header changes. */
#define NEURALIL_API_VERSION 1
NEURALIL_EXPORT int neuralil_api_version(void);

typedef enum {
  NEURALIL_OK = 0,
  NEURALIL_BAD_FILE = 1,    /* missing, damaged, forged, or of a newer format */
  NEURALIL_UNSUPPORTED = 2, /* a sound model that this library has no code for */
  NEURALIL_BAD_GRAPH = 3,   /* pairs not sorted by centre, an index out of range, or a missing array */
  NEURALIL_NO_MEMORY = 4,
  NEURALIL_FAILED = 5 /* anything else */
} neuralil_status;

/* What the last failure in this thread was; valid until the next failure in this thread. */
NEURALIL_EXPORT const char* neuralil_message(void);

/* ---------------------------------------------------------------- models */

/* Precision of descriptor and networks. All arrays at this border are double all the same. */
typedef enum { NEURALIL_FLOAT32 = 0, NEURALIL_FLOAT64 = 1 } neuralil_precision;

typedef struct neuralil_model neuralil_model;

/* Reads a model file of any format version up to this library's. The model must be freed. */
NEURALIL_EXPORT neuralil_status neuralil_load(const char* path, neuralil_precision precision, neuralil_model** model);

/* The same from the file's content in memory, which is copied. */
NEURALIL_EXPORT neuralil_status neuralil_load_bytes(const void* content, size_t size, neuralil_precision precision,
                                                    neuralil_model** model);

/* Whether this library has code for a model, from the JSON header of its file alone. */
NEURALIL_EXPORT neuralil_status neuralil_check(const char* description);

/* NULL is allowed. */
NEURALIL_EXPORT void neuralil_free(neuralil_model* model);

/* What a model needs and gives. Pointers live as long as the model. */
typedef struct {
  double r_cut; /* pairs at or beyond it add nothing */
  int32_t n_elements;
  const char* const* elements; /* chemical symbols, in the order of the types */
  const int32_t* atomic_numbers;
  const double* energy_reference; /* of each element; part of all energies */
  int64_t n_members;
  int64_t n_aleatoric;  /* aleatoric variances of each member and atom: 0, or 2, of energy and force component */
  int64_t n_parameters; /* of all members, pair terms included */
  neuralil_precision precision;
  const char* description; /* the JSON header of the file: architecture, provenance, calibration */
} neuralil_info;

NEURALIL_EXPORT neuralil_info neuralil_get_info(const neuralil_model* model);

/* ---------------------------------------------------------------- evaluation */

/* Atoms, of which the first n_centers are centres, whose energies are computed; the others (ghosts) are neighbours
 * only. The energy of a centre depends on its pairs: both directions are listed when both atoms are centres. */
typedef struct {
  int64_t n_atoms, n_centers, n_pairs;
  const int32_t* types;     /* (n_atoms): number of the element */
  const int32_t* centers;   /* (n_pairs): ascending. Pairs sorted by the neighbour's type, too, are faster */
  const int32_t* neighbors; /* (n_pairs) */
  const double* vectors;    /* (n_pairs, 3): position of the neighbour minus that of the centre */
} neuralil_graph;

/* Arrays that receive results, written and not added to. energies and forces are needed, others may be NULL.
 * A virial is dE/d(strain) = sum over pairs of vector_a gradient_b, in the order xx xy xz yx yy yz zx zy zz: stress is
 * its sum over the volume, tension positive. */
typedef struct {
  double* energies;            /* (members, centres) */
  double* aleatoric_variances; /* (members, centres, n_aleatoric): those that a member predicts for its own errors */
  double* forces;              /* (atoms, 3): of the mean over members; on ghosts too, from the centres here */
  double* virials;             /* (centres, 9): of the mean, each pair with its centre */
  double* neighbor_virials;    /* (atoms, 9): of the mean, each pair with its neighbour, as heat currents need it */
  double* member_forces;       /* (members, atoms, 3) */
  double* member_virials;      /* (members, centres, 9); needs member_forces */
} neuralil_results;

/* Threads lent by the host. run() calls task(data, k) for k = 0 ... count - 1 and returns when all calls have. */
typedef struct {
  int n_threads; /* how many parts large graphs are cut into, at most; results depend on it to rounding */
  void (*run)(void* context, void (*task)(void* data, int k), void* data, int count);
  void* context;
} neuralil_executor;

/* Evaluates a graph, on the calling thread alone when `executor` is NULL. */
NEURALIL_EXPORT neuralil_status neuralil_evaluate(const neuralil_model* model, const neuralil_graph* graph,
                                                  const neuralil_results* results, const neuralil_executor* executor);

/* Threads of the library's own, started when first used, and again after a fork. n_threads 0 means as many as
 * processors that this process may use. */
NEURALIL_EXPORT neuralil_executor neuralil_threads(int n_threads);

/* ---------------------------------------------------------------- error bars */

/* Expected sizes of the errors of forces in eV/Å, for n atoms, by the calibration that the model carries; NaN for
 * elements that it did not see. spreads: standard deviation of the members' forces (ddof 1), norm over x, y, z.
 * aleatoric: of models with aleatoric variances, sqrt(3 mean over members of the second one), else NULL.
 * NEURALIL_UNSUPPORTED without a calibration. */
NEURALIL_EXPORT neuralil_status neuralil_force_error_bars(const neuralil_model* model, int64_t n, const int32_t* types,
                                                          const double* spreads, const double* aleatoric,
                                                          double* error_bars);

/* ---------------------------------------------------------------- instruction sets */

/* The instruction set in use: "x86-64-v4" (AVX-512), "x86-64-v3" (AVX2), "x86-64" or "generic". */
NEURALIL_EXPORT const char* neuralil_instruction_set(void);

#ifdef __cplusplus
}
#endif

#endif

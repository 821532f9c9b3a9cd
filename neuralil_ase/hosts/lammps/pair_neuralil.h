// LAMMPS pair style for NeuralIL potentials. README.md beside it is the user's page.
// SPDX-License-Identifier: GPL-2.0-or-later

#ifdef PAIR_CLASS
// clang-format off
PairStyle(neuralil,PairNeuralIL);
// clang-format on
#else

#ifndef LMP_PAIR_NEURALIL_H
#define LMP_PAIR_NEURALIL_H

#include <array>
#include <string>
#include <vector>

#include "neuralil.h"
#include "pair.h"

namespace LAMMPS_NS {

class PairNeuralIL : public Pair {
 public:
  explicit PairNeuralIL(class LAMMPS*);
  ~PairNeuralIL() override;

  void settings(int, char**) override;
  void coeff(int, char**) override;
  void init_style() override;
  double init_one(int, int) override;
  void setup() override;
  void compute(int, int) override;

  int pack_reverse_comm(int, int, double*) override;
  void unpack_reverse_comm(int, int*, double*) override;
  void* extract(const char*, int&) override;
  void* extract_peratom(const char*, int&) override;
  double memory_usage() override;

 private:
  // A quantity that fix pair asks for: computed at steps that are due, or at all when nobody says which are.
  struct Field {
    const char* name;
    int is_due = 0;
    bool is_wanted = false, has_trigger = false;
    std::vector<double> values;

    bool is_needed() const { return is_wanted && (is_due || !has_trigger); }
  };
  enum { ENERGIES_STD, FORCES_STD, FORCES_ERROR_BAR };

  void free_model();
  void check_status(neuralil_status);
  void number_atoms();
  void collect_pairs();
  void evaluate(bool by_member);
  void tally_energies();
  void tally_forces();
  void tally_virials();
  void compute_spreads();
  void deviations_of_energies();
  void deviations_of_forces();
  Field* find(const std::string& name);

  neuralil_model* model = nullptr;
  neuralil_info info{};
  std::string file;
  neuralil_precision precision = NEURALIL_FLOAT32;
  double energy_scale = 1;  // from eV to LAMMPS units; lengths are in Å in all units that are supported

  std::vector<int> element_of;  // of every LAMMPS type; -1 for NULL
  // Atoms of the model in the order that the core wants, centres first: their LAMMPS indices; and the inverse.
  std::vector<int> atoms, number;
  int n_centers = 0;
  std::vector<int32_t> types, centers, neighbors;
  std::vector<double> vectors;
  std::vector<double> energies, aleatoric_variances, forces, virials, neighbor_virials, member_forces;
  std::vector<double> all_member_forces;  // (local and ghost atoms, 3 members), summed over ranks
  std::array<Field, 3> fields{{{"energies_std"}, {"forces_std"}, {"forces_error_bar"}}};
};

}  // namespace LAMMPS_NS

#endif
#endif

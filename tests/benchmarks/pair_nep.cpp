// "pair_style nep FILE", "pair_coeff * * C H N O": NEP's class for LAMMPS, as its authors give it, in a pair style for
// lammps_speed.py --nep. Forces and the total energy only. Compiled there beside nep.cpp of the sources of calorine.
// SPDX-License-Identifier: GPL-2.0-or-later

#include <cstring>
#include <string>
#include <vector>

#include "atom.h"
#include "error.h"
#include "force.h"
#include "lammps.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "nep.h"
#include "pair.h"

namespace {

using namespace LAMMPS_NS;

class PairNep : public Pair {
 public:
  explicit PairNep(LAMMPS* lmp) : Pair(lmp) {
    restartinfo = 0;
    one_coeff = manybody_flag = 1;
    no_virial_fdotr_compute = 1;
  }

  ~PairNep() override {
    if (allocated) memory->destroy(setflag), memory->destroy(cutsq);
  }

  void settings(int narg, char** arg) override {
    if (narg != 1) error->all(FLERR, "pair_style nep: give the file of a model");
    model_.init_from_file(arg[0], false);
  }

  void coeff(int narg, char** arg) override {
    const int n = atom->ntypes;
    if (narg != 2 + n) error->all(FLERR, "pair_coeff * *: give an element for each type");
    memory->create(setflag, n + 1, n + 1, "pair:setflag");
    memory->create(cutsq, n + 1, n + 1, "pair:cutsq");
    allocated = 1;
    elements_.assign(n + 1, -1);
    for (int i = 1; i <= n; ++i) {
      for (std::size_t k = 0; k < model_.element_list.size(); ++k)
        if (model_.element_list[k] == arg[1 + i]) elements_[i] = int(k);
      if (elements_[i] < 0) error->all(FLERR, "pair_coeff: the model does not know {}", arg[1 + i]);
      for (int j = 1; j <= n; ++j) setflag[i][j] = 1;
    }
  }

  void init_style() override {
    if (!force->newton_pair) error->all(FLERR, "pair_style nep needs newton on");
    neighbor->add_request(this, NeighConst::REQ_FULL);
  }

  double init_one(int, int) override { return model_.paramb.rc_radial_max; }

  void compute(int eflag, int vflag) override {
    ev_init(eflag, vflag);
    double energy = 0, total[6] = {};
    model_.compute_for_lammps(atom->nlocal, list->inum, list->ilist, list->numneigh, list->firstneigh, atom->type,
                              elements_.data(), atom->x, energy, total, nullptr, atom->f, nullptr);
    if (eflag) eng_vdwl += energy;
    if (vflag)
      for (int k = 0; k < 6; ++k) virial[k] += total[k];
  }

 private:
  NEP model_;
  std::vector<int> elements_;
};

// lammpsplugin.h, which installations of LAMMPS leave out.
struct Plugin {
  const char *version, *style, *name, *info, *author;
  void* (*create)(void* lmp);
  void* handle;
};

void* create(void* lmp) { return new PairNep(static_cast<LAMMPS*>(lmp)); }

}  // namespace

extern "C" void lammpsplugin_init(void* lmp, void* handle, void* regfunc) {
  Plugin plugin{VERSION, "pair", "nep", "NEP for a benchmark", "its authors", &create, handle};
  reinterpret_cast<void (*)(Plugin*, void*)>(regfunc)(&plugin, lmp);
}

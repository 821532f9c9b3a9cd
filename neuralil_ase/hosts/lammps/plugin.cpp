// Registers the pair style with the command "plugin load" of LAMMPS.
// SPDX-License-Identifier: GPL-2.0-or-later

#include "lammps.h"
#include "pair_neuralil.h"

namespace {

// lammpsplugin.h, which installations of LAMMPS leave out.
struct Plugin {
  const char *version, *style, *name, *info, *author;
  union {
    void *(*v1)(void *lmp);
    void *(*v2)(void *lmp, int narg, char **arg);
  } creator;
  void *handle;
};

void *create(void *lmp) { return new LAMMPS_NS::PairNeuralIL(static_cast<LAMMPS_NS::LAMMPS *>(lmp)); }

}    // namespace

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  Plugin plugin{};
  plugin.version = NEURALIL_LAMMPS_VERSION;
  plugin.style = "pair";
  plugin.name = "neuralil";
  plugin.info = "NeuralIL potentials with uncertainty";
  plugin.author = "The neuralil_ase developers";
  plugin.creator.v1 = &create;
  plugin.handle = handle;
  reinterpret_cast<void (*)(Plugin *, void *)>(regfunc)(&plugin, lmp);
}

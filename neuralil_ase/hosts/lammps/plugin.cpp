// Registers the pair style with the command "plugin load" of LAMMPS.
// SPDX-License-Identifier: GPL-2.0-or-later

#include <cstdio>
#include <cstring>

#include "lammps.h"
#include "pair_neuralil.h"

namespace {

// lammpsplugin.h, which installations of LAMMPS leave out.
struct Plugin {
  const char *version, *style, *name, *info, *author;
  union {
    void* (*v1)(void* lmp);
    void* (*v2)(void* lmp, int narg, char** arg);
  } creator;
  void* handle;
};

void* create(void* lmp) { return new LAMMPS_NS::PairNeuralIL(static_cast<LAMMPS_NS::LAMMPS*>(lmp)); }

// "22 Jul 2025" as 20250722, which is how the C interface of LAMMPS gives its version; 0 if it is not a date.
int as_number(const char* date) {
  static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
  int day = 0, year = 0;
  char month[4] = "";
  if (std::sscanf(date, "%d %3s %d", &day, month, &year) != 3) return 0;
  const char* found = std::strstr(months, month);
  return found ? 10000 * year + 100 * (int(found - months) / 3 + 1) + day : 0;
}

}  // namespace

extern "C" int lammps_version(void* lmp);

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void* lmp, void* handle, void* regfunc) {
  // LAMMPS itself loads plugins of any version, and its classes have another layout in each.
  if (lammps_version(lmp) != as_number(NEURALIL_LAMMPS_VERSION)) {
    std::fprintf(
        stderr,
        "ERROR: there is no pair style neuralil: its plugin was compiled for LAMMPS of %s, and this is version "
        "%d. Compile it again: python -m neuralil_ase.hosts.lammps\n",
        NEURALIL_LAMMPS_VERSION, lammps_version(lmp));
    return;
  }
  Plugin plugin{};
  plugin.version = NEURALIL_LAMMPS_VERSION;
  plugin.style = "pair";
  plugin.name = "neuralil";
  plugin.info = "NeuralIL potentials with uncertainty";
  plugin.author = "The neuralil_ase developers";
  plugin.creator.v1 = &create;
  plugin.handle = handle;
  reinterpret_cast<void (*)(Plugin*, void*)>(regfunc)(&plugin, lmp);
}

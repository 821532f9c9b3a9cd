// LAMMPS pair style for NeuralIL potentials.
// SPDX-License-Identifier: GPL-2.0-or-later

#include "pair_neuralil.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

using namespace LAMMPS_NS;

/* ---------------------------------------------------------------- set up */

PairNeuralIL::PairNeuralIL(LAMMPS* lmp) : Pair(lmp) {
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_AVAIL;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);
}

PairNeuralIL::~PairNeuralIL() {
  if (copymode) return;
  free_model();
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairNeuralIL::free_model() {
  neuralil_free(model);
  model = nullptr;
}

void PairNeuralIL::check_status(neuralil_status status) {
  if (status) error->one(FLERR, "Pair style neuralil: {}", neuralil_message());
}

// pair_style neuralil MODEL [precision single|double]
void PairNeuralIL::settings(int narg, char** arg) {
  if (narg != 1 && narg != 3)
    error->all(FLERR, "Pair style neuralil needs: pair_style neuralil MODEL [precision single|double]");
  precision = NEURALIL_FLOAT32;
  if (narg == 3) {
    const bool is_double = !strcmp(arg[2], "double");
    if (strcmp(arg[1], "precision") != 0 || (!is_double && strcmp(arg[2], "single") != 0))
      error->all(FLERR, "Pair style neuralil knows the keyword precision, with single or double, and not: {} {}",
                 arg[1], arg[2]);
    if (is_double) precision = NEURALIL_FLOAT64;
  }
  file = arg[0];
  free_model();
  // Every rank reads the file; all stop together when one of them cannot, with the message of the first. If several
  // ranks aborted at once, the message of each could be lost.
  const neuralil_status status = neuralil_load(file.c_str(), precision, &model);
  const int mine = status ? comm->me : comm->nprocs;
  int first = comm->nprocs;
  MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, world);
  if (first < comm->nprocs) {
    std::string message = first == comm->me ? neuralil_message() : "";
    message.resize(1000);
    MPI_Bcast(message.data(), int(message.size()), MPI_CHAR, first, world);
    error->all(FLERR, "Pair style neuralil: {}", message.c_str());
  }
  info = neuralil_get_info(model);
  comm_reverse = 3 * int(info.n_members);  // now: pair_style hybrid asks after settings(), to size its buffers
}

// pair_coeff * * ELEMENT ...: one for every atom type, NULL for types that other styles compute
void PairNeuralIL::coeff(int narg, char** arg) {
  const int n = atom->ntypes;
  if (!model) error->all(FLERR, "Pair style neuralil: pair_coeff before pair_style");
  if (narg < 2 || strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0 || narg != 2 + n)
    error->all(FLERR, "Pair style neuralil needs: pair_coeff * * and an element or NULL for each of the {} atom types",
               n);
  if (!allocated) {
    memory->create(setflag, n + 1, n + 1, "pair:setflag");
    memory->create(cutsq, n + 1, n + 1, "pair:cutsq");
    allocated = 1;
  }
  element_of.assign(n + 1, -1);
  for (int type = 1; type <= n; ++type) {
    const std::string symbol = arg[1 + type];
    if (symbol == "NULL") continue;
    for (int element = 0; element < info.n_elements; ++element)
      if (symbol == info.elements[element]) element_of[type] = element;
    if (element_of[type] >= 0) continue;
    std::string known;
    for (int element = 0; element < info.n_elements; ++element) known += std::string(" ") + info.elements[element];
    error->all(FLERR, "Pair style neuralil: the model {} knows the elements{}, and not {}", file, known, symbol);
  }
  int count = 0;
  for (int i = 1; i <= n; ++i)
    for (int j = 1; j <= n; ++j) {
      setflag[i][j] = i <= j && element_of[i] >= 0 && element_of[j] >= 0;
      count += setflag[i][j];
    }
  if (!count) error->all(FLERR, "Pair style neuralil: all atom types are NULL in pair_coeff");
}

void PairNeuralIL::init_style() {
  if (!force->newton_pair)
    error->all(FLERR, "Pair style neuralil needs newton on: forces act on ghost atoms. Remove 'newton off'");
  if (atom->molecular != Atom::ATOMIC)
    for (int k = 1; k <= 3; ++k)
      if (force->special_lj[k] == 0 && force->special_coul[k] == 0)
        error->all(FLERR,
                   "Pair style neuralil must see bonded atoms too. Add 'special_bonds lj/coul 1 1 1', or use an atom "
                   "style without bonds");
  const std::string units = update->unit_style;
  if (units == "metal")
    energy_scale = 1;
  else if (units == "real")
    energy_scale = utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL);
  else
    error->all(FLERR, "Pair style neuralil needs units metal or real, and not {}", units);
  neighbor->add_request(this, NeighConst::REQ_FULL);
}

double PairNeuralIL::init_one(int i, int j) {
  if (!setflag[std::min(i, j)][std::max(i, j)] && (element_of[i] >= 0) && (element_of[j] >= 0))
    error->all(FLERR, "Pair style neuralil: pair_coeff is missing");
  return info.r_cut;
}

void PairNeuralIL::setup() {
  if (comm->get_comm_cutoff() < info.r_cut)
    error->all(FLERR,
               "Pair style neuralil needs ghost atoms up to its cutoff of {} Angstrom, and they end at {}. Raise the "
               "cutoff of comm_modify",
               info.r_cut, comm->get_comm_cutoff());
}

/* ---------------------------------------------------------------- one step */

void PairNeuralIL::compute(int eflag, int vflag) {
  ev_init(eflag, vflag);
  number_atoms();
  collect_pairs();
  evaluate(fields[FORCES_STD].is_needed() || fields[FORCES_ERROR_BAR].is_needed());
  tally_energies();
  tally_forces();
  tally_virials();
  compute_spreads();
}

// Centres first, then neighbours; atoms of types that are NULL do not take part.
void PairNeuralIL::number_atoms() {
  const int n_all = atom->nlocal + atom->nghost;
  atoms.clear();
  number.assign(n_all, -1);
  const auto add = [&](int i) {
    if (element_of[atom->type[i]] < 0 || number[i] >= 0) return;
    number[i] = int(atoms.size());
    atoms.push_back(i);
  };
  for (int k = 0; k < list->inum; ++k) add(list->ilist[k]);
  n_centers = int(atoms.size());
  for (int i = 0; i < n_all; ++i) add(i);
  types.resize(atoms.size());
  for (std::size_t k = 0; k < atoms.size(); ++k) types[k] = element_of[atom->type[atoms[k]]];
}

// Pairs inside the cutoff, by centre, then by the neighbour's element.
void PairNeuralIL::collect_pairs() {
  centers.clear(), neighbors.clear(), vectors.clear();
  double** x = atom->x;
  const double cut_squared = info.r_cut * info.r_cut;
  struct Pair {
    int neighbor;
    double v[3];
  };
  static thread_local std::vector<std::vector<Pair>> found;
  found.resize(info.n_elements);
  for (int k = 0; k < n_centers; ++k) {
    const int i = atoms[k];
    for (auto& pairs : found) pairs.clear();
    const int* jlist = list->firstneigh[i];
    for (int jj = 0; jj < list->numneigh[i]; ++jj) {
      const int j = jlist[jj] & NEIGHMASK;
      if (number[j] < 0) continue;
      const Pair pair{number[j], {x[j][0] - x[i][0], x[j][1] - x[i][1], x[j][2] - x[i][2]}};
      if (pair.v[0] * pair.v[0] + pair.v[1] * pair.v[1] + pair.v[2] * pair.v[2] < cut_squared)
        found[types[number[j]]].push_back(pair);
    }
    for (const auto& pairs : found)
      for (const Pair& pair : pairs) {
        centers.push_back(k);
        neighbors.push_back(pair.neighbor);
        vectors.insert(vectors.end(), pair.v, pair.v + 3);
      }
  }
}

void PairNeuralIL::evaluate(bool by_member) {
  const std::size_t n = atoms.size(), m = info.n_members;
  energies.resize(m * n_centers);
  aleatoric_variances.resize(m * n_centers * info.n_aleatoric);
  forces.resize(3 * n);
  virials.resize(9 * n_centers);
  neighbor_virials.resize(cvflag_atom ? 9 * n : 0);
  member_forces.resize(by_member ? 3 * m * n : 0);
  const neuralil_graph graph{int64_t(n),     n_centers,        int64_t(centers.size()), types.data(),
                             centers.data(), neighbors.data(), vectors.data()};
  neuralil_results results{};
  results.energies = energies.data();
  results.forces = forces.data();
  if (vflag_either) results.virials = virials.data();
  if (info.n_aleatoric) results.aleatoric_variances = aleatoric_variances.data();
  if (cvflag_atom) results.neighbor_virials = neighbor_virials.data();
  if (by_member) results.member_forces = member_forces.data();
  if (n > 0) check_status(neuralil_evaluate(model, &graph, &results, nullptr));
}

void PairNeuralIL::tally_energies() {
  double sum = 0;
  for (int k = 0; k < n_centers; ++k) {
    double mean = 0;
    for (int64_t member = 0; member < info.n_members; ++member) mean += energies[member * n_centers + k];
    mean *= energy_scale / double(info.n_members);
    sum += mean;
    if (eflag_atom) eatom[atoms[k]] += mean;
  }
  if (!std::isfinite(sum))
    error->one(FLERR,
               "Pair style neuralil: the energy is not finite. Usually the simulation has exploded; use a smaller time "
               "step, or look at the last frames before this step");
  if (eflag_global) eng_vdwl += sum;
}

void PairNeuralIL::tally_forces() {
  double sum = 0;
  for (std::size_t k = 0; k < atoms.size(); ++k)
    for (int axis = 0; axis < 3; ++axis) {
      atom->f[atoms[k]][axis] += energy_scale * forces[3 * k + axis];
      sum += forces[3 * k + axis];
    }
  if (!std::isfinite(sum))
    error->one(
        FLERR,
        "Pair style neuralil: forces are not finite. Usually the simulation has exploded; use a smaller time step");
}

// LAMMPS: minus dE/d(strain); six components xx yy zz xy xz yz, each pair with its centre; nine, xx yy zz xy xz yz yx
// zx zy with the first the vector's, each pair with its neighbour (Fan et al., Phys. Rev. B 92, 094301 (2015), eq. 20).
void PairNeuralIL::tally_virials() {
  static constexpr int order[9] = {0, 4, 8, 1, 2, 5, 3, 6, 7};
  const auto symmetric = [](const double* v, int i) {
    return i < 3 ? v[order[i]] : 0.5 * (v[order[i]] + v[order[i + 3]]);
  };
  if (vflag_global || vflag_atom)
    for (int k = 0; k < n_centers; ++k)
      for (int i = 0; i < 6; ++i) {
        const double value = -energy_scale * symmetric(&virials[9 * k], i);
        if (vflag_global) virial[i] += value;
        if (vflag_atom) vatom[atoms[k]][i] += value;
      }
  if (cvflag_atom)
    for (std::size_t k = 0; k < atoms.size(); ++k)
      for (int i = 0; i < 9; ++i) cvatom[atoms[k]][i] -= energy_scale * neighbor_virials[9 * k + order[i]];
}

/* ---------------------------------------------------------------- uncertainty */

PairNeuralIL::Field* PairNeuralIL::find(const std::string& name) {
  for (Field& field : fields)
    if (name == field.name) return &field;
  return nullptr;
}

// NAME_flag: set by fix pair at steps at which NAME is due.
void* PairNeuralIL::extract(const char* name, int& dim) {
  dim = 0;
  const std::string all = name, suffix = "_flag";
  if (all.size() <= suffix.size() || all.compare(all.size() - suffix.size(), suffix.size(), suffix) != 0)
    return nullptr;
  Field* field = find(all.substr(0, all.size() - suffix.size()));
  if (!field) return nullptr;
  field->has_trigger = true;
  return &field->is_due;
}

void* PairNeuralIL::extract_peratom(const char* name, int& n_columns) {
  Field* field = find(name);
  if (!field) return nullptr;
  if (info.n_members < 2)
    error->all(FLERR, "Pair style neuralil: {} needs a model of two members or more, and {} has one", name, file);
  if (field == &fields[FORCES_ERROR_BAR])
    check_status(neuralil_force_error_bars(model, 0, nullptr, nullptr, nullptr, nullptr));
  field->is_wanted = true;
  if (field->values.empty()) field->values.resize(std::max(atom->nmax, 1));
  n_columns = 0;
  return field->values.data();
}

void PairNeuralIL::compute_spreads() {
  for (Field& field : fields)
    if (field.is_needed()) field.values.assign(std::max(atom->nmax, 1), 0.0);
  if (fields[ENERGIES_STD].is_needed()) deviations_of_energies();
  if (fields[FORCES_STD].is_needed() || fields[FORCES_ERROR_BAR].is_needed()) deviations_of_forces();
}

void PairNeuralIL::deviations_of_energies() {
  const int64_t m = info.n_members;
  for (int k = 0; k < n_centers; ++k) {
    double mean = 0, square = 0;
    for (int64_t member = 0; member < m; ++member) mean += energies[member * n_centers + k] / double(m);
    for (int64_t member = 0; member < m; ++member) square += std::pow(energies[member * n_centers + k] - mean, 2);
    fields[ENERGIES_STD].values[atoms[k]] = energy_scale * std::sqrt(square / double(m - 1));
  }
}

// Members' forces come back from ghosts before any deviation is taken.
void PairNeuralIL::deviations_of_forces() {
  const int64_t m = info.n_members, n = int64_t(atoms.size());
  all_member_forces.assign(std::size_t(3 * m) * number.size(), 0.0);
  for (int64_t member = 0; member < m; ++member)
    for (int64_t k = 0; k < n; ++k)
      for (int axis = 0; axis < 3; ++axis)
        all_member_forces[3 * (m * atoms[k] + member) + axis] = member_forces[3 * (member * n + k) + axis];
  comm->reverse_comm(this);
  std::vector<double> spreads(n_centers), aleatoric(info.n_aleatoric ? n_centers : 0), bars(n_centers);
  for (int k = 0; k < n_centers; ++k) {
    const double* own = &all_member_forces[3 * m * atoms[k]];
    double square = 0;
    for (int axis = 0; axis < 3; ++axis) {
      double mean = 0;
      for (int64_t member = 0; member < m; ++member) mean += own[3 * member + axis] / double(m);
      for (int64_t member = 0; member < m; ++member) square += std::pow(own[3 * member + axis] - mean, 2);
    }
    spreads[k] = std::sqrt(square / double(m - 1));
    if (info.n_aleatoric) {
      double variance = 0;
      for (int64_t member = 0; member < m; ++member)
        variance += aleatoric_variances[info.n_aleatoric * (member * n_centers + k) + 1] / double(m);
      aleatoric[k] = std::sqrt(3 * variance);
    }
  }
  if (fields[FORCES_STD].is_needed())
    for (int k = 0; k < n_centers; ++k) fields[FORCES_STD].values[atoms[k]] = energy_scale * spreads[k];
  if (!fields[FORCES_ERROR_BAR].is_needed()) return;
  check_status(neuralil_force_error_bars(model, n_centers, types.data(), spreads.data(),
                                         info.n_aleatoric ? aleatoric.data() : nullptr, bars.data()));
  for (int k = 0; k < n_centers; ++k) fields[FORCES_ERROR_BAR].values[atoms[k]] = energy_scale * bars[k];
}

int PairNeuralIL::pack_reverse_comm(int n, int first, double* buffer) {
  const int size = 3 * int(info.n_members);
  std::copy_n(&all_member_forces[std::size_t(size) * first], std::size_t(size) * n, buffer);
  return size * n;
}

void PairNeuralIL::unpack_reverse_comm(int n, int* indices, double* buffer) {
  const int size = 3 * int(info.n_members);
  for (int k = 0; k < n; ++k)
    for (int i = 0; i < size; ++i) all_member_forces[std::size_t(size) * indices[k] + i] += buffer[size * k + i];
}

double PairNeuralIL::memory_usage() {
  double bytes =
      Pair::memory_usage() + double((centers.capacity() + neighbors.capacity() + types.capacity()) * sizeof(int32_t));
  for (const auto* array : {&vectors, &energies, &aleatoric_variances, &forces, &virials, &neighbor_virials,
                            &member_forces, &all_member_forces})
    bytes += double(array->capacity() * sizeof(double));
  return bytes + double((atoms.capacity() + number.capacity()) * sizeof(int));
}

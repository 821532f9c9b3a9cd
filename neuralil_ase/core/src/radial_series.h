// The radial functions as Chebyshev series, fitted when a model is loaded; model/radial_basis.py is the reference.

#pragma once

#include <vector>

namespace neuralil {

// Coefficients (terms, radial functions) of g_nl / r^l = (1 - s)^3 sum_k C_k T_k(2s - 1), s = r^2 / r_cut^2, with the
// fewest terms whose errors are below `tolerance` times the largest value of each function.
std::vector<double> radial_series(int n_max, double r_cut, int radial_scaling, double tolerance);

}  // namespace neuralil

// What can go wrong; c_api.cpp turns it into a status and a message.

#pragma once

#include <stdexcept>

namespace neuralil {

struct BadFile : std::runtime_error {
  using runtime_error::runtime_error;
};
struct Unsupported : std::runtime_error {
  using runtime_error::runtime_error;
};
struct BadGraph : std::runtime_error {
  using runtime_error::runtime_error;
};

}  // namespace neuralil

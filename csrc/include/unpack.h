// The structs that Python packs, out of their bytes. For bindings, not for devices.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace snnfast {

template <class Args>
Args unpack(std::string_view bytes) {
  Args args;
  if (bytes.size() != sizeof args)
    throw std::invalid_argument("snnfast: expected " + std::to_string(sizeof args) +
                                " bytes of arguments, got " + std::to_string(bytes.size()));
  std::memcpy(&args, bytes.data(), sizeof args);
  return args;
}

}  // namespace snnfast

// The library of the CUDA operators, found at run time: schattor._C is linked to nothing of CUDA.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "../ops/cuda_facts.h"

namespace schattor::bindings {

// Asks the library at `path`, which torch has loaded, from now on.
void attach(const std::string& path);

// The kernel's name, and the bytes of workspace that it asks for.
std::pair<std::string, int64_t> chain_kernel(const SchattorChain& chain);

// None: as planned.
void force_chain_kernel(const std::optional<std::string>& kernel);

}  // namespace schattor::bindings

// The chain of chain_direction in bfloat16 on AMX tiles.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace schattor::cpu {

// Whether chain_direction_amx takes these arguments. It runs at Level::kAmx only.
bool amx_chain_applies(const ChainArgs& args);

// chain_direction: sums in float, everything stored in bfloat16. The same bits for any number of
// threads.
void chain_direction_amx(const ChainArgs& args, const Parallel& parallel);

// Bytes of workspace that it allocates, all threads together.
int64_t amx_workspace_bytes(const ChainArgs& args, int threads);

}  // namespace schattor::cpu

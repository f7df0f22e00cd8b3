// device_facts: asked of the driver once per device, since every call of an engine wants them.
#include <mutex>

#include "device.h"
#include "launch.h"

namespace schattor::cuda {
namespace {

struct Known {
  std::once_flag asked;
  DeviceFacts facts{};
  cudaError_t error = cudaSuccess;
};
constexpr int kMostDevices = 64;
Known known[kMostDevices];

cudaError_t ask(int device, DeviceFacts* facts) {
  int major = 0, minor = 0;
  const struct {
    int* value;
    cudaDeviceAttr attribute;
  } questions[] = {{&major, cudaDevAttrComputeCapabilityMajor},
                   {&minor, cudaDevAttrComputeCapabilityMinor},
                   {&facts->multiprocessors, cudaDevAttrMultiProcessorCount},
                   {&facts->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin}};
  for (const auto& question : questions) {
    const cudaError_t error = dev::attribute(question.value, question.attribute, device);
    if (error != cudaSuccess) return error;
  }
  facts->arch = 10 * major + minor;
  return cudaSuccess;
}

}  // namespace

cudaError_t device_facts(DeviceFacts* facts) {
  int device = 0;
  const cudaError_t error = dev::current_device(&device);
  if (error != cudaSuccess) return error;
  if (device >= kMostDevices) return ask(device, facts);
  Known& entry = known[device];
  std::call_once(entry.asked, [&] { entry.error = ask(device, &entry.facts); });
  *facts = entry.facts;
  return entry.error;
}

}  // namespace schattor::cuda

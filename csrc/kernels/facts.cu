// device_facts: asked of the driver until it answers, once per device, since every call of an
// engine wants them.
#include <mutex>

#include "device.h"
#include "launch.h"

namespace schattor::cuda {
namespace {

constexpr int kMostDevices = 64;
std::mutex asking;
DeviceFacts known[kMostDevices];  // arch 0: not asked yet

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
  const std::lock_guard<std::mutex> lock(asking);
  if (known[device].arch == 0) {
    const cudaError_t failed = ask(device, &known[device]);
    if (failed != cudaSuccess) return failed;
  }
  *facts = known[device];
  return cudaSuccess;
}

}  // namespace schattor::cuda

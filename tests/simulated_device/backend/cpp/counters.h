// Switches, and counters of what happens on the devices. The name of each wait of the host begins
// with SYNC.
#pragma once
#include <torch/extension.h>
#include <atomic>
#include <map>
#include <mutex>
#include <string>

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::IValue;

static constexpr auto kSimulated = DeviceType::PrivateUse1;
static constexpr int kDeviceCount = 2;
static constexpr size_t kSpan = size_t(16) << 30;
static std::recursive_mutex state_mutex;
static std::map<std::string, int64_t> counts;
static std::atomic<bool> counting{false}, refuses_mixed_devices{true}, refuses_float64{false};
static std::atomic<bool> refuses_waits{false};  // while a graph is captured

static void count_event(const std::string& k) {
  TORCH_CHECK(!refuses_waits || (k.rfind("SYNC", 0) && k != "H2D copy"),
              "operation not permitted when stream is capturing (", k, ")");
  if (counting) {
    std::lock_guard<std::recursive_mutex> g(state_mutex);
    counts[k]++;
  }
}

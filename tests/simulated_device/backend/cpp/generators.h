// One random generator for each device; each draws from a CPU generator of its own.
#pragma once
#include <ATen/CPUGeneratorImpl.h>
#include "counters.h"

struct SimulatedGenerator final : at::CPUGeneratorImpl {
  at::Generator inner;

  explicit SimulatedGenerator(DeviceIndex i) {
    device_ = Device(kSimulated, i);
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
    inner = at::detail::createCPUGenerator();
  }

  void set_current_seed(uint64_t s) override { inner.set_current_seed(s); }

  uint64_t current_seed() const override { return inner.current_seed(); }

  uint64_t seed() override { return inner.seed(); }

  void set_state(const c10::TensorImpl& s) override {
    count_event("RNG set");
    inner.unsafeGetGeneratorImpl()->set_state(s);
  }

  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    count_event("RNG get");
    return inner.unsafeGetGeneratorImpl()->get_state();
  }
};

static at::Generator& default_generator(int i) {
  static std::vector<at::Generator> g = [] {
    std::vector<at::Generator> v;
    for (int k = 0; k < kDeviceCount; k++)
      v.push_back(at::make_generator<SimulatedGenerator>(k));
    return v;
  }();
  return g.at(i);
}

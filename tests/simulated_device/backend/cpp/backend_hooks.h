// What torch asks of a backend: its devices, generators, pinned memory, and how to resize memory.
#pragma once
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include "generators.h"
#include "memory.h"

struct BackendHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }

  bool isAvailable() const override { return true; }

  bool hasPrimaryContext(DeviceIndex) const override { return true; }

  DeviceIndex deviceCount() const override { return kDeviceCount; }

  DeviceIndex getCurrentDevice() const override { return current_device; }

  void setCurrentDevice(DeviceIndex i) const override { current_device = i; }

  DeviceIndex exchangeDevice(DeviceIndex i) const override {
    auto o = current_device;
    current_device = i;
    return o;
  }

  DeviceIndex maybeExchangeDevice(DeviceIndex i) const override {
    auto o = current_device;
    if (i >= 0)
      current_device = i;
    return o;
  }

  const at::Generator& getDefaultGenerator(DeviceIndex i) const override { return default_generator(i < 0 ? current_device : i); }

  at::Generator getNewGenerator(DeviceIndex i) const override {
    return at::make_generator<SimulatedGenerator>(i < 0 ? current_device : i);
  }

  Device getDeviceFromPtr(void* p) const override {
    for (int i = 0; i < kDeviceCount; i++)
      if (memories[i].pointers && (char*)p >= memories[i].pointers && (char*)p < memories[i].pointers + kSpan)
        return Device(kSimulated, i);
    TORCH_CHECK(false);
  }

  bool isPinnedPtr(const void*) const override { return false; }

  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }

  void resizePrivateUse1Bytes(const c10::Storage& s, size_t n) const override {
    int i = s.device().index();
    auto p = allocate_on(n, i);
    size_t m = std::min(n, s.nbytes());
    if (m)
      memcpy(kernel_address(p.get()), kernel_address(s.data()), m);
    s.set_data_ptr_noswap(std::move(p));
    s.unsafeGetStorageImpl()->set_nbytes(n);
  }
};

// The current device and stream, waits and events: what torch.Stream, torch.Event and
// torch.accelerator ask of a backend.
#pragma once
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include "streams.h"

struct DeviceGuard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return kSimulated; }

  Device exchangeDevice(Device d) const override {
    Device o(kSimulated, current_device);
    current_device = d.index();
    return o;
  }

  Device getDevice() const override { return Device(kSimulated, current_device); }

  void setDevice(Device d) const override {
    TORCH_CHECK(d.index() < kDeviceCount, "no such simulated device");
    if (d.index() >= 0)
      current_device = d.index();
  }

  void uncheckedSetDevice(Device d) const noexcept override {
    if (d.index() >= 0)
      current_device = d.index();
  }

  c10::Stream getStream(Device d) const override {
    int i = d.index() < 0 ? current_device : d.index();
    return c10::Stream(c10::Stream::UNSAFE, Device(kSimulated, i), current_stream[i]);
  }

  c10::Stream getDefaultStream(Device d) const override {
    int i = d.index() < 0 ? current_device : d.index();
    return c10::Stream(c10::Stream::UNSAFE, Device(kSimulated, i), 0);
  }

  c10::Stream getNewStream(Device d, int) const override {
    int i = d.index() < 0 ? current_device : d.index();
    return c10::Stream(c10::Stream::UNSAFE, Device(kSimulated, i), next_stream_id++);
  }

  c10::Stream getStreamFromGlobalPool(Device d, bool) const override { return getNewStream(d, 0); }

  c10::Stream exchangeStream(c10::Stream s) const override {
    int i = s.device_index();
    auto o = current_stream[i];
    current_stream[i] = s.id();
    return c10::Stream(c10::Stream::UNSAFE, Device(kSimulated, i), o);
  }

  DeviceIndex deviceCount() const noexcept override { return kDeviceCount; }

  bool queryStream(const c10::Stream& s) const override { return stream_queue(s.device_index(), s.id()).q.empty(); }

  void synchronizeStream(const c10::Stream& s) const override {
    count_event("SYNC stream");
    drain(s.device_index(), s.id());
  }

  void synchronizeDevice(const DeviceIndex i) const override {
    count_event("SYNC device");
    drain_all(i < 0 ? current_device : i);
  }

  void record(void** e, const c10::Stream& s, const DeviceIndex, const c10::EventFlag) const override {
    std::lock_guard<std::recursive_mutex> g(state_mutex);
    if (!*e)
      *e = new StreamEvent;
    *(StreamEvent*)*e = StreamEvent{s.device_index(), s.id()};
  }

  void block(void* e, const c10::Stream&) const override {
    if (e) {
      auto* v = (StreamEvent*)e;
      drain(v->d, v->id);
    }
  }

  bool queryEvent(void* e) const override {
    auto* v = (StreamEvent*)e;
    return !v || stream_queue(v->d, v->id).q.empty();
  }

  void synchronizeEvent(void* e) const override {
    count_event("SYNC event");
    auto* v = (StreamEvent*)e;
    if (v)
      drain(v->d, v->id);
  }

  void destroyEvent(void* e, const DeviceIndex) const noexcept override { delete (StreamEvent*)e; }

  double elapsedTime(void*, void*, const DeviceIndex) const override { return 0; }

  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override { count_event("record_stream"); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, DeviceGuard)

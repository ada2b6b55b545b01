// Register the simulated device with torch, and define the Python module that device.py wraps.
#include <Python.h>
#include <torch/extension.h>
#include "device_guard.h"
#include "fallback.h"

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty_memory_format);
  m.impl("empty_strided", &empty_strided_options);
  m.impl("as_strided", &as_strided_);
  m.impl("view", &view_);
  m.impl("_reshape_alias", &reshape_alias_);
  m.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("resize_", &resize_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_resize);
  m.impl("_local_scalar_dense", &item);
  m.impl("set_.source_Storage_storage_offset", &set_storage_with_offset);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("set_", &set_empty);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

static BackendHooks hooks;

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("device_count", [] { return kDeviceCount; });
  m.def("current_device", [] { return (int)current_device; });
  m.def("set_device", [](int i) { current_device = i; });
  m.def("get_rng_state", [](int i) { return default_generator(i < 0 ? current_device : i).get_state(); });
  m.def("set_rng_state", [](at::Tensor s, int i) { default_generator(i < 0 ? current_device : i).set_state(s); });
  m.def("manual_seed", [](uint64_t s, int i) { default_generator(i < 0 ? current_device : i).set_current_seed(s); });
  m.def("count", [](bool on) {
    counting = on;
    if (on)
      counts.clear();
  });
  m.def("counts", [] { return counts; });
  m.def("strict", [](bool on) { refuses_mixed_devices = on; });
  m.def("refuse_waits", [](bool on) { refuses_waits = on; });
  m.def("no64", [](bool on) { refuses_float64 = on; });
  m.def("limit", [](int i, int64_t n) { memory_of(i).limit = n; });
  m.def("stats", [](int i) {
    DeviceMemory& d = memory_of(i);
    return std::map<std::string, int64_t>{
        {"allocated", d.allocated}, {"reserved", d.reserved}, {"peak", d.peak}, {"limit", d.limit}};
  });
  m.def("reset_peak", [](int i) { memory_of(i).peak = memory_of(i).allocated; });
  m.def("hold", [](int d, int64_t id, bool on) {
    stream_queue(d, id).held = on;
    if (!on)
      drain(d, id);
  });
  m.def("pending", [](int d, int64_t id) { return stream_queue(d, id).q.size(); });
  m.def("flush", [](int d, int64_t id) { drain(d, id); });
  m.def("synchronize", [](int i) {
    count_event("SYNC device");
    drain_all(i < 0 ? current_device : i);
  });
}

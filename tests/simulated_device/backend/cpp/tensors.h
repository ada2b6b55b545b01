// Making tensors, viewing them, and their aliases that CPU kernels take.
#pragma once
#include <ATen/InferSize.h>
#include <ATen/native/Resize.h>
#include "backend_hooks.h"

static Tensor make(c10::Storage st, caffe2::TypeMeta t, c10::SymIntArrayRef, c10::IntArrayRef sz,
                   c10::IntArrayRef sd, int64_t off, c10::DispatchKeySet ks) {
  auto r = at::detail::make_tensor<c10::TensorImpl>(std::move(st), ks, t);
  r.unsafeGetTensorImpl()->set_sizes_and_strides(sz, sd, off);
  return r;
}

static Tensor cpu_alias(const Tensor& t) {
  auto st = t.storage();
  size_t n = st.nbytes();
  c10::Storage cs(c10::Storage::use_byte_size_t(), n,
                  c10::DataPtr(n ? kernel_address(st.data()) : nullptr, Device(DeviceType::CPU)), nullptr, false);
  return make(cs, t.dtype(), {}, t.sizes(), t.strides(), t.storage_offset(),
              c10::DispatchKeySet(c10::DispatchKey::CPU));
}

static Tensor empty_strided_(c10::IntArrayRef sz, c10::IntArrayRef sd, caffe2::TypeMeta t, int i) {
  if (refuses_float64 && (t == caffe2::TypeMeta::Make<double>()))
    C10_THROW_ERROR(
        TypeError,
        "Cannot convert a simulated Tensor to float64 dtype as the framework doesn't support float64");
  TORCH_CHECK(i < kDeviceCount, "simulated device ", i, " is not there");
  size_t n = 0;
  bool zero = false;
  for (auto s : sz)
    zero |= s == 0;
  if (!zero) {
    n = 1;
    for (size_t k = 0; k < sz.size(); k++)
      n += (sz[k] - 1) * sd[k];
    n *= t.itemsize();
  }
  c10::Storage st(c10::Storage::use_byte_size_t(), n, allocate_on(n, i), &allocator, true);
  return make(st, t, {}, sz, sd, 0, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1));
}

static std::vector<int64_t> contiguous(c10::IntArrayRef sz) {
  std::vector<int64_t> s(sz.size());
  int64_t k = 1;
  for (int i = (int)sz.size() - 1; i >= 0; i--) {
    s[i] = k;
    k *= std::max<int64_t>(sz[i], 1);
  }
  return s;
}

static int index_of(std::optional<Device> d) { return !d || d->index() < 0 ? current_device : d->index(); }

static Tensor empty_memory_format(c10::IntArrayRef sz, std::optional<at::ScalarType> dt, std::optional<at::Layout>,
                       std::optional<Device> d, std::optional<bool> pin, std::optional<at::MemoryFormat> mf) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  auto m = mf.value_or(at::MemoryFormat::Contiguous);
  std::vector<int64_t> st = contiguous(sz);
  if (m == at::MemoryFormat::ChannelsLast)
    st = c10::get_channels_last_strides_2d(sz);
  else if (m == at::MemoryFormat::ChannelsLast3d)
    st = c10::get_channels_last_strides_3d(sz);
  return empty_strided_(
      sz, st, c10::scalarTypeToTypeMeta(dt.value_or(at::typeMetaToScalarType(at::get_default_dtype()))),
      index_of(d));
}

static Tensor empty_strided_options(c10::IntArrayRef sz, c10::IntArrayRef sd, std::optional<at::ScalarType> dt,
                       std::optional<at::Layout>, std::optional<Device> d, std::optional<bool>) {
  return empty_strided_(
      sz, sd, c10::scalarTypeToTypeMeta(dt.value_or(at::typeMetaToScalarType(at::get_default_dtype()))),
      index_of(d));
}

static Tensor alias(const Tensor& s, c10::IntArrayRef sz, c10::IntArrayRef sd, int64_t off) {
  return make(s.storage(), s.dtype(), {}, sz, sd, off,
              s.key_set() & c10::DispatchKeySet({c10::DispatchKey::PrivateUse1, c10::DispatchKey::Conjugate,
                                                 c10::DispatchKey::Negative}));
}

static Tensor as_strided_(const Tensor& s, c10::IntArrayRef sz, c10::IntArrayRef sd,
                          std::optional<int64_t> off) {
  return alias(s, sz, sd, off.value_or(s.storage_offset()));
}

static Tensor view_(const Tensor& s, c10::IntArrayRef sz) {
  auto in = at::infer_size_dv(sz, s.numel());
  auto st = at::detail::computeStride(s.sizes(), s.strides(), in);
  TORCH_CHECK(st.has_value(), "view size is not compatible with input tensor's size and stride");
  return alias(s, in, *st, s.storage_offset());
}

static Tensor reshape_alias_(const Tensor& s, c10::IntArrayRef sz, c10::IntArrayRef sd) {
  return alias(s, sz, sd, s.storage_offset());
}

static const Tensor& resize_(const Tensor& s, c10::IntArrayRef sz, std::optional<at::MemoryFormat>) {
  int64_t n = 1;
  for (auto k : sz)
    n *= k;
  size_t bytes = (n + s.storage_offset()) * s.itemsize();
  if (s.storage().nbytes() < bytes)
    BackendHooks().resizePrivateUse1Bytes(s.storage(), bytes);
  s.unsafeGetTensorImpl()->set_sizes_contiguous(sz);
  return s;
}

static Tensor& set_storage_with_offset(Tensor& r, c10::Storage st, int64_t off, c10::IntArrayRef sz,
                           c10::IntArrayRef sd) {
  std::vector<int64_t> s = sd.empty() && !sz.empty() ? contiguous(sz) : sd.vec();
  r.unsafeGetTensorImpl()->set_storage_keep_dtype(st);
  r.unsafeGetTensorImpl()->set_sizes_and_strides(sz, s, off);
  return r;
}

static Tensor& set_storage(Tensor& r, c10::Storage st) {
  int64_t n = st.nbytes() / r.itemsize();
  return set_storage_with_offset(r, st, 0, {n}, {});
}

static Tensor& set_tensor(Tensor& r, const Tensor& o) {
  return set_storage_with_offset(r, o.storage(), o.storage_offset(), o.sizes(), o.strides());
}

static Tensor& set_empty(Tensor& r) {
  c10::Storage st(c10::Storage::use_byte_size_t(), 0, allocate_on(0, r.device().index()), &allocator, true);
  return set_storage_with_offset(r, st, 0, {0}, {});
}

// All other operators run as CPU kernels on the device's memory.
//
// Arguments become CPU aliases; results become device tensors again: an argument itself, a view of
// an argument's memory, or a copy in new memory. Tensors of two devices raise, as on CUDA. On a held
// stream, what writes in place is deferred. An operator that returns a bool or a number is a wait of
// the host.
#pragma once
#include <optional>
#include <set>
#include "copies.h"

// One call of an operator, from the device's arguments to the device's results.
class Call {
 public:
  explicit Call(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), stack_(stack), schema_(op.schema()), name_(schema_.name()) {
    const auto& overload = schema_.overload_name();
    count_event("OP " + name_.substr(kNamespace) + (overload.empty() ? "" : "." + overload));
  }

  void run() {
    take_arguments();
    refuse_mixed_devices();
    refuse_float64();
    use_inner_generators();
    const auto kernel = choose_kernel();
    if (can_be_deferred() && stream_queue(device_, current_stream[device_]).held) {
      defer(kernel);
      return;
    }
    drain(device_, current_stream[device_]);
    torch::jit::Stack results(converted_.begin(), converted_.end());
    {
      c10::impl::ExcludeDispatchKeyGuard no_autograd(c10::autograd_dispatch_keyset);
      kernel.callBoxed(&results);
    }
    fill_out_arguments();
    return_results(results);
  }

 private:
  static constexpr size_t kNamespace = 6;  // the length of "aten::"

  struct OutArgument {
    Tensor on_device, on_host;
  };

  size_t count() const { return schema_.arguments().size(); }

  bool is_written(size_t i) const {
    const auto* alias = schema_.arguments()[i].alias_info();
    return alias && alias->isWrite();
  }

  void take_arguments() {
    arguments_.assign(stack_->end() - count(), stack_->end());
    for (size_t i = 0; i < count(); i++) {
      mutates_ |= is_written(i);
      converted_.push_back(convert(arguments_[i], is_written(i)));
    }
    if (asked_)
      device_ = index_of(asked_);
    if (device_ < 0)
      device_ = current_device;
  }

  IValue convert(const IValue& value, bool written) {
    if (value.isTensor())
      return alias_on_host(value.toTensor(), written);
    if (value.isTensorList()) {
      std::vector<Tensor> list;
      for (const Tensor& each : value.toTensorVector())
        list.push_back(alias_on_host(each, written));
      return c10::List<Tensor>(list);
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (auto&& each : value.toOptionalTensorVector())
        list.push_back(each ? std::optional<Tensor>(alias_on_host(*each, written)) : std::nullopt);
      return list;
    }
    if (value.isDevice() && value.toDevice().type() == kSimulated) {
      asked_ = value.toDevice();
      return Device(DeviceType::CPU);
    }
    return value;
  }

  // An `out=` that has no memory yet gets some of the host's until the kernel has run.
  Tensor alias_on_host(const Tensor& tensor, bool written) {
    if (!tensor.defined())
      return tensor;
    if (tensor.device().type() != kSimulated) {
      cpu_tensor_beside_ |= tensor.dim() > 0;
      return tensor;
    }
    const int index = tensor.device().index();
    devices_.insert(index);
    if (device_ < 0)
      device_ = index;
    kept_.push_back(tensor);
    Tensor alias;
    if (written && tensor.numel() == 0 && tensor.storage().nbytes() == 0) {
      alias = at::empty(tensor.sizes(), at::TensorOptions().dtype(tensor.dtype()));
      out_arguments_.push_back({tensor, alias});
    } else {
      alias = cpu_alias(tensor);
    }
    if (tensor.storage().data())
      by_storage_[kernel_address(tensor.storage().data())] = tensor;
    by_alias_[alias.unsafeGetTensorImpl()] = tensor;
    return alias;
  }

  // Indices may be on the CPU, as on CUDA.
  void refuse_mixed_devices() const {
    if (!refuses_mixed_devices)
      return;
    TORCH_CHECK(devices_.size() <= 1,
                "Expected all tensors to be on the same device, but found at least two devices (", name_, ")");
    const bool indexes = name_.find("index") != std::string::npos;
    TORCH_CHECK(!cpu_tensor_beside_ || kept_.empty() || indexes,
                "Expected all tensors to be on the same device, but found at least two devices, "
                "simdev and cpu! (",
                name_, ")");
  }

  void refuse_float64() const {
    if (!refuses_float64)
      return;
    for (size_t i = 0; i < count(); i++) {
      const bool is_dtype = schema_.arguments()[i].name() == "dtype" && converted_[i].isInt();
      if (is_dtype && converted_[i].toInt() == (int)at::ScalarType::Double)
        C10_THROW_ERROR(TypeError, "simulated: no float64");
    }
  }

  // CPU kernels draw from the CPU generator inside of a device's generator.
  void use_inner_generators() {
    for (size_t i = 0; i < count(); i++) {
      if (schema_.arguments()[i].type()->str().find("Generator") == std::string::npos)
        continue;
      auto generator = arguments_[i].isNone() ? default_generator(device_) : arguments_[i].toGenerator();
      if (generator.device().type() == kSimulated)
        converted_[i] = static_cast<SimulatedGenerator*>(generator.unsafeGetGeneratorImpl())->inner;
    }
  }

  // torch calls these two names for backends that have no convolution of their own.
  c10::OperatorHandle choose_kernel() {
    auto& dispatcher = c10::Dispatcher::singleton();
    if (name_ == "aten::convolution_overrideable")
      return dispatcher.findSchemaOrThrow("aten::convolution", "");
    if (name_ == "aten::convolution_backward_overrideable") {
      const auto weight = converted_[2].toTensor();
      const bool transposed = converted_[6].toBool();
      const int64_t channels = transposed ? weight.size(1) * converted_[8].toInt() : weight.size(0);
      converted_.insert(converted_.begin() + 3, IValue(std::vector<int64_t>{channels}));
      return dispatcher.findSchemaOrThrow("aten::convolution_backward", "");
    }
    return op_;
  }

  // What returns nothing but the tensor that it wrote to.
  bool can_be_deferred() const {
    const auto& returns = schema_.returns();
    const bool returns_what_it_wrote =
        returns.empty() ||
        (returns.size() == 1 && returns[0].alias_info() && returns[0].alias_info()->isWrite());
    return mutates_ && returns_what_it_wrote && out_arguments_.empty();
  }

  void defer(const c10::OperatorHandle& kernel) {
    count_event("DEFERRED " + name_);
    // Aliases own no memory: `kept` holds it.
    stream_queue(device_, current_stream[device_]).q.push_back([kernel, args = converted_, kept = kept_] {
      torch::jit::Stack stack(args.begin(), args.end());
      kernel.callBoxed(&stack);
    });
    IValue written;
    for (size_t i = 0; i < count(); i++)
      if (is_written(i))
        written = arguments_[i];
    torch::jit::drop(*stack_, count());
    if (!schema_.returns().empty())
      stack_->push_back(written);
  }

  void fill_out_arguments() const {
    for (auto& each : out_arguments_)
      if (each.on_host.numel()) {
        each.on_device.resize_(each.on_host.sizes());
        cpu_alias(each.on_device).copy_(each.on_host);
      }
  }

  void return_results(const torch::jit::Stack& results) {
    torch::jit::drop(*stack_, count());
    for (auto& value : results) {
      if (value.isTensor()) {
        stack_->push_back(back_on_device(value.toTensor()));
      } else if (value.isTensorList()) {
        std::vector<Tensor> list;
        for (const Tensor& each : value.toTensorVector())
          list.push_back(back_on_device(each));
        stack_->push_back(c10::List<Tensor>(list));
      } else {
        if (value.isBool() || value.isScalar())
          count_event("SYNC returns scalar: " + name_.substr(kNamespace));
        stack_->push_back(value);
      }
    }
  }

  Tensor back_on_device(const Tensor& result) const {
    if (!result.defined() || result.device().type() != DeviceType::CPU)
      return result;
    if (auto argument = by_alias_.find(result.unsafeGetTensorImpl()); argument != by_alias_.end())
      return argument->second;
    if (auto base = by_storage_.find((void*)result.storage().data());
        result.storage().data() && base != by_storage_.end())
      return make(base->second.storage(), result.dtype(), {}, result.sizes(), result.strides(),
                  result.storage_offset(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1));
    auto copy = empty_strided_(result.sizes(), result.strides(), result.dtype(), device_);
    if (result.numel()) {
      const char* values = (char*)result.storage().data() + result.storage_offset() * result.itemsize();
      memcpy(kernel_address(copy.storage().data()), values, copy.storage().nbytes());
    }
    return copy;
  }

  const c10::OperatorHandle& op_;
  torch::jit::Stack* stack_;
  const c10::FunctionSchema& schema_;
  std::string name_;
  std::vector<IValue> arguments_, converted_;
  std::vector<Tensor> kept_;
  std::vector<OutArgument> out_arguments_;
  std::map<void*, Tensor> by_storage_;
  std::map<c10::TensorImpl*, Tensor> by_alias_;
  std::set<int> devices_;
  std::optional<Device> asked_;
  int device_ = -1;
  bool mutates_ = false, cpu_tensor_beside_ = false;
};

static void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) { Call(op, stack).run(); }

// The memory of each device, and its allocator.
//
// A device's memory is a file in memory that is mapped twice. Tensors point into `pointers`, which
// nobody may touch, so that a host that reads device memory ends in SIGSEGV. Kernels use `bytes`,
// the other mapping. As CUDA's caching allocator does, the allocator keeps a freed block for the
// next request of its size. It fills each block with 0xCD, so that no value is zero by luck, and
// raises torch.OutOfMemoryError over the limit.
#pragma once
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>
#include <vector>
#include "counters.h"

struct DeviceMemory {
  char *pointers = nullptr, *bytes = nullptr;
  size_t top = 0;
  int64_t allocated = 0, reserved = 0, peak = 0, limit = int64_t(8) << 30;
  std::map<size_t, std::vector<char*>> freed;
  std::map<char*, size_t> live;
};

static DeviceMemory memories[kDeviceCount];

static DeviceMemory& memory_of(int i) {
  DeviceMemory& d = memories[i];
  if (!d.pointers) {
    int fd = memfd_create("simdev", 0);
    TORCH_CHECK(ftruncate(fd, kSpan) == 0);
    d.pointers = (char*)mmap(nullptr, kSpan, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    d.bytes = (char*)mmap(nullptr, kSpan, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    TORCH_CHECK(d.pointers != MAP_FAILED && d.bytes != MAP_FAILED);
    close(fd);
  }
  return d;
}

static thread_local DeviceIndex current_device = 0;

static void free_block(void* p) {
  std::lock_guard<std::recursive_mutex> g(state_mutex);
  for (auto& d : memories)
    if (d.pointers && (char*)p >= d.pointers && (char*)p < d.pointers + kSpan) {
      auto it = d.live.find((char*)p);
      if (it == d.live.end())
        return;
      d.allocated -= it->second;
      d.freed[it->second].push_back((char*)p);
      d.live.erase(it);
      return;
    }
}

static c10::DataPtr allocate_on(size_t n, int i) {
  std::lock_guard<std::recursive_mutex> g(state_mutex);
  if (n == 0)
    return c10::DataPtr(nullptr, Device(kSimulated, i));
  DeviceMemory& d = memory_of(i);
  size_t want = (n + 511) / 512 * 512;
  count_event("ALLOC dev" + std::to_string(i));
  if (counting)
    counts["ALLOCBYTES dev" + std::to_string(i)] += want;
  char* p = nullptr;
  auto& fl = d.freed[want];
  if (!fl.empty()) {
    p = fl.back();
    fl.pop_back();
  } else {
    if (d.allocated + (int64_t)want > d.limit || d.top + want > kSpan)
      C10_THROW_ERROR(OutOfMemoryError,
                      "simulated device out of memory. Tried to allocate " + std::to_string(n));
    p = d.pointers + d.top;
    d.top += want;
    d.reserved += want;
  }
  if (d.allocated + (int64_t)want > d.limit) {
    fl.push_back(p);
    C10_THROW_ERROR(OutOfMemoryError,
                    "simulated device out of memory. Tried to allocate " + std::to_string(n));
  }
  d.live[p] = want;
  d.allocated += want;
  d.peak = std::max(d.peak, d.allocated);
  memset(d.bytes + (p - d.pointers), 0xCD, want);  // fresh memory is never zeros
  return c10::DataPtr(p, p, &free_block, Device(kSimulated, i));
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override { return allocate_on(n, current_device); }

  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }

  void copy_data(void* d, const void* s, size_t n) const override;
};

static DeviceAllocator allocator;
REGISTER_ALLOCATOR(kSimulated, &allocator);

// The kernels' address of device memory.
static char* kernel_address(const void* p) {
  if (!p)
    return nullptr;
  for (auto& d : memories)
    if (d.pointers && (char*)p >= d.pointers && (char*)p < d.pointers + kSpan)
      return d.bytes + ((char*)p - d.pointers);
  TORCH_CHECK(false, "not device memory");
}

void DeviceAllocator::copy_data(void* d, const void* s, size_t n) const { memcpy(kernel_address(d), kernel_address(s), n); }

// Copies. One to the host waits for the device; one from the host or on the device can be deferred.
#pragma once
#include "streams.h"
#include "tensors.h"

static void on_stream(int d, std::function<void()> f) {
  std::lock_guard<std::recursive_mutex> g(state_mutex);
  StreamQueue& s = stream_queue(d, current_stream[d]);
  if (s.held) {
    count_event("DEFERRED");
    s.q.push_back(f);
  } else {
    f();
  }
}

static Tensor copy_from(const Tensor& self, const Tensor& dst, bool nb) {
  bool from = self.device().type() == kSimulated, to = dst.device().type() == kSimulated;
  if (from && !to) {
    count_event("SYNC D2H copy");
    if (counting)
      counts["D2H bytes"] += self.nbytes();
    int d = self.device().index();
    drain(d, current_stream[d]);
    dst.copy_(cpu_alias(self));
    return dst;
  }
  if (!from && to) {
    count_event("H2D copy");
    int d = dst.device().index();
    auto kept = self.clone();
    on_stream(d, [=] { cpu_alias(dst).copy_(kept); });
    return dst;
  }
  int d = dst.device().index();
  if (self.device() != dst.device()) {
    count_event("PEER copy");
    drain(self.device().index(), current_stream[self.device().index()]);
  } else
    count_event("D2D copy");
  on_stream(d, [=] { cpu_alias(dst).copy_(cpu_alias(self)); });
  return dst;
}

static Tensor copy_from_resize(const Tensor& s, const Tensor& d) {
  if (d.sizes() != s.sizes())
    d.resize_(s.sizes());
  return copy_from(s, d, false);
}

static at::Scalar item(const Tensor& t) {
  count_event("SYNC item");
  int d = t.device().index();
  drain(d, current_stream[d]);
  return cpu_alias(t).item();
}

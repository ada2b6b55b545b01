// Streams: what is issued on a stream that is held waits in its queue, as on a busy card, until
// somebody waits for the stream, or it is released or flushed. An event is a place in a queue.
#pragma once
#include <deque>
#include <functional>
#include <utility>
#include "memory.h"

struct StreamQueue {
  std::deque<std::function<void()>> q;
  bool held = false;
};

static std::map<std::pair<int, int64_t>, StreamQueue> stream_queues;
static int64_t next_stream_id = 1;
static thread_local int64_t current_stream[kDeviceCount] = {0, 0};

static StreamQueue& stream_queue(int d, int64_t id) { return stream_queues[{d, id}]; }

static void drain(int d, int64_t id) {
  std::lock_guard<std::recursive_mutex> g(state_mutex);
  StreamQueue& s = stream_queue(d, id);
  while (!s.q.empty()) {
    auto f = s.q.front();
    s.q.pop_front();
    f();
  }
}

static void drain_all(int d) {
  std::lock_guard<std::recursive_mutex> g(state_mutex);
  for (auto& kv : stream_queues)
    if (kv.first.first == d)
      drain(d, kv.first.second);
}

struct StreamEvent {
  int d;
  int64_t id;
};

// Boost's message_queue between two processes, as core/examples/bench_ring.rs moves bytes. One round, as `R case who value`.

#include <boost/interprocess/ipc/message_queue.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sched.h>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace ipc = boost::interprocess;

static const std::size_t CAPACITY = 4 << 20;
static const std::size_t TRIPS = 5000;

static double now_ns() {
  return static_cast<double>(std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1));
}

static void pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  sched_setaffinity(0, sizeof set, &set);
}

// A queue whose name is gone at once: a forked child has the mapping.
struct Queue {
  ipc::message_queue queue;

  Queue(const char *name, std::size_t len, std::size_t messages) : queue(ipc::create_only, name, messages, len) {
    ipc::message_queue::remove(name);
  }
};

static std::string name(const char *what) { return "offloop-bench-" + std::to_string(getpid()) + "-" + what; }

// The priority orders messages; all have one, so they stay in order.
static void send(ipc::message_queue &to, const std::vector<char> &record) { to.send(record.data(), record.size(), 0); }

static void receive(ipc::message_queue &from, std::vector<char> &out) {
  ipc::message_queue::size_type len;
  unsigned priority;
  from.receive(out.data(), out.size(), len, priority);
}

template <class Child, class Parent> static double between(Child child, Parent parent) {
  const pid_t pid = fork();
  if (pid == 0) {
    pin(1);
    alarm(60);
    child();
    _exit(0);
  }
  pin(0);
  const double took = parent();
  int status = 0;
  if (waitpid(pid, &status, 0) != pid || status != 0) std::exit(1);
  return took;
}

static double stream(std::size_t len, std::size_t count) {
  Queue there(name("there").c_str(), len, std::min<std::size_t>(CAPACITY / len, 4096)), done(name("done").c_str(), 1, 1);
  return between(
      [&] {
        std::vector<char> out(len), word(1);
        for (std::size_t i = 0; i < count; i++) receive(there.queue, out);
        send(done.queue, word);
      },
      [&] {
        std::vector<char> record(len, 7), word(1);
        const double from = now_ns();
        for (std::size_t i = 0; i < count; i++) send(there.queue, record);
        receive(done.queue, word);
        return (now_ns() - from) / static_cast<double>(count);
      });
}

static double trip() {
  Queue there(name("there").c_str(), 64, 64), back(name("back").c_str(), 64, 64);
  return between(
      [&] {
        std::vector<char> out(64);
        for (std::size_t i = 0; i < TRIPS; i++) {
          receive(there.queue, out);
          send(back.queue, out);
        }
      },
      [&] {
        std::vector<char> out(64, 7);
        std::vector<double> times(TRIPS);
        for (double &time : times) {
          const double from = now_ns();
          send(there.queue, out);
          receive(back.queue, out);
          time = now_ns() - from;
        }
        std::nth_element(times.begin(), times.begin() + TRIPS / 2, times.end());
        return times[TRIPS / 2];
      });
}

static void row(const char *name, double ns) { std::printf("R ring.%s Boost.message_queue %f\n", name, ns); }

int main() {
  alarm(60); // a peer that hangs ends this program
  const double small = stream(64, 300000), large = stream(64 << 10, 5000);
  // It neither publishes in batches nor lends memory.
  row("64_batch", small);
  row("64", small);
  row("1k_batch", stream(1 << 10, 200000));
  row("64k", large);
  row("64k_zero_copy", large);
  row("trip_asleep", trip());
  return 0;
}

/* Clusters under good and bad use. `abi member` is a worker of one that serves, `abi member broken` one that does not come up, `abi member talks` one
 * that adds 1 to each number that it hears, and doubles those that it is asked for, `abi member stalls` one whose loop stands still, and `says` where. */
#define _GNU_SOURCE
#include "check.h"
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- the worker's part: answers each connection with slot and generation ---- */

static atomic_int drained_calls;
static void on_drain(void *user) { atomic_fetch_add((atomic_int *)user, 1); }

static void on_message(offloop_channel *from, const offloop_incoming *in, void *user) {
  offloop_value *v = NULL;
  CHECK(user == &drained_calls);
  if (in->kind == OFFLOOP_INCOMING_REQUEST) {
    v = int_value(int_of(in->value) * 2);
    OK(offloop_channel_reply(from, in->id, 0, &v, NULL, 0, -1));
  } else if (in->fd_count == 1) {
    CHECK(write(in->fds[0], "seen", 4) == 4 && close(in->fds[0]) == 0);
  } else {
    v = int_value(int_of(in->value) + 1);
    OK(offloop_worker_send(&v, NULL, 0, -1));
  }
  offloop_value_free(in->value);
}
static int talks(uint32_t slot) {
  struct pollfd drain = {offloop_worker_drain_fd(), POLLIN, 0};
  offloop_channel *own = NULL;
  offloop_incoming in;
  offloop_value *v = int_value(slot * 100);
  OK(offloop_worker_send(&v, NULL, 0, 0));
  IS(offloop_worker_send(&v, NULL, 0, -1), INVALID);
  OK(offloop_worker_channel(&own));
  v = int_value(21);
  OK(offloop_channel_request(own, &v, NULL, 0, -1, &in));
  CHECK(in.failed == 0 && int_of(in.value) == 63);
  offloop_value_free(in.value);
  offloop_channel_free(own); /* ends nothing */
  IS(offloop_worker_on_message(NULL, NULL, NULL), INVALID);
  OK(offloop_worker_on_message(on_message, &drained_calls, NULL));
  IS(offloop_worker_on_message(on_message, &drained_calls, NULL), IN_USE);
  OK(offloop_worker_ready());
  do OK(offloop_worker_beat());
  while (poll(&drain, 1, 20) == 0);
  OK(offloop_worker_drained());
  return 0;
}

/* A worker whose runtime says where it stands, as no function of C does: it shows in the page that it shares with its supervisor (core/src/wire/supervisor.rs) that its native
 * thread lives, that its loop does not, and the answer to the first question. */
static void put(int page, const void *bytes, size_t len, off_t at) { CHECK(pwrite(page, bytes, len, at) == (ssize_t)len); }
static int says_where(const char *stack) {
  const uint32_t ready[2] = {2, 1 | 2 << 16}, hooked_told_len[3] = {1, 1, (uint32_t)strlen(stack)};
  uint64_t incarnation = 0, beat = 1;
  int page = -1, lifeline = -1;
  CHECK(sscanf(getenv("OFFLOOP_SUPERVISOR"), "%d,%d", &page, &lifeline) == 2);
  CHECK(pread(page, &incarnation, sizeof incarnation, 32) == sizeof incarnation);
  put(page, &incarnation, sizeof incarnation, 264);
  put(page, &beat, sizeof beat, 384);
  put(page, stack, strlen(stack), 4096);
  put(page, hooked_told_len, sizeof hooked_told_len, 644);
  put(page, ready, sizeof ready, 256);
  CHECK(send(lifeline, "", 1, 0) == 1);
  for (;; beat++) {
    put(page, &beat, sizeof beat, 512);
    usleep(10000);
  }
}

/* As a spare it says numbers before it waits. */
static int moves(uint32_t slot) {
  struct pollfd drain = {offloop_worker_drain_fd(), POLLIN, 0};
  for (int i = 0; slot >= 1024 && i < 40; i++) {
    offloop_value *v = int_value((int64_t)getpid() * 100 + i);
    OK(offloop_worker_send(&v, NULL, 0, -1));
  }
  OK(offloop_worker_ready());
  do OK(offloop_worker_beat());
  while (poll(&drain, 1, 20) == 0);
  OK(offloop_worker_drained());
  return 0;
}

int member_child(const char *how) {
  uint32_t slot = 0, generation = 0;
  offloop_counter *answers = NULL;
  char text[64];
  if (!strcmp(how, "says")) return says_where("in main (clusters.c)\nin w\xC3\xB6rk");
  OK(offloop_worker_slot(&slot));
  OK(offloop_worker_generation(&generation));
  if (!strcmp(how, "broken")) {
    OK(offloop_worker_fail("this version is broken"));
    return 1;
  }
  if (!strcmp(how, "talks")) return talks(slot);
  if (!strcmp(how, "stalls")) {
    OK(offloop_worker_ready());
    OK(offloop_worker_beat());
    for (;;) pause();
  }
  if (!strcmp(how, "moves")) return moves(slot);
  int passed = !strcmp(how, "passed");
  CHECK(offloop_worker_fd_count() == 1 && offloop_worker_fd(1) == -1 && offloop_worker_fd(0) == offloop_worker_fd(0));
  CHECK(passed ? offloop_worker_fd(0) > 3 : offloop_worker_fd(0) == 3);
  int fd = offloop_worker_fd(0), own = -1;
  if (!passed) {
    OK(offloop_worker_listen("127.0.0.1:0", &own)); /* the one that the cluster has bound */
    CHECK(own > 3 && close(own) == 0);
  }
  IS(offloop_worker_listen("nonsense", &own), INVALID);
  IS(offloop_worker_listen("fd:3", &own), INVALID); /* it would be one of the cluster's process */
  CHECK(says("worker asks for what no cluster has") && says("listen=fd:3"));
  /* nobody knows its port; at the shared socket a connection may wait by now */
  int quiet = passed ? fd : socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  CHECK(passed || listen(quiet, 1) == 0);
  IS(offloop_worker_accept(quiet, 0, &own), TIMEOUT);
  CHECK(passed || close(quiet) == 0);
  IS(offloop_worker_accept(-1, 0, &own), INVALID);
  IS(offloop_worker_accept(fd, 0, NULL), INVALID);
  OK(offloop_worker_on_drain(on_drain, &drained_calls, NULL));
  OK(offloop_counter_new(NULL, "answers", &answers));
  OK(offloop_worker_ready());
  int spare = slot >= 1024;
  for (;;) {
    struct pollfd polls[2] = {{spare ? offloop_worker_active_fd() : fd, POLLIN, 0}, {offloop_worker_drain_fd(), POLLIN, 0}};
    OK(offloop_worker_beat());
    poll(polls, 2, 20);
    if (polls[1].revents) break;
    if (spare && polls[0].revents) {
      OK(offloop_worker_slot(&slot));
      CHECK(slot < 1024);
      spare = 0;
    }
    snprintf(text, sizeof text, "%u %u", slot, generation);
    int connection = -1;
    if (offloop_worker_accept(fd, 0, &connection) != OFFLOOP_OK) continue;
    OK(offloop_counter_add(answers, 1, NULL));
    CHECK(write(connection, text, strlen(text)) > 0);
    close(connection);
    OK(offloop_worker_served(1));
    OK(offloop_worker_closed());
  }
  while (!atomic_load(&drained_calls)) usleep(1000);
  OK(offloop_worker_drained());
  return 0;
}

/* ---- the host's part ---- */

/* What waits for workers does nothing where the cluster calls. */
static offloop_cluster *_Atomic caller;
static atomic_int refused;
static void waits(void) {
  offloop_cluster *c = atomic_load(&caller);
  if (c == NULL) return;
  IS(offloop_cluster_start(c, -1), INVALID);
  IS(offloop_cluster_reload(c, NULL, -1, NULL), INVALID);
  IS(offloop_cluster_stop(c, 0), INVALID);
  atomic_fetch_add(&refused, 1);
}

static struct { atomic_int seen[16]; char text[256], stack[256]; atomic_int freed, worker, spare, killed; } heard;
static void hear(const offloop_cluster_event *event, void *user) {
  CHECK(user == &heard && event->struct_size == sizeof *event);
  if (event->kind == OFFLOOP_CLUSTER_EXIT && event->text) snprintf(heard.text, sizeof heard.text, "%s", event->text);
  if (event->stack) snprintf(heard.stack, sizeof heard.stack, "%d: %s", event->kind, event->stack);
  int has_cause = event->kind == OFFLOOP_CLUSTER_EXIT || event->kind == OFFLOOP_CLUSTER_DRAINING || event->kind == OFFLOOP_CLUSTER_UNRESPONSIVE;
  CHECK((event->cause != NULL) == has_cause);
  if (event->kind == OFFLOOP_CLUSTER_EXIT && !strcmp(event->cause, "killed")) atomic_store(&heard.killed, 1 + (int)event->slot);
  if (event->kind == OFFLOOP_CLUSTER_FORK) CHECK(event->pid > 0 && event->generation > 0);
  if (event->kind == OFFLOOP_CLUSTER_READY) atomic_store(&heard.worker, event->pid);
  CHECK((event->kind == OFFLOOP_CLUSTER_SPARE) <= (event->slot >= 1024));
  CHECK((event->kind == OFFLOOP_CLUSTER_ACTIVATED) <= (event->slot < 1024));
  if (event->kind == OFFLOOP_CLUSTER_SPARE) atomic_store(&heard.spare, event->pid);
  if (event->kind == OFFLOOP_CLUSTER_ACTIVATED) atomic_store(&heard.worker, event->pid);
  if (event->kind == OFFLOOP_CLUSTER_READY || event->kind == OFFLOOP_CLUSTER_LISTENING) waits();
  if (event->kind < 16) atomic_fetch_add(&heard.seen[event->kind], 1);
}
/* A worker that is found to stand still. */
static void stalls(offloop_cluster_options o, const char *const *command) {
  offloop_cluster *c = NULL;
  memset(&heard, 0, sizeof heard);
  o.command = command;
  o.workers = 1;
  o.on_event = hear;
  o.on_message = NULL;
  o.hang_timeout_ns = 400 * MS;
  OK(offloop_cluster_new(&o, &c));
  OK(offloop_cluster_start(c, -1));
  while (!atomic_load(&heard.seen[OFFLOOP_CLUSTER_UNRESPONSIVE])) usleep(1000);
  OK(offloop_cluster_stop(c, 0));
  offloop_cluster_free(c);
}
static void freed(void *user) { (void)user; atomic_fetch_add(&heard.freed, 1); }

/* ---- counters and rate limiters ---- */

static void own_counters(offloop_cluster *idle) {
  offloop_counter *c = NULL, *same = NULL;
  offloop_limiter *l = NULL;
  offloop_limit limit = OFFLOOP_LIMIT_INIT;
  offloop_taken taken = OFFLOOP_TAKEN_INIT;
  int64_t n = 0;
  IS(offloop_counter_new(NULL, "", &c), INVALID);
  IS(offloop_counter_new(NULL, NULL, &c), INVALID);
  IS(offloop_counter_new(NULL, "own", NULL), INVALID);
  IS(offloop_counter_new(FORGED, "own", &c), INVALID);
  IS(offloop_counter_new(idle, "own", &c), CLOSED);
  OK(offloop_counter_new(NULL, "own", &c));
  OK(offloop_counter_new(NULL, "own", &same));
  OK(offloop_counter_add(c, 5, &n));
  CHECK(n == 5);
  OK(offloop_counter_add(same, -7, &n));
  CHECK(n == -2);
  OK(offloop_counter_set(c, 40, &n));
  CHECK(n == -2);
  OK(offloop_counter_add(same, 2, NULL));
  OK(offloop_counter_add(c, 0, &n));
  CHECK(n == 42);
  offloop_counter_free(c);
  offloop_counter_free(same);
  offloop_counter_free(NULL);
  IS(offloop_counter_add(c, 1, NULL), INVALID);

  IS(offloop_limiter_new(NULL, "own", &limit, &l), INVALID);
  CHECK(says("option=rate, value=0"));
  limit.rate = 2.5;
  OK(offloop_limiter_new(NULL, "own", &limit, &l));
  OK(offloop_limiter_take(l, "key", 3, 2, &taken));
  CHECK(taken.allowed == 1 && taken.remaining == 1 && taken.retry_after_ns == 0);
  OK(offloop_limiter_take(l, "key", 3, 3, &taken));
  CHECK(taken.allowed == 0 && taken.retry_after_ns > 0 && taken.retry_after_ns <= 800 * MS);
  OK(offloop_limiter_take(l, NULL, 0, 3, &taken));
  CHECK(taken.allowed == 1 && taken.remaining == 0);
  IS(offloop_limiter_take(l, "key", 3, 4, &taken), INVALID);
  CHECK(says("cost=4, burst=3"));
  limit.burst = 9;
  IS(offloop_limiter_new(NULL, "own", &limit, &l), INVALID);
  CHECK(says("burst 3") && says("burst 9"));
  offloop_limiter_free(l);
  offloop_limiter_free(NULL);
  IS(offloop_limiter_take(l, "key", 3, 1, &taken), INVALID);
}

/* ---- messages ---- */

static struct { atomic_int count, sum, freed; offloop_channel *_Atomic from; } said;
static void hear_message(uint32_t slot, uint32_t generation, offloop_channel *from, const offloop_incoming *in, void *user) {
  int64_t n = int_of(in->value);
  CHECK(user == &said && slot < 2 && generation == 1);
  waits();
  if (in->kind == OFFLOOP_INCOMING_REQUEST) {
    offloop_value *v = int_value(n * 3);
    OK(offloop_channel_reply(from, in->id, 0, &v, NULL, 0, -1));
  } else {
    if (slot == 0) atomic_store(&said.from, from);
    atomic_fetch_add(&said.sum, (int)n);
    atomic_fetch_add(&said.count, 1);
  }
  offloop_value_free(in->value);
}
static void said_freed(void *user) { CHECK(user == &said); atomic_fetch_add(&said.freed, 1); }
static int heard_sum(int count) {
  while (atomic_load(&said.count) < count) usleep(1000);
  return atomic_load(&said.sum);
}

static void messages(offloop_cluster_options o) {
  offloop_cluster *c = NULL;
  offloop_channel *to = NULL;
  offloop_incoming in;
  offloop_value *v = int_value(1);
  offloop_buffer *buffer = NULL;
  uint32_t missed[2] = {9, 9};
  size_t count = 7;
  int ends[2];
  char text[8] = "";

  o.workers = 2;
  o.on_message = hear_message;
  o.message_user = &said;
  o.message_user_free = said_freed;
  OK(offloop_cluster_new(&o, &c));
  IS(offloop_cluster_send(c, 0, &v, NULL, 0, -1), CLOSED);
  atomic_store(&refused, 0);
  atomic_store(&caller, c);
  OK(offloop_cluster_start(c, -1));
  CHECK(heard_sum(2) == 100);
  OK(offloop_cluster_send(c, 1, &v, NULL, 0, -1));
  CHECK(v == NULL && heard_sum(3) == 102);
  v = int_value(1000);
  OK(offloop_cluster_broadcast(c, &v, NULL, 0, missed, 2, &count));
  CHECK(v == NULL && count == 0 && missed[0] == 9 && heard_sum(5) == 2104);

  OK(offloop_cluster_channel(c, 0, &to));
  v = int_value(21);
  OK(offloop_channel_request(to, &v, NULL, 0, -1, &in));
  CHECK(int_of(in.value) == 42);
  offloop_value_free(in.value);
  offloop_channel_free(to); /* ends nothing */

  /* fds travel, and buffers to one worker only */
  CHECK(pipe(ends) == 0);
  v = int_value(0);
  OK(offloop_cluster_send(c, 0, &v, &ends[1], 1, -1));
  close(ends[1]);
  CHECK(read(ends[0], text, sizeof text) == 4 && !strcmp(text, "seen"));
  close(ends[0]);
  OK(offloop_buffer_new(5, &buffer));
  OK(offloop_value_new_buffer(&buffer, &v));
  IS(offloop_cluster_broadcast(c, &v, NULL, 0, NULL, 0, NULL), INVALID);
  CHECK(v != NULL);
  IS(offloop_cluster_broadcast(c, &v, NULL, 0, NULL, 1, NULL), INVALID);
  IS(offloop_cluster_send(c, 9, &v, NULL, 0, -1), NOT_FOUND);
  CHECK(says("slot=9"));
  offloop_value_free(v);
  IS(offloop_cluster_channel(c, 9, &to), NOT_FOUND);
  IS(offloop_cluster_channel(c, 0, NULL), INVALID);
  OK(offloop_cluster_stop(c, 60000 * MS));
  CHECK(atomic_load(&refused) >= 5);
  atomic_store(&caller, NULL);
  v = int_value(1);
  IS(offloop_channel_try_send(atomic_load(&said.from), &v, NULL, 0), INVALID); /* went with its worker */
  IS(offloop_cluster_send(c, 0, &v, NULL, 0, -1), NOT_FOUND);
  offloop_value_free(v);
  CHECK(atomic_load(&said.freed) == 1 && atomic_load(&said.count) == 5);
  offloop_cluster_free(c);
}

/* What a spare says has the slot that was told last of it, and comes from one handle, which ends with it. */
static struct { atomic_int spare, activated, exited, count; offloop_channel *_Atomic from; } moved;
static void hear_moved(const offloop_cluster_event *event, void *user) {
  (void)user;
  int none = 0;
  if (event->kind == OFFLOOP_CLUSTER_SPARE) atomic_compare_exchange_strong(&moved.spare, &none, event->pid);
  if (event->kind == OFFLOOP_CLUSTER_ACTIVATED) atomic_store(&moved.activated, event->pid);
  if (event->kind == OFFLOOP_CLUSTER_EXIT && event->pid == atomic_load(&moved.spare)) atomic_store(&moved.exited, 1);
}
static void hear_moving(uint32_t slot, uint32_t generation, offloop_channel *from, const offloop_incoming *in, void *user) {
  (void)generation, (void)user;
  int64_t n = int_of(in->value);
  offloop_value_free(in->value);
  while (!atomic_load(&moved.spare)) usleep(1000);
  int spare = atomic_load(&moved.spare);
  if (n / 100 != spare) return;
  if (n % 100 == 0) atomic_store(&moved.from, from);
  CHECK(from == atomic_load(&moved.from));
  CHECK(slot == (atomic_load(&moved.activated) == spare ? 0 : 1024));
  atomic_fetch_add(&moved.count, 1);
  usleep(5000);
}
static void moving(offloop_cluster_options o, const char *const *command) {
  offloop_cluster *c = NULL;
  offloop_value *v = int_value(1);
  o.command = command;
  o.spares = 1;
  o.on_event = hear_moved;
  o.on_message = hear_moving;
  o.message_user_free = NULL;
  OK(offloop_cluster_new(&o, &c));
  OK(offloop_cluster_start(c, -1));
  while (!atomic_load(&moved.spare)) usleep(1000);
  OK(offloop_cluster_kill(c, 0));
  while (!atomic_load(&moved.activated) || atomic_load(&moved.count) < 40) usleep(1000);
  OK(offloop_cluster_kill(c, 0));
  while (!atomic_load(&moved.exited)) usleep(1000);
  OK(offloop_cluster_stop(c, 0));
  IS(offloop_channel_try_send(atomic_load(&moved.from), &v, NULL, 0), INVALID);
  offloop_value_free(v);
  offloop_cluster_free(c);
}

/* ---- what workers print ---- */

typedef struct {
  char out[64], err[64]; /* each line as "pid:bytes|", parts with '+' */
  size_t out_len, err_len;
  int pid;
  atomic_int at_exit, freed; /* bytes that were heard before the end of the worker */
} printed_t;

static void hear_line(const offloop_cluster_line *line, void *user) {
  printed_t *p = user;
  char *to = line->stream == 1 ? p->out : p->err;
  size_t *len = line->stream == 1 ? &p->out_len : &p->err_len;
  CHECK(line->struct_size == sizeof *line && line->slot == 0 && (line->stream == 1 || line->stream == 2) && !line->more);
  CHECK(*len + line->len + 1 < sizeof p->out);
  p->pid = line->pid;
  memcpy(to + *len, line->bytes, line->len);
  to[*len + line->len] = '|';
  *len += line->len + 1;
}
static void lines_end(const offloop_cluster_event *event, void *user) {
  printed_t *p = user;
  if (event->kind != OFFLOOP_CLUSTER_EXIT) return;
  CHECK(event->pid == p->pid);
  atomic_store(&p->at_exit, (int)(p->out_len + p->err_len));
}
static void lines_freed(void *user) { atomic_fetch_add(&((printed_t *)user)->freed, 1); }

static void lines(offloop_cluster_options o, const char *self) {
  static const char out[] = "one||tw\377\0o|", err[] = "hal|";
  const char *const path[] = {"/bin/sh", "-c", "printf 'one\\n\\ntw\\377\\000o\\n'; printf hal >&2; exec \"$0\" member serves", self, NULL};
  printed_t printed = {.pid = 0};
  offloop_cluster *c = NULL;
  o.command = path;
  o.workers = 1;
  o.on_event = lines_end;
  o.event_user = &printed;
  o.event_user_free = NULL;
  o.on_line = hear_line;
  o.line_user = &printed;
  o.line_user_free = lines_freed;
  o.log_size = -1;
  o.log = "x";
  IS(offloop_cluster_new(&o, &c), INVALID);
  CHECK(atomic_load(&printed.freed) == 0); /* still the caller's */
  o.log = NULL;
  OK(offloop_cluster_new(&o, &c));
  offloop_cluster_free(c);
  CHECK(atomic_load(&printed.freed) == 1);
  OK(offloop_cluster_new(&o, &c));
  OK(offloop_cluster_start(c, -1));
  OK(offloop_cluster_stop(c, 0));
  CHECK(atomic_load(&printed.at_exit) == sizeof out + sizeof err - 2);
  CHECK(!memcmp(printed.out, out, sizeof out) && !memcmp(printed.err, err, sizeof err));
  offloop_cluster_free(c);
  while (atomic_load(&printed.freed) != 2) usleep(1000);
}

static void ask(const char *address, char *answer, size_t len) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  const char *port = strrchr(address, ':');
  CHECK(port != NULL);
  to.sin_port = htons((uint16_t)atoi(port + 1));
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
  ssize_t n = read(fd, answer, len - 1);
  CHECK(n > 0);
  answer[n] = 0;
  close(fd);
}

/* What an HTTP request for the metrics gets. */
static void metrics(const char *address) {
  static const char request[] = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  char text[65536];
  size_t len = 0;
  ssize_t n;
  to.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
  CHECK(write(fd, request, sizeof request - 1) == sizeof request - 1);
  while ((n = read(fd, text + len, sizeof text - 1 - len)) > 0) len += (size_t)n;
  CHECK(n == 0);
  text[len] = 0;
  close(fd);
  CHECK(!strncmp(text, "HTTP/1.1 200 OK\r\n", 17) && strstr(text, "offloop_cluster_workers_wanted{cluster=\"cluster\"} 1\n") != NULL);
}

/* A socket of this process that workers inherit, and that stays its own. */
static void own_socket(offloop_cluster_options o, char *by_number) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  offloop_cluster *c = NULL;
  char address[64], answer[64];
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0);
  sprintf(by_number, "fd:%d", fd);
  OK(offloop_cluster_new(&o, &c));
  IS(offloop_cluster_start(c, 0), INVALID);
  CHECK(says("a socket that does not listen") && says(by_number));
  offloop_cluster_free(c);
  CHECK(listen(fd, 8) == 0);
  OK(offloop_cluster_new(&o, &c));
  OK(offloop_cluster_start(c, -1));
  OK(offloop_cluster_address(c, 0, address, sizeof address));
  CHECK(close(fd) == 0);
  ask(address, answer, sizeof answer);
  OK(offloop_cluster_stop(c, 60000 * MS));
  offloop_cluster_free(c);
}

void clusters(void) {
  static const char *const listen_at[] = {"127.0.0.1:0", NULL}, *const bad_at[] = {"nonsense", NULL}, *const none[] = {NULL};
  offloop_cluster_options o = OFFLOOP_CLUSTER_OPTIONS_INIT;
  offloop_cluster_counts counts = OFFLOOP_CLUSTER_COUNTS_INIT;
  offloop_cluster_load load = OFFLOOP_CLUSTER_LOAD_INIT;
  offloop_reload_report report = OFFLOOP_RELOAD_REPORT_INIT;
  offloop_cluster *c = NULL;
  uint32_t slot = 7;
  int none_there = -1;
  char address[64], tiny[4], answer[64], self[4096];
  const char *const by_path[] = {self, "member", "serves", NULL}, *const passed_path[] = {self, "member", "passed", NULL},
             *const broken_path[] = {self, "member", "broken", NULL}, *const talks_path[] = {self, "member", "talks", NULL},
             *const stalls_path[] = {self, "member", "stalls", NULL}, *const says_path[] = {self, "member", "says", NULL},
             *const moves_path[] = {self, "member", "moves", NULL};
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  CHECK(n > 0);
  self[n] = 0;

  /* No cluster started this process. */
  IS(offloop_worker_slot(&slot), UNSUPPORTED);
  CHECK(slot == 7 && offloop_worker_fd_count() == 0 && offloop_worker_fd(0) == -1 && offloop_worker_drain_fd() == -1);
  CHECK(offloop_worker_active_fd() == -1);
  IS(offloop_worker_ready(), UNSUPPORTED);
  IS(offloop_worker_on_message(on_message, NULL, NULL), UNSUPPORTED);
  IS(offloop_worker_closed(), UNSUPPORTED);
  IS(offloop_worker_accept(0, 0, &none_there), UNSUPPORTED);
  IS(offloop_worker_slot(NULL), INVALID);

  /* Refused before anything starts. */
  IS(offloop_cluster_new(&o, &c), INVALID);
  o.command = none;
  IS(offloop_cluster_new(&o, &c), INVALID);
  o.command = by_path;
  o.workers = 1025;
  IS(offloop_cluster_new(&o, &c), INVALID);
  CHECK(says("option=workers, value=1025, min=1, max=1024"));
  o.workers = 2;
  o.listen = bad_at;
  IS(offloop_cluster_new(&o, &c), INVALID);
  CHECK(says("listen=nonsense"));
  char by_number[16];
  const char *const number_at[] = {by_number, NULL};
  o.listen = number_at;
  strcpy(by_number, "fd:99999999");
  OK(offloop_cluster_new(&o, &c));
  IS(offloop_cluster_start(c, 0), INVALID);
  CHECK(says("fd is not open (listen=fd:99999999)"));
  offloop_cluster_free(c);
  own_socket(o, by_number);
  o.listen = listen_at;
  o.beat_ns = MS;
  IS(offloop_cluster_new(&o, &c), INVALID);
  CHECK(says("option=beat"));
  IS(offloop_cluster_new(&o, NULL), INVALID);
  IS(offloop_cluster_start(FORGED, 0), INVALID);
  offloop_cluster_free(NULL);

  o.beat_ns = 50 * MS;
  o.reserved = 1;
  IS(offloop_cluster_new(&o, &c), VERSION);
  o.reserved = 0;
  o.reserved2 = 2;
  IS(offloop_cluster_new(&o, &c), VERSION);
  CHECK(says("reserved2=2"));
  o.reserved2 = 0;
  o.min_ready_ns = 1;
  o.on_event = hear;
  o.event_user = &heard;
  o.event_user_free = freed;
  OK(offloop_cluster_new(&o, &c));
  IS(offloop_cluster_stats(c, &counts), CLOSED);
  IS(offloop_cluster_kill(c, 0), CLOSED);
  own_counters(c);
  atomic_store(&caller, c);
  OK(offloop_cluster_start(c, -1));
  while (atomic_load(&refused) < 4) usleep(1000); /* two workers have asked for a socket, and become ready */
  atomic_store(&caller, NULL);
  OK(offloop_cluster_start(c, -1));
  OK(offloop_cluster_stats(c, &counts));
  CHECK(counts.wanted == 2 && counts.ready == 2 && counts.live == 2 && counts.generation == 1);
  OK(offloop_cluster_address(c, 0, address, sizeof address));
  IS(offloop_cluster_address(c, 1, address, sizeof address), NOT_FOUND);
  IS(offloop_cluster_address(c, 0, tiny, sizeof tiny), TOO_LARGE);
  ask(address, answer, sizeof answer);
  CHECK(strstr(answer, " 1") != NULL);
  int64_t answers = 0;
  offloop_counter *counted = NULL;
  OK(offloop_counter_new(c, "answers", &counted));
  OK(offloop_counter_add(counted, 0, &answers));
  CHECK(answers == 1);

  OK(offloop_cluster_reload(c, NULL, -1, &report));
  CHECK(report.generation == 2 && report.replaced == 2 && report.forced == 0 && report.took_ns > 0);
  ask(address, answer, sizeof answer);
  CHECK(strstr(answer, " 2") != NULL);
  IS(offloop_cluster_reload(c, broken_path, -1, NULL), START_FAILED);
  CHECK(says("this version is broken") && !strcmp(heard.text, "this version is broken"));
  IS(offloop_cluster_reload(c, none, -1, NULL), INVALID);
  ask(address, answer, sizeof answer);
  CHECK(strstr(answer, " 2") != NULL);
  OK(offloop_counter_add(counted, 0, &answers));
  CHECK(answers == 3); /* by workers of two generations */
  offloop_counter_free(counted);

  OK(offloop_cluster_scale(c, 3));
  OK(offloop_cluster_start(c, -1));
  IS(offloop_cluster_scale(c, 0), INVALID);
  IS(offloop_cluster_scale(c, -5), INVALID);
  IS(offloop_cluster_kill(c, 3), NOT_FOUND);
  OK(offloop_cluster_kill(c, 2));
  while (atomic_load(&heard.killed) != 3) usleep(1000);
  OK(offloop_cluster_stop(c, 60000 * MS));
  OK(offloop_cluster_stats(c, &counts));
  CHECK(counts.live == 0 && counts.reloads == 1 && counts.reloads_failed == 1 && counts.forced == 0);
  IS(offloop_cluster_reload(c, NULL, -1, NULL), CLOSED);
  IS(offloop_cluster_scale(c, 1), CLOSED);
  OK(offloop_cluster_stop(c, 0));
  CHECK(heard.seen[OFFLOOP_CLUSTER_STOPPED] == 1 && heard.seen[OFFLOOP_CLUSTER_RELOADED] == 1 && heard.seen[OFFLOOP_CLUSTER_RELOAD_FAILED] == 1);
  CHECK(heard.seen[OFFLOOP_CLUSTER_FORK] == heard.seen[OFFLOOP_CLUSTER_EXIT] && heard.freed == 1);
  offloop_cluster_free(c);
  IS(offloop_cluster_stats(c, &counts), INVALID);

  o.on_event = NULL;
  o.command = talks_path;
  messages(o);

  /* Passed, in turn. */
  o.balance = "roundrobin";
  IS(offloop_cluster_new(&o, &c), INVALID);
  CHECK(says("option=balance, value=roundrobin, want=shared round-robin"));
  o.balance = "round-robin";
  o.command = passed_path;
  o.event_user_free = NULL;
  OK(offloop_cluster_new(&o, &c));
  OK(offloop_cluster_start(c, -1));
  OK(offloop_cluster_address(c, 0, address, sizeof address));
  for (int seen[2] = {0, 0}, i = 0; seen[0] == 0 || seen[1] == 0; i++) {
    CHECK(i < 10000);
    ask(address, answer, sizeof answer);
    seen[answer[0] == '1']++;
  }
  OK(offloop_cluster_reload(c, NULL, -1, &report));
  CHECK(report.replaced == 2 && report.forced == 0);
  ask(address, answer, sizeof answer);
  CHECK(strstr(answer, " 2") != NULL);
  OK(offloop_cluster_stop(c, 60000 * MS));
  offloop_cluster_free(c);
  o.balance = NULL;

  /* A worker that has served enough is replaced, its successor first. */
  memset(&heard, 0, sizeof heard);
  o.command = by_path;
  o.workers = 1;
  o.on_event = hear;
  o.on_message = NULL;
  o.max_memory = 1000;
  IS(offloop_cluster_new(&o, &c), INVALID);
  CHECK(says("option=max_memory, value=1000, min=1048576"));
  o.max_memory = 0;
  o.max_requests = 5;
  o.metrics = "nonsense";
  IS(offloop_cluster_new(&o, &c), INVALID);
  o.metrics = "127.0.0.1:0";
  OK(offloop_cluster_new(&o, &c));
  IS(offloop_cluster_worker_load(c, 0, &load), CLOSED);
  OK(offloop_cluster_start(c, -1));
  OK(offloop_cluster_address(c, 0, address, sizeof address));
  OK(offloop_cluster_worker_load(c, 0, &load));
  CHECK(load.generation == 1 && load.served == 0 && load.loop_delay_ns >= 0);
  IS(offloop_cluster_worker_load(c, 1, &load), NOT_FOUND);
  IS(offloop_cluster_worker_load(c, 0, NULL), INVALID);
  for (ask(address, answer, sizeof answer); load.served == 0; usleep(1000)) OK(offloop_cluster_worker_load(c, 0, &load));
  while (!atomic_load(&heard.seen[OFFLOOP_CLUSTER_EXIT])) ask(address, answer, sizeof answer);
  OK(offloop_cluster_metrics_address(c, address, sizeof address));
  CHECK(!strncmp(address, "127.0.0.1:", 10) && strcmp(address, "127.0.0.1:0"));
  IS(offloop_cluster_metrics_address(c, address, 3), TOO_LARGE);
  metrics(address);
  OK(offloop_cluster_stats(c, &counts));
  CHECK(counts.served >= 4 && counts.expired >= 1 && counts.crashed == 0 && counts.forced == 0);
  CHECK(atomic_load(&heard.seen[OFFLOOP_CLUSTER_EXPIRED]) >= 1);
  OK(offloop_cluster_stop(c, 60000 * MS));
  offloop_cluster_free(c);
  o.max_requests = 0;
  o.metrics = NULL;

  /* What a worker prints goes to a file, with who has printed it. */
  char log[] = "/tmp/offloop-log-\xff-XXXXXX", printed[128] = "", expected[128];
  const char *const prints_path[] = {"/bin/sh", "-c", "echo in C; exec \"$0\" member serves", self, NULL};
  int file = mkstemp(log);
  CHECK(file >= 0);
  memset(&heard, 0, sizeof heard);
  o.command = prints_path;
  o.log = "";
  IS(offloop_cluster_new(&o, &c), INVALID);
  CHECK(says("option=log"));
  o.log = log;
  o.log_size = -1;
  IS(offloop_cluster_new(&o, &c), INVALID);
  CHECK(says("option=log_size, value=-1, min=0"));
  o.log_size = 1000;
  o.log_keep = 1001;
  IS(offloop_cluster_new(&o, &c), INVALID);
  CHECK(says("option=log_keep, value=1001, min=0, max=1000"));
  o.log_keep = -1;
  OK(offloop_cluster_new(&o, &c));
  OK(offloop_cluster_start(c, -1));
  OK(offloop_cluster_stop(c, 60000 * MS));
  offloop_cluster_free(c);
  snprintf(expected, sizeof expected, "[0:%d] in C\n", atomic_load(&heard.worker));
  CHECK(read(file, printed, sizeof printed - 1) > 0 && !strcmp(printed, expected));
  CHECK(close(file) == 0 && unlink(log) == 0);
  o.log = NULL;
  o.command = by_path;
  lines(o, self);

  /* Where a loop stands that stands still: what its worker says, which is nothing in C. */
  stalls(o, stalls_path);
  CHECK(heard.stack[0] == 0);
  stalls(o, says_path);
  CHECK(!strcmp(heard.stack, "4: in main (clusters.c)\nin w\xC3\xB6rk"));

  /* A spare answers nothing, and takes the place of the only worker when that is killed. */
  memset(&heard, 0, sizeof heard);
  o.spares = 1024;
  IS(offloop_cluster_new(&o, &c), INVALID);
  CHECK(says("option=spares, value=1024, min=0, max=1023"));
  o.spares = 1;
  o.balance = "reuseport";
  IS(offloop_cluster_new(&o, &c), INVALID);
  CHECK(says("option=spares") && says("balance=reuseport"));
  o.balance = NULL;
  OK(offloop_cluster_new(&o, &c));
  OK(offloop_cluster_start(c, -1));
  OK(offloop_cluster_address(c, 0, address, sizeof address));
  while (!atomic_load(&heard.seen[OFFLOOP_CLUSTER_SPARE])) usleep(1000);
  OK(offloop_cluster_stats(c, &counts));
  CHECK(counts.ready == 1 && counts.spares == 1 && counts.live == 1);
  for (int i = 0; i < 50; i++) {
    ask(address, answer, sizeof answer);
    CHECK(!strcmp(answer, "0 1"));
  }
  int spare = atomic_load(&heard.spare);
  CHECK(kill(atomic_load(&heard.worker), SIGKILL) == 0);
  while (!atomic_load(&heard.seen[OFFLOOP_CLUSTER_ACTIVATED])) usleep(1000);
  CHECK(atomic_load(&heard.worker) == spare);
  ask(address, answer, sizeof answer);
  CHECK(!strcmp(answer, "0 1"));
  while (atomic_load(&heard.seen[OFFLOOP_CLUSTER_SPARE]) < 2) usleep(1000);
  OK(offloop_cluster_stop(c, 60000 * MS));
  offloop_cluster_free(c);
  moving(o, moves_path);
  o.on_event = NULL;
  o.spares = 0;

  /* A start that fails says why. */
  o.command = broken_path;
  o.workers = 1;
  OK(offloop_cluster_new(&o, &c));
  IS(offloop_cluster_start(c, -1), START_FAILED);
  CHECK(says("this version is broken"));
  offloop_cluster_free(c);
  /* One that was never started. */
  OK(offloop_cluster_new(&o, &c));
  offloop_cluster_free(c);
}

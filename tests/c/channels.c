/* Channels under good and bad use. `abi channel FD` is the other process. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECOND 1000000000LL

static void send_int(offloop_channel *c, int64_t n) {
  offloop_value *v = int_value(n);
  OK(offloop_channel_send(c, &v, NULL, 0, -1));
  CHECK(v == NULL);
}
static int64_t recv_int(offloop_channel *c) {
  offloop_incoming in;
  OK(offloop_channel_recv(c, -1, &in));
  CHECK(in.kind == OFFLOOP_INCOMING_MESSAGE && in.fd_count == 0);
  return take_int(in.value);
}
static void pair(size_t capacity, offloop_channel **a, offloop_channel **b) {
  offloop_channel_options o = OFFLOOP_CHANNEL_OPTIONS_INIT;
  o.capacity = capacity;
  OK(offloop_channel_pair(&o, a, b));
}

/* ---- good use ---- */

static void *echo(void *arg) {
  offloop_incoming in;
  for (;;) {
    offloop_status s = offloop_channel_recv(arg, -1, &in);
    if (s == OFFLOOP_ERR_CLOSED) return NULL;
    CHECK(s == OFFLOOP_OK && in.kind == OFFLOOP_INCOMING_REQUEST);
    OK(offloop_channel_reply(arg, in.id, 0, &in.value, in.fds, in.fd_count, -1));
    while (in.fd_count > 0) close(in.fds[--in.fd_count]);
  }
}
static void use(void) {
  offloop_channel *a = NULL, *b = NULL;
  offloop_incoming in;
  offloop_value *v;
  offloop_buffer *buffer = NULL;
  struct pollfd p = {0, POLLIN, 0};
  pthread_t thread;
  int32_t fd = open("/dev/null", O_RDONLY), got;
  uint64_t id;
  uint8_t *data;
  size_t len;
  int i, sent = 0;

  pair(4096, &a, &b);
  OK(offloop_channel_socket(a, &got));
  send_int(a, 1), send_int(b, 2);
  IS(offloop_channel_socket(a, &got), IN_USE);
  CHECK(recv_int(b) == 1 && recv_int(a) == 2);
  IS(offloop_channel_recv(a, 0, &in), TIMEOUT);
  IS(offloop_channel_try_recv(a, &in), EMPTY);

  /* a buffer moves, an fd goes along */
  OK(offloop_buffer_new_shared(5000, &buffer));
  OK(offloop_value_new_buffer(&buffer, &v));
  OK(offloop_channel_send(a, &v, &fd, 1, -1));
  OK(offloop_channel_recv(b, -1, &in));
  CHECK(in.fd_count == 1 && fcntl(in.fds[0], F_GETFD) == FD_CLOEXEC);
  close(in.fds[0]);
  OK(offloop_value_take_buffer(&in.value, &buffer));
  OK(offloop_buffer_data(buffer, &data, &len));
  CHECK(len == 5000);
  offloop_buffer_free(buffer);

  /* full, and room again, in an event loop */
  OK(offloop_channel_fd(a, &p.fd));
  for (v = int_value(0); offloop_channel_try_send(a, &v, NULL, 0) == OFFLOOP_OK; v = int_value(++sent)) {}
  CHECK(v != NULL && sent > 10);
  IS(offloop_channel_try_send(a, &v, NULL, 0), FULL);
  IS(offloop_channel_send(a, &v, NULL, 0, 0), TIMEOUT);
  for (i = 0; i < sent; i++) CHECK(recv_int(b) == i);
  for (;;) {
    offloop_status s = offloop_channel_try_recv(a, &in);
    if (s == OFFLOOP_OK) break;
    IS(s, EMPTY);
    CHECK(poll(&p, 1, 60000) == 1);
  }
  CHECK(in.kind == OFFLOOP_INCOMING_DRAINED);
  OK(offloop_channel_try_send(a, &v, NULL, 0));
  CHECK(recv_int(b) == sent);

  /* requests: waited for, and by the loop */
  CHECK(pthread_create(&thread, NULL, echo, b) == 0);
  v = int_value(20);
  OK(offloop_channel_request(a, &v, &fd, 1, -1, &in));
  CHECK(v == NULL && in.kind == OFFLOOP_INCOMING_REPLY && !in.failed && in.fd_count == 1);
  close(in.fds[0]);
  CHECK(take_int(in.value) == 20);
  v = int_value(30);
  OK(offloop_channel_post_request(a, &v, NULL, 0, -1, &id));
  while (offloop_channel_try_recv(a, &in) != OFFLOOP_OK) CHECK(poll(&p, 1, 60000) == 1);
  CHECK(in.kind == OFFLOOP_INCOMING_REPLY && in.id == id && in.status == OFFLOOP_OK && take_int(in.value) == 30);
  OK(offloop_channel_close(a));
  CHECK(pthread_join(thread, NULL) == 0);
  v = int_value(1);
  IS(offloop_channel_send(a, &v, NULL, 0, -1), CLOSED);
  CHECK(v != NULL);
  offloop_value_free(v), offloop_channel_free(a), offloop_channel_free(b), close(fd);

  /* what is queued is dropped after a grace */
  pair(4096, &a, &b);
  for (v = NULL; v == NULL;) {
    v = int_value(0);
    if (offloop_channel_try_send(a, &v, NULL, 0) != OFFLOOP_OK) break;
  }
  OK(offloop_channel_post_request(a, &v, NULL, 0, -1, &id));
  OK(offloop_channel_shutdown(a, SECOND / 100));
  OK(offloop_channel_try_recv(a, &in));
  CHECK(in.kind == OFFLOOP_INCOMING_REPLY && in.id == id && in.status == OFFLOOP_ERR_CLOSED);
  IS(offloop_channel_try_recv(a, &in), CLOSED);
  offloop_status ended;
  while ((ended = offloop_channel_recv(b, -1, &in)) == OFFLOOP_OK) CHECK(in.kind == OFFLOOP_INCOMING_MESSAGE && take_int(in.value) == 0);
  CHECK(ended == OFFLOOP_ERR_CLOSED);
  offloop_channel_free(a), offloop_channel_free(b);

  /* a request behind messages that only its own thread could receive */
  offloop_channel_options options = OFFLOOP_CHANNEL_OPTIONS_INIT;
  options.max_queued = 1;
  OK(offloop_channel_pair(&options, &a, &b));
  for (int n = 1; n <= 2; n++) {
    v = int_value(n);
    OK(offloop_channel_send(b, &v, NULL, 0, -1));
  }
  v = int_value(0);
  IS(offloop_channel_request(a, &v, NULL, 0, -1, &in), FULL);
  offloop_value_free(v);
  CHECK(recv_int(a) == 1 && recv_int(a) == 2);
  offloop_channel_free(a), offloop_channel_free(b);

  /* a request that is not answered in time; an answer that failed */
  pair(0, &a, &b);
  v = int_value(1);
  IS(offloop_channel_request(a, &v, NULL, 0, SECOND / 100, &in), TIMEOUT);
  offloop_value_free(v);
  OK(offloop_channel_recv(b, -1, &in));
  id = in.id, offloop_value_free(in.value);
  v = int_value(1);
  OK(offloop_channel_post_request(a, &v, NULL, 0, SECOND / 100, &id));
  OK(offloop_channel_fd(a, &p.fd));
  while (offloop_channel_try_recv(a, &in) != OFFLOOP_OK) CHECK(poll(&p, 1, 60000) == 1);
  CHECK(in.kind == OFFLOOP_INCOMING_REPLY && in.id == id && in.status == OFFLOOP_ERR_TIMEOUT && in.value == NULL);
  offloop_channel_free(a);
  OK(offloop_channel_recv(b, -1, &in));
  offloop_value_free(in.value);
  IS(offloop_channel_recv(b, -1, &in), CLOSED);
  offloop_channel_free(b);
}

static void *wait_for_message(void *arg) {
  offloop_incoming in;
  IS(offloop_channel_recv(arg, -1, &in), CLOSED);
  return NULL;
}
/* an end that was closed keeps nothing but what the loop polls, under a thread that waits too */
static void let_go(void) {
  offloop_channel *a = NULL, *b = NULL;
  offloop_incoming in;
  struct pollfd p = {0, POLLIN, 0};
  pthread_t thread;
  int before = open_fds();

  pair(4096, &a, &b);
  send_int(a, 1), send_int(b, 2);
  CHECK(recv_int(b) == 1 && recv_int(a) == 2);
  OK(offloop_channel_fd(a, &p.fd));
  CHECK(pthread_create(&thread, NULL, wait_for_message, b) == 0);
  CHECK(open_fds() >= before + 18);
  OK(offloop_channel_shutdown(b, -1));
  CHECK(pthread_join(thread, NULL) == 0);
  while (offloop_channel_try_recv(a, &in) == OFFLOOP_ERR_EMPTY) CHECK(poll(&p, 1, 60000) == 1);
  CHECK(fds_settle(before + 2));
  CHECK(poll(&p, 1, 0) == 1);
  IS(offloop_channel_recv(a, 0, &in), CLOSED);
  offloop_channel_free(a), offloop_channel_free(b);
  CHECK(fds_settle(before));
}

/* ---- by a path, and another process ---- */

static void paths(void) {
  char path[64];
  offloop_listener *l = NULL, *other = NULL;
  offloop_channel *a = NULL, *b = NULL;
  struct pollfd p = {0, POLLIN, 0};
  snprintf(path, sizeof path, "/tmp/offloop-c-channel-%d", (int)getpid());
  OK(offloop_channel_listen(path, NULL, &l));
  IS(offloop_channel_listen(path, NULL, &other), EXISTS);
  OK(offloop_listener_fd(l, &p.fd));
  IS(offloop_listener_accept(l, 0, &a), TIMEOUT);
  IS(offloop_channel_connect(path, SECOND / 100, NULL, &b), TIMEOUT); /* nobody accepts */
  CHECK(poll(&p, 1, 0) == 1);
  OK(offloop_listener_accept(l, -1, &a)); /* the one that gave up */
  offloop_channel_free(a), offloop_listener_free(l);
  IS(offloop_channel_connect(path, -1, NULL, &b), NOT_FOUND);
}

int channel_child(const char *fd) {
  offloop_channel *c = NULL;
  offloop_incoming in;
  OK(offloop_channel_attach(atoi(fd), NULL, &c));
  for (;;) {
    offloop_status s = offloop_channel_recv(c, -1, &in);
    if (s == OFFLOOP_ERR_CLOSED) return 0;
    CHECK(s == OFFLOOP_OK);
    if (in.kind == OFFLOOP_INCOMING_REQUEST) OK(offloop_channel_reply(c, in.id, 0, &in.value, NULL, 0, -1));
    else OK(offloop_channel_send(c, &in.value, NULL, 0, -1));
  }
}

static pid_t start(offloop_channel **own) {
  offloop_channel *other = NULL;
  int32_t fd;
  pid_t pid;
  pair(8192, own, &other);
  OK(offloop_channel_socket(other, &fd));
  pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    char text[16];
    snprintf(text, sizeof text, "%d", dup(fd)); /* a duplicate is not close-on-exec */
    execl("/proc/self/exe", "abi", "channel", text, (char *)NULL);
    _exit(127);
  }
  offloop_channel_free(other);
  return pid;
}

static void processes(void) {
  offloop_channel *c = NULL;
  offloop_incoming in;
  offloop_value *v;
  int i, status;
  pid_t pid = start(&c);
  for (i = 0; i < 1000; i++) {
    send_int(c, i);
    if (i >= 10) CHECK(recv_int(c) == i - 10);
  }
  for (i = 990; i < 1000; i++) CHECK(recv_int(c) == i);
  v = int_value(7);
  OK(offloop_channel_request(c, &v, NULL, 0, -1, &in));
  CHECK(take_int(in.value) == 7);
  OK(offloop_channel_close(c));
  CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  offloop_channel_free(c);

  pid = start(&c);
  send_int(c, 1);
  CHECK(recv_int(c) == 1);
  CHECK(kill(pid, SIGKILL) == 0);
  IS(offloop_channel_recv(c, -1, &in), PEER_DIED);
  v = int_value(1);
  IS(offloop_channel_request(c, &v, NULL, 0, -1, &in), PEER_DIED);
  CHECK(waitpid(pid, &status, 0) == pid);
  offloop_value_free(v), offloop_channel_free(c);
}

/* ---- bad use ---- */

static void bad(void) {
  offloop_channel *a = NULL, *b = NULL;
  offloop_listener *l = NULL;
  offloop_channel_options o = OFFLOOP_CHANNEL_OPTIONS_INIT;
  offloop_value *v = int_value(1), *list = NULL;
  offloop_incoming in;
  int32_t fd, fds[OFFLOOP_CHANNEL_MAX_FDS + 1];
  uint64_t id;
  size_t i;
  int before = open_fds();

  IS(offloop_channel_pair(NULL, NULL, &b), INVALID);
  IS(offloop_channel_pair(NULL, &a, NULL), INVALID);
  o.capacity = (size_t)1 << 40;
  IS(offloop_channel_pair(&o, &a, &b), TOO_LARGE);
  o.capacity = 0, o.struct_size = 3;
  IS(offloop_channel_pair(&o, &a, &b), INVALID);
  IS(offloop_channel_attach(-1, NULL, &a), INVALID);
  fd = open("/dev/null", O_RDONLY);
  IS(offloop_channel_attach(fd, NULL, &a), INVALID);
  CHECK(close(fd) == 0); /* still the caller's */
  IS(offloop_channel_connect(NULL, 0, NULL, &a), INVALID);
  IS(offloop_channel_connect("/nowhere/at/all", 0, NULL, &a), NOT_FOUND);
  IS(offloop_channel_listen("", NULL, &l), INVALID);
  IS(offloop_channel_listen("/nowhere/at/all", NULL, &l), OS);

  OK(offloop_channel_pair(NULL, &a, &b));
  IS(offloop_channel_send(NULL, &v, NULL, 0, -1), INVALID);
  IS(offloop_channel_send(FORGED, &v, NULL, 0, -1), INVALID);
  IS(offloop_channel_send((offloop_channel *)v, &v, NULL, 0, -1), INVALID);
  IS(offloop_channel_send(a, NULL, NULL, 0, -1), INVALID);
  IS(offloop_channel_send(a, &v, NULL, 1, -1), INVALID);
  fds[0] = -1;
  IS(offloop_channel_send(a, &v, fds, 1, -1), INVALID);
  fds[0] = 9999;
  IS(offloop_channel_send(a, &v, fds, 1, -1), OS);
  for (i = 0; i <= OFFLOOP_CHANNEL_MAX_FDS; i++) fds[i] = 0;
  IS(offloop_channel_send(a, &v, fds, OFFLOOP_CHANNEL_MAX_FDS + 1, -1), TOO_LARGE);
  CHECK(strstr(offloop_last_error(), "max_fds=253"));
  IS(offloop_channel_recv(a, 0, NULL), INVALID);
  IS(offloop_channel_try_recv(a, NULL), INVALID);
  IS(offloop_channel_request(a, &v, NULL, 0, 0, NULL), INVALID);
  IS(offloop_channel_post_request(a, &v, NULL, 0, 0, NULL), INVALID);
  IS(offloop_channel_reply(a, 0, 0, &v, NULL, 0, 0), INVALID);
  IS(offloop_channel_fd(a, NULL), INVALID);
  IS(offloop_channel_socket(a, NULL), INVALID);
  IS(offloop_listener_accept((offloop_listener *)a, 0, &b), INVALID);
  CHECK(v != NULL);

  /* a borrowed value stays where it is */
  OK(offloop_value_new_array(&list));
  OK(offloop_value_array_push(list, &v));
  {
    const offloop_value *item = NULL;
    offloop_value *borrowed;
    OK(offloop_value_array_get(list, 0, &item));
    borrowed = (offloop_value *)item;
    IS(offloop_channel_send(a, &borrowed, NULL, 0, -1), INVALID);
  }
  OK(offloop_channel_post_request(a, &list, NULL, 0, -1, &id));
  offloop_channel_free(a), offloop_channel_free(b);
  IS(offloop_channel_recv(a, 0, &in), INVALID); /* freed */
  offloop_channel_free(NULL), offloop_listener_free(NULL);
  CHECK(fds_settle(before));
}

void channels(void) {
  use();
  let_go();
  paths();
  processes();
  bad();
}

#ifdef FAILPOINTS
void offloop_failpoint_panic(void);
#define P(call) do { offloop_failpoint_panic(); IS(call, PANIC); CHECK(strstr(offloop_last_error(), "failpoint")); } while (0)
#define PV(call) do { offloop_failpoint_panic(); call; CHECK(strstr(offloop_last_error(), "failpoint")); } while (0)
void channel_panics(void) {
  offloop_channel *a = NULL, *b = NULL;
  offloop_value *v = int_value(1);
  offloop_incoming in;
  uint64_t scratch[8];
  void *x = scratch;
  OK(offloop_channel_pair(NULL, &a, &b));
  P(offloop_channel_pair(NULL, x, x)); P(offloop_channel_attach(0, NULL, x)); P(offloop_channel_connect("/x", 0, NULL, x)); P(offloop_channel_listen("/x", NULL, x));
  P(offloop_listener_accept(x, 0, x)); P(offloop_listener_fd(x, x)); PV(offloop_listener_free(x)); P(offloop_channel_socket(a, x)); P(offloop_channel_send(a, &v, NULL, 0, 0));
  P(offloop_channel_try_send(a, &v, NULL, 0)); P(offloop_channel_recv(a, 0, &in)); P(offloop_channel_try_recv(a, &in)); P(offloop_channel_request(a, &v, NULL, 0, 0, &in));
  P(offloop_channel_post_request(a, &v, NULL, 0, 0, x)); P(offloop_channel_reply(a, 1, 0, &v, NULL, 0, 0)); P(offloop_channel_fd(a, x)); P(offloop_channel_close(a)); P(offloop_channel_shutdown(a, 0)); PV(offloop_channel_free(a));
  /* everything is still there */
  OK(offloop_channel_send(a, &v, NULL, 0, -1));
  CHECK(recv_int(b) == 1);
  offloop_channel_free(a), offloop_channel_free(b);
}
#endif

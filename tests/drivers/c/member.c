/* The worker of the driver's clusters: `driver member <mode> <version> <at>`. */

#define _GNU_SOURCE
#include "driver.h"
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_SOCKETS 8

static const char *version;
static int serving; /* under the lock */

static uint32_t slot_now(void) {
  uint32_t slot = 0;
  offloop_worker_slot(&slot);
  return slot;
}

static uint32_t generation_now(void) {
  uint32_t generation = 0;
  offloop_worker_generation(&generation);
  return generation;
}

static char *ask(const char *value) {
  offloop_channel *own = NULL;
  offloop_incoming in;
  offloop_value *asked = param(value);
  offloop_status status = offloop_worker_channel(&own);
  if (status == OFFLOOP_OK) status = offloop_channel_request(own, &asked, NULL, 0, -1, &in);
  char *reply = status == OFFLOOP_OK ? show_message(in.value) : last_error(status);
  offloop_value_free(asked);
  offloop_channel_free(own); /* ends nothing */
  return reply;
}

static char *count(const char *name) {
  offloop_counter *counter = NULL;
  int64_t value = 0;
  offloop_status status = offloop_counter_new(NULL, name, &counter);
  if (status == OFFLOOP_OK) status = offloop_counter_add(counter, 1, &value);
  char *reply = status == OFFLOOP_OK ? format("ok int=%lld", (long long)value) : last_error(status);
  offloop_counter_free(counter);
  return reply;
}

static char *take(const char *name) {
  offloop_limit limit = OFFLOOP_LIMIT_INIT;
  offloop_limiter *limiter = NULL;
  offloop_taken taken = OFFLOOP_TAKEN_INIT;
  limit.rate = 1e-6;
  limit.burst = 3;
  limit.keys = 64;
  offloop_status status = offloop_limiter_new(NULL, name, &limit, &limiter);
  if (status == OFFLOOP_OK) status = offloop_limiter_take(limiter, "", 0, 1, &taken);
  char *reply = status == OFFLOOP_OK ? format("ok allowed=%d", taken.allowed) : last_error(status);
  offloop_limiter_free(limiter);
  return reply;
}

/* A line of a connection. */
static char *answer(char *line) {
  char *value = line, *what = strsep(&value, " ");
  if (value == NULL) value = "";
  if (strcmp(what, "tell") == 0) {
    offloop_value *told = param(value);
    offloop_status status = offloop_worker_send(&told, NULL, 0, -1);
    return status == OFFLOOP_OK ? format("ok") : last_error(status);
  }
  if (strcmp(what, "ask") == 0) return ask(value);
  if (strcmp(what, "count") == 0) return count(value);
  if (strcmp(what, "take") == 0) return take(value);
  return format("ok slot=%u generation=%u pid=%d version=%s", slot_now(), generation_now(), (int)getpid(), version);
}

static void *serve(void *arg) {
  int connection = (int)(intptr_t)arg;
  char line[256];
  size_t len = 0;
  ssize_t n = 1;
  struct pollfd there = {connection, POLLIN, 0};
  while (n > 0 && len < sizeof line - 1 && memchr(line, '\n', len) == NULL && poll(&there, 1, 30000) == 1) {
    n = read(connection, line + len, sizeof line - 1 - len);
    if (n > 0) len += (size_t)n;
  }
  line[len] = 0;
  char *end = strchr(line, '\n');
  if (end != NULL) {
    *end = 0;
    char *reply = answer(line), *whole = format("%s\n", reply);
    offloop_worker_served(1);
    /* A client that is gone needs no answer. */
    if (write(connection, whole, strlen(whole)) < 0) perror("member");
    free(reply);
    free(whole);
  }
  close(connection);
  offloop_worker_closed();
  pthread_mutex_lock(&lock);
  serving--;
  pthread_mutex_unlock(&lock);
  return NULL;
}

/* What the cluster says: `exit` and `say` are done, all else comes back. */
static void on_message(offloop_channel *from, const offloop_incoming *in, void *user) {
  const char *text = "";
  size_t len = 0;
  int64_t n = 0;
  offloop_value *value = in->value, *reply = NULL;
  (void)user;
  if (in->status != OFFLOOP_OK) return;
  offloop_value_get_str(value, &text, &len);
#define IS(word) (len == sizeof word - 1 && memcmp(text, word, len) == 0)
  if (in->kind != OFFLOOP_INCOMING_REQUEST) {
    if (IS("exit") || (IS("say") && write(1, "one\nhalf", 8) == 8)) _exit(3);
    offloop_worker_send(&value, NULL, 0, -1);
    offloop_value_free(value);
    return;
  }
  int failed = IS("fail"), never = IS("never");
  if (failed) offloop_value_new_error("TypeError", "no such color", &reply);
  else if (IS("pid")) offloop_value_new_int(getpid(), &reply);
  else if (IS("slot")) offloop_value_new_int(slot_now(), &reply);
  else if (IS("generation")) offloop_value_new_int(generation_now(), &reply);
  else if (IS("version")) offloop_value_new_str(version, OFFLOOP_NUL_TERMINATED, &reply);
  else if (offloop_value_get_int(value, &n) == OFFLOOP_OK) offloop_value_new_int(2 * n, &reply);
#undef IS
  if (!never) offloop_channel_reply(from, in->id, failed, &reply, NULL, 0, -1);
  offloop_value_free(reply);
  offloop_value_free(value);
}

static int fails(const char *why) {
  offloop_worker_fail(why);
  return 1;
}

int member(char **words) {
  const char *mode = words[0];
  int sockets[MAX_SOCKETS];
  size_t count = 0;
  version = words[1];
  if (strcmp(mode, "quits") == 0) return 3;
  uint32_t slot = slot_now();
  if (strcmp(mode, "broken") == 0 || (strcmp(mode, "half") == 0 && slot > 0)) return fails("no model");
  if (strcmp(mode, "never") == 0) {
    for (;;) pause();
  }
  if (words[2][0] != 0) {
    if (offloop_worker_listen(words[2], &sockets[count++]) != OFFLOOP_OK) return fails(offloop_last_error());
  } else {
    for (; count < offloop_worker_fd_count() && count < MAX_SOCKETS; count++) sockets[count] = offloop_worker_fd(count);
  }
  if (offloop_worker_on_message(on_message, NULL, NULL) != OFFLOOP_OK) return fails(offloop_last_error());
  offloop_worker_ready();
  for (int active = 0;;) {
    struct pollfd polls[1 + MAX_SOCKETS] = {{offloop_worker_drain_fd(), POLLIN, 0}, {offloop_worker_active_fd(), POLLIN, 0}};
    for (size_t i = 0; active && i < count; i++) polls[1 + i] = (struct pollfd){sockets[i], POLLIN, 0};
    offloop_worker_beat();
    poll(polls, active ? 1 + (nfds_t)count : 2, 10);
    if (polls[0].revents) break;
    if (!active) {
      /* A spare waits for its place. */
      active = polls[1].revents != 0;
      continue;
    }
    for (size_t i = 0; i < count; i++) {
      int connection = -1;
      pthread_t thread;
      if (offloop_worker_accept(sockets[i], 0, &connection) != OFFLOOP_OK) continue;
      pthread_mutex_lock(&lock);
      serving++;
      pthread_mutex_unlock(&lock);
      if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)connection) != 0) abort();
      pthread_detach(thread);
    }
  }
  for (int left = 1; left > 0;) {
    pthread_mutex_lock(&lock);
    left = serving;
    pthread_mutex_unlock(&lock);
    if (left > 0) usleep(1000);
  }
  offloop_worker_drained();
  return 0;
}

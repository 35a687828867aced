/* Rings under good and bad use: the part of the ABI suite in abi.c that needs other processes most. `abi ring FD…` is the other process. */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECOND 1000000000LL

static offloop_ring *ring_of(size_t capacity, const char *on_full) {
  offloop_ring_options o = OFFLOOP_RING_OPTIONS_INIT;
  offloop_ring *r = NULL;
  o.kind = "spsc";
  o.capacity = capacity;
  o.on_full = on_full;
  OK(offloop_ring_create(&o, &r));
  return r;
}
static offloop_producer *producer_of(offloop_ring *r) {
  offloop_producer *p = NULL;
  OK(offloop_producer_new(r, NULL, &p));
  return p;
}
static offloop_consumer *consumer_of(offloop_ring *r) {
  offloop_consumer *c = NULL;
  OK(offloop_consumer_new(r, NULL, &c));
  return c;
}
static int is(const offloop_record *record, const char *text) { return record->len == strlen(text) && memcmp(record->data, text, record->len) == 0; }

/* ---- good use ---- */

static void use(void) {
  offloop_ring *r = ring_of(4096, NULL);
  offloop_producer *p = producer_of(r), *batch = NULL;
  offloop_consumer *c = consumer_of(r);
  offloop_producer_options po = OFFLOOP_PRODUCER_OPTIONS_INIT;
  offloop_ring_state state;
  offloop_record record, records[8];
  struct pollfd poll_fd = {0, POLLIN, 0};
  static const char zeros[1000];
  char *room;
  size_t i, n;
  int j;

  state.struct_size = sizeof state;
  OK(offloop_ring_info(r, &state));
  CHECK(strcmp(state.kind, "spsc") == 0 && state.capacity == 4096 && state.max_record_len == 2040 && !state.closed);

  IS(offloop_consumer_try_pop(c, &record), EMPTY);
  IS(offloop_consumer_read(c, records, 8, &n), EMPTY);
  IS(offloop_consumer_pop(c, 0, &record), TIMEOUT);
  OK(offloop_producer_push(p, "one", 3, -1));
  OK(offloop_producer_try_push(p, "", 0));
  OK(offloop_producer_claim(p, 100, -1, (void **)&room));
  CHECK(((uintptr_t)room & 7) == 0);
  memcpy(room, "three", 5);
  OK(offloop_producer_commit(p, 5));
  OK(offloop_consumer_pop(c, -1, &record));
  CHECK(is(&record, "one") && !record.redelivered && ((uintptr_t)record.data & 7) == 0);
  OK(offloop_consumer_try_pop(c, &record));
  CHECK(record.len == 0);
  OK(offloop_consumer_wait(c, -1));
  OK(offloop_consumer_try_pop(c, &record));
  CHECK(is(&record, "three"));
  OK(offloop_consumer_release(c));
  OK(offloop_consumer_release(c)); /* nothing to let go of */
  IS(offloop_consumer_wait(c, 0), TIMEOUT);

  /* many at once: what was read stays until the next call, however often the ring goes round */
  for (j = 0; j < 50; j++) {
    char texts[8][400];
    for (i = 0; i < 8; i++) {
      memset(texts[i], 'a' + (int)i + j % 10, sizeof texts[i]);
      records[i].data = texts[i];
      records[i].len = sizeof texts[i] - i;
    }
    OK(offloop_producer_push_many(p, records, 8, -1, &n));
    CHECK(n == 8);
    OK(offloop_producer_try_push(p, "x", 1));
    memset(records, 0, sizeof records);
    OK(offloop_consumer_read(c, records, 8, &n));
    CHECK(n == 8);
    for (; !offloop_producer_try_push(p, texts, 400);) {} /* none of the room that is read */
    for (i = 0; i < 8; i++) CHECK(records[i].len == sizeof texts[i] - i && memcmp(records[i].data, texts[i], records[i].len) == 0);
    while (!offloop_consumer_read(c, records, 8, &n)) {}
  }

  /* what does not fit is left to the next call */
  records[0].data = records[1].data = records[2].data = memset(calloc(1, 2000), 1, 2000);
  records[0].len = records[1].len = records[2].len = 2000;
  OK(offloop_producer_push_many(p, records, 3, -1, &n));
  CHECK(n >= 1 && n < 3);
  IS(offloop_producer_push_many(p, records, 1, 1000000, &n), TIMEOUT);
  free((void *)(uintptr_t)records[0].data);
  while (!offloop_consumer_try_pop(c, &record)) {}

  /* the fd of an event loop: readable at first, silent once armed, readable again by a push */
  OK(offloop_consumer_fd(c, &poll_fd.fd));
  CHECK(poll(&poll_fd, 1, 0) == 1);
  IS(offloop_consumer_try_pop(c, &record), EMPTY);
  CHECK(poll(&poll_fd, 1, 0) == 0);
  OK(offloop_producer_push(p, "a", 1, -1));
  OK(offloop_producer_push(p, "b", 1, -1));
  CHECK(poll(&poll_fd, 1, -1) == 1);
  OK(offloop_consumer_try_pop(c, &record));
  CHECK(poll(&poll_fd, 1, 0) == 1); /* level-triggered: nobody has said that it is empty */
  OK(offloop_consumer_try_pop(c, &record));
  IS(offloop_consumer_try_pop(c, &record), EMPTY);
  CHECK(poll(&poll_fd, 1, 0) == 0);

  /* the producer's fd: readable when a full ring has room again */
  OK(offloop_producer_fd(p, &poll_fd.fd));
  while (!offloop_producer_try_push(p, zeros, sizeof zeros)) {}
  CHECK(poll(&poll_fd, 1, 0) == 0);
  while (!offloop_consumer_try_pop(c, &record)) {}
  CHECK(poll(&poll_fd, 1, -1) == 1);

  /* handles outlive the ring's; a successor goes on */
  offloop_ring_free(r);
  OK(offloop_producer_push(p, "last", 4, -1));
  offloop_producer_free(p);
  OK(offloop_consumer_pop(c, -1, &record));
  CHECK(is(&record, "last"));
  offloop_consumer_free(c);

  r = ring_of(1 << 16, "reject");
  po.batch = 1;
  OK(offloop_producer_new(r, &po, &batch));
  c = consumer_of(r);
  OK(offloop_producer_push(batch, "late", 4, -1));
  OK(offloop_producer_flush(batch));
  OK(offloop_consumer_try_pop(c, &record));
  OK(offloop_producer_push(batch, "not flushed", 11, -1));
  OK(offloop_consumer_pop(c, -1, &record));
  CHECK(is(&record, "not flushed"));
  offloop_producer_free(batch);
  po.batch = 0;
  po.on_full = "wait";
  OK(offloop_producer_new(r, &po, &p));
  while (!offloop_producer_try_push(p, zeros, 64)) {}
  IS(offloop_producer_push(p, zeros, 64, 1000000), TIMEOUT); /* its own policy */
  offloop_producer_free(p);
  p = producer_of(r);
  IS(offloop_producer_push(p, zeros, 64, -1), FULL); /* the ring's */
  IS(offloop_producer_claim(p, 64, -1, (void **)&room), FULL);
  IS(offloop_producer_try_claim(p, 64, (void **)&room), FULL);

  /* closed: what is there is drained */
  OK(offloop_ring_close(r));
  OK(offloop_ring_info(r, &state));
  CHECK(state.closed);
  IS(offloop_producer_try_push(p, "x", 1), CLOSED);
  IS(offloop_producer_push(p, "x", 1, -1), CLOSED);
  IS(offloop_producer_try_claim(p, 1, (void **)&room), CLOSED);
  for (n = 0; !offloop_consumer_try_pop(c, &record); n++) {}
  CHECK(n > 100);
  IS(offloop_consumer_try_pop(c, &record), CLOSED);
  IS(offloop_consumer_pop(c, -1, &record), CLOSED);
  IS(offloop_consumer_wait(c, -1), CLOSED);
  offloop_producer_free(p);
  IS(offloop_producer_new(r, NULL, &p), CLOSED);
  offloop_consumer_free(c);
  offloop_ring_free(r);
}

/* ---- tasks ---- */

struct worker {
  offloop_consumer *c;
  offloop_record got;
};
static void *pop_task(void *arg) {
  struct worker *w = arg;
  OK(offloop_consumer_pop(w->c, -1, &w->got));
  return NULL;
}

static void tasks(void) {
  offloop_ring_options o = OFFLOOP_RING_OPTIONS_INIT;
  offloop_consumer_options manual = OFFLOOP_CONSUMER_OPTIONS_INIT;
  offloop_ring_state state;
  offloop_ring *r = NULL, *lane = ring_of(4096, NULL);
  offloop_producer *p;
  offloop_consumer *a = NULL, *b = NULL, *c = NULL;
  offloop_record first, second, third, records[8];
  struct worker w;
  pthread_t thread;
  char text[64];
  size_t i, n;

  manual.ack = "manual";
  IS(offloop_consumer_new(lane, &manual, &c), UNSUPPORTED);
  manual.ack = "perhaps";
  IS(offloop_consumer_new(lane, &manual, &c), INVALID);
  manual.ack = "manual";
  o.kind = "spsc";
  o.slot_size = 64;
  IS(offloop_ring_create(&o, &r), UNSUPPORTED);
  o.kind = "mpmc";
  o.capacity = 4096;
  o.slot_size = 4096;
  IS(offloop_ring_create(&o, &r), TOO_LARGE);
  o.slot_size = 100;
  o.max_participants = 6;
  OK(offloop_ring_create(&o, &r));
  state.struct_size = sizeof state;
  OK(offloop_ring_info(r, &state));
  CHECK(strcmp(state.kind, "mpmc") == 0 && state.capacity == 4096 && state.slot_size == 128 && state.max_record_len == 112);

  p = producer_of(r);
  OK(offloop_consumer_new(r, &manual, &a));
  OK(offloop_consumer_new(r, &manual, &b));
  c = consumer_of(r);
  memset(text, 'x', sizeof text);
  IS(offloop_producer_push(p, text, 113, 0), TOO_LARGE);
  CHECK(strstr(offloop_last_error(), "slot_size=128"));

  /* in flight until it is acknowledged, where it lies */
  OK(offloop_producer_push(p, "one", 3, -1));
  OK(offloop_producer_push(p, "two", 3, -1));
  OK(offloop_consumer_pop(a, -1, &first));
  OK(offloop_consumer_try_pop(a, &second));
  CHECK(is(&first, "one") && is(&second, "two") && first.delivery && second.delivery && first.delivery != second.delivery);
  for (i = 0; i < 200; i++) { /* round the ring, past the two */
    OK(offloop_producer_push(p, &i, sizeof i, -1));
    OK(offloop_consumer_try_pop(c, &third));
    CHECK(third.len == sizeof i && memcmp(third.data, &i, sizeof i) == 0 && third.delivery == 0);
  }
  OK(offloop_consumer_release(c));
  CHECK(is(&first, "one") && is(&second, "two"));
  IS(offloop_consumer_ack(c, first.delivery), UNSUPPORTED);
  IS(offloop_consumer_ack(b, first.delivery), INVALID);
  OK(offloop_consumer_ack(a, second.delivery));
  IS(offloop_consumer_ack(a, second.delivery), INVALID);
  IS(offloop_consumer_nack(a, 0), INVALID);

  /* given back: to the other, who waits, and who is acknowledged for by another thread while it waits again */
  w.c = b;
  CHECK(pthread_create(&thread, NULL, pop_task, &w) == 0);
  OK(offloop_consumer_nack(a, first.delivery));
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(is(&w.got, "one") && w.got.redelivered);
  first = w.got;
  CHECK(pthread_create(&thread, NULL, pop_task, &w) == 0);
  OK(offloop_consumer_ack(b, first.delivery));
  OK(offloop_producer_push(p, "four", 4, -1));
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(is(&w.got, "four") && !w.got.redelivered);
  OK(offloop_consumer_ack(b, w.got.delivery));

  /* many at once; who leaves gives back */
  for (i = 0; i < 8; i++) OK(offloop_producer_push(p, &i, sizeof i, -1));
  OK(offloop_consumer_read(a, records, 8, &n));
  CHECK(n == 8 && records[7].delivery);
  for (i = 0; i < 4; i++) OK(offloop_consumer_ack(a, records[i].delivery));
  offloop_ring_close(r);
  IS(offloop_consumer_try_pop(b, &first), EMPTY); /* may come back */
  offloop_consumer_free(a);
  IS(offloop_consumer_ack(a, records[5].delivery), INVALID);
  OK(offloop_consumer_read(b, records, 8, &n));
  CHECK(n == 4 && records[0].redelivered);
  IS(offloop_consumer_try_pop(c, &first), EMPTY);
  for (i = 0; i < 4; i++) OK(offloop_consumer_ack(b, records[i].delivery));
  IS(offloop_consumer_try_pop(c, &first), CLOSED);
  IS(offloop_consumer_pop(b, -1, &first), CLOSED);

  offloop_consumer_free(b);
  offloop_consumer_free(c);
  offloop_producer_free(p);
  offloop_ring_free(r);
  offloop_ring_free(lane);
}

/* ---- bad use ---- */

static void misuse(void) {
  offloop_ring *r = ring_of(4096, NULL), *other = ring_of(4096, NULL), *none = NULL;
  offloop_producer *p = producer_of(r), *p2 = NULL;
  offloop_consumer *c = consumer_of(r), *c2 = NULL;
  offloop_ring_options o = OFFLOOP_RING_OPTIONS_INIT;
  offloop_producer_options po = OFFLOOP_PRODUCER_OPTIONS_INIT;
  offloop_ring_state state;
  offloop_record record;
  void *room, *stale_ring, *stale_producer, *stale_consumer;
  int32_t fds[8], few[2] = {-7, -7};
  size_t i, n;
  int fd, zero;

  /* options */
  po.reserved = 7;
  IS(offloop_producer_new(other, &po, &p2), VERSION);
  CHECK(strstr(offloop_last_error(), "reserved=7") && p2 == NULL);
  po.reserved = 0;
  o.kind = "queue";
  IS(offloop_ring_create(&o, &none), INVALID);
  CHECK(strstr(offloop_last_error(), "queue") && none == NULL);
  o.kind = "sp\xff";
  IS(offloop_ring_create(&o, &none), INVALID);
  o.kind = NULL;
  o.on_full = "overwrite";
  IS(offloop_ring_create(&o, &none), INVALID);
  o.on_full = NULL;
  o.capacity = (size_t)1 << 31;
  IS(offloop_ring_create(&o, &none), TOO_LARGE);
  o.capacity = 0;
  o.max_participants = 3;
  IS(offloop_ring_create(&o, &none), INVALID);
  o.struct_size = 3;
  IS(offloop_ring_create(&o, &none), INVALID);
  IS(offloop_ring_create(NULL, NULL), INVALID);
  po.on_full = "sometimes";
  IS(offloop_producer_new(r, &po, &p2), INVALID);
  po.on_full = "overwrite";
  IS(offloop_producer_new(r, &po, &p2), INVALID);
  state.struct_size = 1;
  IS(offloop_ring_info(r, &state), INVALID);
  IS(offloop_ring_info(r, NULL), INVALID);

  /* fds */
  OK(offloop_ring_fds(r, NULL, 0, &n));
  CHECK(n == 3);
  OK(offloop_ring_fds(r, few, 1, &n));
  CHECK(n == 3 && few[0] >= 0 && few[1] == -7);
  OK(offloop_ring_fds(r, fds, 8, &n));
  IS(offloop_ring_fds(r, NULL, 8, &n), INVALID);
  IS(offloop_ring_fds(r, fds, 8, NULL), INVALID);
  IS(offloop_ring_attach(NULL, 0, &none), INVALID);
  IS(offloop_ring_attach(NULL, 3, &none), INVALID);
  IS(offloop_ring_attach(fds, 2, &none), INVALID);
  zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
  for (i = 0; i < 3; i++) {
    int32_t bad[3] = {fds[0], fds[1], fds[2]}, values[3] = {-1, 9999, 0};
    size_t j;
    for (j = 0; j < 3; j++) {
      bad[i] = j == 2 ? zero : values[j];
      CHECK(offloop_ring_attach(bad, 3, &none) < 0 && none == NULL);
    }
  }
  close(zero);

  /* a place is taken */
  IS(offloop_producer_new(r, NULL, &p2), IN_USE);
  IS(offloop_consumer_new(r, NULL, &c2), IN_USE);

  /* claims */
  IS(offloop_producer_commit(p, 0), INVALID); /* of nothing */
  OK(offloop_producer_abort(p));              /* of nothing */
  OK(offloop_producer_claim(p, 10, -1, &room));
  IS(offloop_producer_claim(p, 10, -1, &room), IN_USE);
  IS(offloop_producer_try_claim(p, 10, &room), IN_USE);
  IS(offloop_producer_push(p, "x", 1, -1), IN_USE);
  IS(offloop_producer_try_push(p, "x", 1), IN_USE);
  IS(offloop_producer_commit(p, 11), INVALID); /* and it stays open */
  OK(offloop_producer_abort(p));
  IS(offloop_producer_commit(p, 10), INVALID); /* aborted */
  OK(offloop_producer_claim(p, 2040, -1, &room));
  OK(offloop_producer_commit(p, 0)); /* less than was claimed */
  IS(offloop_producer_commit(p, 0), INVALID);
  OK(offloop_consumer_pop(c, -1, &record));
  CHECK(record.len == 0);

  /* sizes */
  IS(offloop_producer_push(p, &record, 2041, -1), TOO_LARGE);
  CHECK(strstr(offloop_last_error(), "max_record_len=2040"));
  IS(offloop_producer_claim(p, 2041, -1, &room), TOO_LARGE);
  IS(offloop_producer_claim(p, (size_t)-1, -1, &room), TOO_LARGE);
  IS(offloop_producer_push(p, NULL, 1, -1), INVALID);
  IS(offloop_producer_push(p, "x", (size_t)-1, -1), INVALID);
  OK(offloop_producer_push(p, NULL, 0, -1));
  IS(offloop_producer_push_many(p, NULL, 1, -1, &n), INVALID);
  IS(offloop_producer_push_many(p, &record, 0, -1, &n), INVALID);
  IS(offloop_producer_push_many(p, &record, 1, -1, NULL), INVALID);
  IS(offloop_consumer_read(c, NULL, 1, &n), INVALID);
  IS(offloop_consumer_read(c, &record, 0, &n), INVALID);
  IS(offloop_consumer_read(c, &record, 1, NULL), INVALID);
  IS(offloop_consumer_pop(c, -1, NULL), INVALID);
  IS(offloop_consumer_pop(c, -1, (offloop_record *)((char *)&record + 1)), INVALID);
  IS(offloop_producer_claim(p, 1, -1, NULL), INVALID);
  OK(offloop_producer_push(p, "x", 1, -1)); /* no claim was left open by that */

  /* handles that are none of the wanted type: NULL, forged, small, all ones, freed, another type */
  stale_ring = other;
  offloop_ring_free(other);
  stale_producer = p;
  stale_consumer = c;
  offloop_producer_free(p);
  offloop_consumer_free(c);
  p = producer_of(r);
  c = consumer_of(r);
  {
    void *rings[] = {NULL, FORGED, (void *)1, (void *)-1, stale_ring, p}, *producers[] = {NULL, FORGED, (void *)1, (void *)-1, stale_producer, c},
         *consumers[] = {NULL, FORGED, (void *)1, (void *)-1, stale_consumer, r};
    for (i = 0; i < 6; i++) {
      state.struct_size = sizeof state;
      IS(offloop_ring_fds(rings[i], fds, 8, &n), INVALID);
      IS(offloop_ring_info(rings[i], &state), INVALID);
      IS(offloop_ring_close(rings[i]), INVALID);
      IS(offloop_producer_new(rings[i], NULL, &p2), INVALID);
      IS(offloop_consumer_new(rings[i], NULL, &c2), INVALID);
      offloop_ring_free(rings[i]);
      IS(offloop_producer_push(producers[i], "x", 1, -1), INVALID);
      IS(offloop_producer_try_push(producers[i], "x", 1), INVALID);
      IS(offloop_producer_push_many(producers[i], &record, 1, -1, &n), INVALID);
      IS(offloop_producer_claim(producers[i], 1, -1, &room), INVALID);
      IS(offloop_producer_try_claim(producers[i], 1, &room), INVALID);
      IS(offloop_producer_commit(producers[i], 1), INVALID);
      IS(offloop_producer_abort(producers[i]), INVALID);
      IS(offloop_producer_flush(producers[i]), INVALID);
      IS(offloop_producer_fd(producers[i], &fd), INVALID);
      offloop_producer_free(producers[i]);
      IS(offloop_consumer_pop(consumers[i], -1, &record), INVALID);
      IS(offloop_consumer_try_pop(consumers[i], &record), INVALID);
      IS(offloop_consumer_read(consumers[i], &record, 1, &n), INVALID);
      IS(offloop_consumer_wait(consumers[i], -1), INVALID);
      IS(offloop_consumer_release(consumers[i]), INVALID);
      IS(offloop_consumer_fd(consumers[i], &fd), INVALID);
      offloop_consumer_free(consumers[i]);
    }
  }
  IS(offloop_producer_fd(p, NULL), INVALID);
  IS(offloop_consumer_fd(c, NULL), INVALID);

  /* an open claim goes with its producer */
  OK(offloop_producer_claim(p, 1, -1, &room));
  offloop_producer_free(p);
  p = producer_of(r);
  OK(offloop_producer_push(p, "y", 1, -1));
  offloop_producer_free(p);
  offloop_consumer_free(c);
  offloop_ring_free(r);
}

/* ---- names and kinds ---- */

static void names(void) {
  offloop_ring_options o = OFFLOOP_RING_OPTIONS_INIT;
  offloop_ring *r = NULL, *twin = NULL;
  offloop_producer *p, *q;
  offloop_consumer *c, *d;
  offloop_record records[4];
  offloop_value *stat = NULL;
  const offloop_value *item;
  const char *text;
  char path[1000] = {0};
  int32_t fds[8];
  size_t n, len;
  uint64_t lost;

  snprintf(path, sizeof path, "/dev/shm/offloop-abi-%d", (int)getpid());
  IS(offloop_ring_attach_path(path, &r), NOT_FOUND);
  IS(offloop_ring_inspect(path, &stat), NOT_FOUND);
  IS(offloop_ring_attach_path(NULL, &r), INVALID);
  IS(offloop_ring_inspect(NULL, &stat), INVALID);
  IS(offloop_ring_attach_path("/dev/null", &r), INVALID);
  o.kind = "mpsc";
  o.path = path;
  OK(offloop_ring_create(&o, &r));
  IS(offloop_ring_create(&o, &twin), EXISTS);
  IS(offloop_ring_fds(r, fds, 8, &n), UNSUPPORTED);
  OK(offloop_ring_attach_path(path, &twin));
  p = producer_of(r);
  q = producer_of(twin);
  c = consumer_of(twin);
  OK(offloop_producer_push(p, "p", 1, -1));
  OK(offloop_producer_push(q, "q", 1, -1));
  OK(offloop_producer_push(p, "P", 1, -1));
  for (n = 0; n < 3; n += len) OK(offloop_consumer_read(c, records + n, 4 - n, &len)); /* one lane at a time */
  CHECK(n == 3);
  OK(offloop_ring_inspect(path, &stat));
  OK(offloop_value_map_get(stat, "kind", &item));
  OK(offloop_value_get_str(item, &text, &len));
  CHECK(len == 4 && memcmp(text, "mpsc", 4) == 0);
  OK(offloop_value_map_get(stat, "participants", &item));
  OK(offloop_value_array_len(item, &n));
  CHECK(n == 3);
  offloop_value_free(stat);
  OK(offloop_ring_remove(r));
  IS(offloop_ring_inspect(path, &stat), NOT_FOUND);
  offloop_consumer_free(c);
  offloop_producer_free(p);
  offloop_producer_free(q);
  offloop_ring_free(twin);
  offloop_ring_free(r);

  /* broadcast: everybody gets every record; with overwrite, late ones lose the oldest and know how many */
  o.kind = "broadcast";
  o.path = NULL;
  o.capacity = 4096;
  o.on_full = "overwrite";
  OK(offloop_ring_create(&o, &r));
  IS(offloop_ring_remove(r), UNSUPPORTED);
  p = producer_of(r);
  c = consumer_of(r);
  d = consumer_of(r);
  OK(offloop_producer_push(p, "all", 3, -1));
  OK(offloop_consumer_read(c, records, 4, &n));
  CHECK(n == 1 && is(&records[0], "all"));
  OK(offloop_consumer_lost(c, &lost));
  CHECK(lost == 0);
  for (n = 0; n < 20; n++) OK(offloop_producer_push(p, path, 1000, -1));
  OK(offloop_consumer_pop(d, -1, records));
  OK(offloop_consumer_lost(d, &lost));
  CHECK(lost > 0);
  IS(offloop_consumer_lost(d, NULL), INVALID);
  offloop_consumer_free(c);
  offloop_consumer_free(d);
  offloop_producer_free(p);
  offloop_ring_free(r);
}

/* ---- threads ---- */

static void *pop_one(void *consumer) {
  offloop_record record;
  offloop_status status;
  do status = offloop_consumer_pop(consumer, -1, &record);
  while (status == OFFLOOP_ERR_IN_USE); /* the other thread was looking whether this one is inside */
  return (void *)(intptr_t)status;
}

static void threads(void) {
  offloop_ring *r = ring_of(4096, NULL);
  offloop_consumer *c = consumer_of(r), *gone;
  offloop_record record;
  pthread_t thread;
  void *result;
  offloop_status status;

  CHECK(pthread_create(&thread, NULL, pop_one, c) == 0);
  while ((status = offloop_consumer_try_pop(c, &record)) == OFFLOOP_ERR_EMPTY) sched_yield(); /* until the other one is inside */
  CHECK(status == OFFLOOP_ERR_IN_USE);
  IS(offloop_consumer_release(c), IN_USE);
  gone = c;
  offloop_consumer_free(c); /* the call goes on with what it holds */
  IS(offloop_consumer_try_pop(gone, &record), INVALID);
  OK(offloop_ring_close(r));
  CHECK(pthread_join(thread, &result) == 0 && (intptr_t)result == OFFLOOP_ERR_CLOSED);
  offloop_ring_free(r);
}

/* ---- processes ---- */

/* `abi ring FD…`: pops a record and holds it; ends by being killed. */
int ring_child(int count, char **args) {
  int32_t fds[8];
  offloop_ring *r = NULL;
  offloop_consumer *c;
  offloop_record record;
  int i;
  for (i = 0; i < count && i < 8; i++) fds[i] = atoi(args[i]);
  OK(offloop_ring_attach(fds, (size_t)count, &r));
  c = consumer_of(r);
  OK(offloop_consumer_pop(c, -1, &record));
  CHECK(is(&record, "first"));
  if (write(1, "x", 1) != 1) return 1;
  for (;;) pause();
}

static void processes(void) {
  offloop_ring *r = ring_of(4096, NULL);
  offloop_producer *p = producer_of(r);
  offloop_consumer *c;
  offloop_record record;
  int32_t fds[3];
  char texts[3][16], byte;
  size_t n;
  int i, pipes[2], status;
  pid_t pid;

  /* a consumer that is killed while it holds a record leaves it, marked, to its successor */
  OK(offloop_ring_fds(r, fds, 3, &n));
  for (i = 0; i < 3; i++) {
    fds[i] = dup(fds[i]); /* without close-on-exec */
    snprintf(texts[i], sizeof texts[i], "%d", fds[i]);
  }
  CHECK(pipe(pipes) == 0);
  pid = fork();
  if (pid == 0) {
    dup2(pipes[1], 1);
    execl("/proc/self/exe", "abi", "ring", texts[0], texts[1], texts[2], (char *)NULL);
    _exit(127);
  }
  close(pipes[1]);
  OK(offloop_producer_push(p, "first", 5, -1));
  OK(offloop_producer_push(p, "second", 6, -1));
  CHECK(read(pipes[0], &byte, 1) == 1);
  IS(offloop_consumer_new(r, NULL, &c), IN_USE);
  CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid);
  c = consumer_of(r);
  OK(offloop_consumer_pop(c, -1, &record));
  CHECK(is(&record, "first") && record.redelivered);
  OK(offloop_consumer_pop(c, -1, &record));
  CHECK(is(&record, "second") && !record.redelivered);
  close(pipes[0]);
  for (i = 0; i < 3; i++) close(fds[i]);

  /* a forked child is refused, and what it frees stays its parent's */
  OK(offloop_producer_push(p, "third", 5, -1));
  pid = fork();
  if (pid == 0) {
    void *room;
    offloop_producer *p2 = NULL;
    offloop_consumer *c2 = NULL;
    IS(offloop_consumer_try_pop(c, &record), FORKED);
    IS(offloop_consumer_wait(c, -1), FORKED);
    IS(offloop_producer_push(p, "x", 1, -1), FORKED);
    IS(offloop_producer_try_claim(p, 1, &room), FORKED);
    IS(offloop_producer_flush(p), FORKED);
    IS(offloop_ring_fds(r, fds, 3, &n), FORKED);
    IS(offloop_producer_new(r, NULL, &p2), FORKED);
    IS(offloop_consumer_new(r, NULL, &c2), FORKED);
    offloop_ring_close(r);
    offloop_producer_free(p);
    offloop_consumer_free(c);
    offloop_ring_free(r);
    _exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  OK(offloop_consumer_pop(c, -1, &record));
  CHECK(is(&record, "third"));
  OK(offloop_producer_push(p, "fourth", 6, -1));
  OK(offloop_consumer_pop(c, -1, &record));
  CHECK(is(&record, "fourth"));
  offloop_producer_free(p);
  offloop_consumer_free(c);
  offloop_ring_free(r);
}

/* ---- no fds left ---- */

/* Gives every number below the highest open fd to some file, so that `left` below is exact; gives how many there are. */
static int fill_holes(void) {
  int highest = 0, i;
  for (i = 0; i < 1024; i++)
    if (fcntl(i, F_GETFD) >= 0) highest = i;
  for (i = 0; i <= highest; i++)
    if (fcntl(i, F_GETFD) < 0) CHECK(dup2(0, i) == i);
  return highest + 1;
}

/* Allows `n` fds and gives the old limit. */
static struct rlimit allow_fds(int n) {
  struct rlimit old, low;
  CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
  low = old;
  low.rlim_cur = (rlim_t)n;
  CHECK(setrlimit(RLIMIT_NOFILE, &low) == 0);
  return old;
}

static void no_fds(void) {
  int left, made = 0;
  pid_t pid = fork(); /* the holes that are filled are a child's */
  int status;
  if (pid == 0) {
    int open = fill_holes(), before = open_fds();
    for (left = 0; left < 16 && !made; left++) {
      struct rlimit old = allow_fds(open + left);
      offloop_ring *r = NULL, *twin = NULL;
      offloop_producer *p = NULL;
      offloop_consumer *c = NULL;
      int32_t fds[8];
      size_t n;
      int fd;
      offloop_status s = offloop_ring_create(NULL, &r);
      if (!s) s = offloop_ring_fds(r, fds, 8, &n);
      if (!s) s = offloop_ring_attach(fds, n, &twin);
      if (!s) s = offloop_producer_new(r, NULL, &p);
      if (!s) s = offloop_consumer_new(twin, NULL, &c);
      if (!s) s = offloop_consumer_fd(c, &fd);
      made = s == OFFLOOP_OK;
      if (!made) CHECK(s == OFFLOOP_ERR_OS && strstr(offloop_last_error(), "Too many open files"));
      offloop_consumer_free(c);
      offloop_producer_free(p);
      offloop_ring_free(twin);
      offloop_ring_free(r);
      CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
      CHECK(open_fds() == before);
    }
    CHECK(left > 8 && made);
    _exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void rings(void) {
  int before = open_fds();
  use();
  tasks();
  misuse();
  names();
  threads();
  processes();
  no_fds();
  CHECK(fds_settle(before));
}

/* ---- panics ---- */

#ifdef FAILPOINTS
void offloop_failpoint_panic(void);
#define P(call) do { offloop_failpoint_panic(); IS(call, PANIC); CHECK(strstr(offloop_last_error(), "failpoint")); } while (0)
#define PV(call) do { offloop_failpoint_panic(); call; CHECK(strstr(offloop_last_error(), "failpoint")); } while (0)
void ring_panics(void) {
  offloop_ring *r = ring_of(4096, NULL);
  offloop_producer *p = producer_of(r);
  offloop_consumer *c = consumer_of(r);
  uint64_t scratch[64];
  void *x = scratch;
  P(offloop_ring_create(NULL, x)); P(offloop_ring_attach(x, 1, x)); P(offloop_ring_fds(r, x, 1, x)); P(offloop_ring_info(r, x)); P(offloop_ring_close(r)); P(offloop_ring_attach_path("/x", x));
  P(offloop_ring_remove(r)); P(offloop_ring_inspect("/x", x)); P(offloop_consumer_lost(c, x)); P(offloop_consumer_ack(c, 1)); P(offloop_consumer_nack(c, 1)); PV(offloop_ring_free(r));
  P(offloop_producer_new(r, NULL, x)); P(offloop_producer_push(p, "x", 1, -1)); P(offloop_producer_try_push(p, "x", 1)); P(offloop_producer_push_many(p, x, 1, -1, x));
  P(offloop_producer_claim(p, 1, -1, x)); P(offloop_producer_try_claim(p, 1, x)); P(offloop_producer_commit(p, 1)); P(offloop_producer_abort(p)); P(offloop_producer_flush(p));
  P(offloop_producer_fd(p, x)); PV(offloop_producer_free(p));
  P(offloop_consumer_new(r, NULL, x)); P(offloop_consumer_pop(c, -1, x)); P(offloop_consumer_try_pop(c, x)); P(offloop_consumer_read(c, x, 1, x)); P(offloop_consumer_wait(c, -1));
  P(offloop_consumer_release(c)); P(offloop_consumer_fd(c, x)); PV(offloop_consumer_free(c));
  /* everything is still there */
  OK(offloop_producer_push(p, "x", 1, -1));
  OK(offloop_consumer_pop(c, -1, x));
  offloop_producer_free(p), offloop_consumer_free(c), offloop_ring_free(r);
}
#endif

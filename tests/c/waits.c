/* Calls from inside callbacks, endless waits that signals interrupt, and frees of what another thread's call holds: parts of the ABI suite. */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>

/* Without a lock, because a signal handler counts too. */
static int get(int *flag) { return __atomic_load_n(flag, __ATOMIC_SEQ_CST); }
static void set(int *flag, int to) { __atomic_store_n(flag, to, __ATOMIC_SEQ_CST); }
static void add(int *flag) { __atomic_add_fetch(flag, 1, __ATOMIC_SEQ_CST); }
static void until(int *flag, int want) { while (get(flag) < want) sched_yield(); }

static int32_t give_int(offloop_task_ctx *ctx, void *arg) {
  offloop_value *v = NULL;
  OK(offloop_value_new_int((intptr_t)arg, &v));
  OK(offloop_ctx_set_result(ctx, &v));
  return OFFLOOP_OK;
}
static int gate, held;
static int32_t hold(offloop_task_ctx *ctx, void *arg) {
  add(&held);
  until(&gate, 1);
  return give_int(ctx, arg);
}

/* ---- a callback may call whatever anybody else may ---- */

struct request {
  offloop_pool *pool;
  offloop_cq *cq;
  offloop_task *task;
  int left, done, freed;
  pthread_t thread;
};
static void on_freed(void *user) { add(&((struct request *)user)->freed); }

static void submit_next(struct request *r);
static void again(void *user, offloop_status status, offloop_value *value) {
  struct request *r = user;
  offloop_task *other = NULL, *own = r->task;
  offloop_event event;
  size_t count = 1;

  CHECK(status == OFFLOOP_OK && take_int(value) == r->left);
  OK(offloop_pool_submit(r->pool, give_int, (void *)7, NULL, NULL, &other));
  OK(offloop_task_wait(other, -1, &value));
  CHECK(take_int(value) == 7);
  offloop_task_free(other);
  OK(offloop_task_cancel(own)); /* it is done: nothing happens */
  IS(offloop_task_wait(own, -1, NULL), INVALID); /* this call has its outcome */
  offloop_task_free(own);
  IS(offloop_task_cancel(own), INVALID);
  if (r->cq) {
    CHECK(pthread_equal(pthread_self(), r->thread));
    OK(offloop_cq_drain(r->cq, &event, 1, &count));
    CHECK(count == 0);
  }
  if (--r->left > 0)
    submit_next(r);
  else
    set(&r->done, 1);
}
static void submit_next(struct request *r) {
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  o.cq = r->cq;
  o.on_done = again;
  o.user = r;
  o.user_free = on_freed;
  OK(offloop_pool_submit(r->pool, give_int, (void *)(intptr_t)r->left, NULL, &o, &r->task));
}

/* What a running function does to its own task. */
static int32_t meddle(offloop_task_ctx *ctx, void *arg) {
  struct request *r = arg;
  offloop_task *child = NULL;
  offloop_value *v = NULL;
  OK(offloop_ctx_cancelled(ctx));
  OK(offloop_pool_submit(r->pool, give_int, (void *)9, NULL, NULL, &child));
  OK(offloop_task_wait(child, -1, &v));
  OK(offloop_ctx_progress(ctx, &v));
  CHECK(v == NULL);
  offloop_task_free(child);
  IS(offloop_task_wait(r->task, 0, NULL), TIMEOUT);
  OK(offloop_task_cancel(r->task));
  offloop_task_free(r->task);
  IS(offloop_ctx_cancelled(ctx), CANCELLED);
  add(&r->done);
  return give_int(ctx, arg);
}
static void on_cancelled(void *user, offloop_status status, offloop_value *value) {
  struct request *r = user;
  CHECK(status == OFFLOOP_ERR_CANCELLED);
  offloop_value_free(value);
  add(&r->done);
}

/* What may wait for what, with one thread: a callback for tasks and for other callbacks; a function for its own pool never. */
static void on_inner(void *user, offloop_status status, offloop_value *value) {
  CHECK(status == OFFLOOP_OK);
  offloop_value_free(value);
  set(user, 1);
}
static void on_outer(void *user, offloop_status status, offloop_value *value) {
  struct request *r = user;
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_task *task = NULL;
  int inner = 0, attached = 0;
  CHECK(status == OFFLOOP_OK && take_int(value) == 1);
  o.on_done = on_inner;
  o.user = &inner;
  OK(offloop_pool_submit(r->pool, give_int, (void *)2, NULL, &o, NULL));
  until(&inner, 1);
  OK(offloop_pool_submit(r->pool, give_int, (void *)3, NULL, NULL, &task));
  OK(offloop_task_on_done(task, on_inner, &attached, NULL));
  until(&attached, 1);
  offloop_task_free(task);
  set(&r->done, 1);
}
static int32_t wait_for_own_pool(offloop_task_ctx *ctx, void *arg) {
  struct request *r = arg;
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_task *task = NULL;
  OK(offloop_pool_submit(r->pool, give_int, (void *)4, NULL, NULL, &task));
  IS(offloop_task_wait(task, -1, NULL), INVALID);
  CHECK(strstr(offloop_last_error(), "wait for ever") && strstr(offloop_last_error(), "max_workers=1"));
  IS(offloop_task_wait(task, 1000000, NULL), TIMEOUT);
  o.on_full = OFFLOOP_ON_FULL_WAIT;
  IS(offloop_pool_submit(r->pool, give_int, NULL, NULL, &o, NULL), INVALID);
  IS(offloop_pool_shutdown(r->pool, -1), INVALID);
  r->task = task;
  return give_int(ctx, (void *)5);
}
static void nested_waits(void) {
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  struct request r;
  offloop_task *task = NULL;
  offloop_value *v = NULL;

  memset(&r, 0, sizeof r);
  r.pool = pool_of(1, 1);
  o.on_done = on_outer;
  o.user = &r;
  OK(offloop_pool_submit(r.pool, give_int, (void *)1, NULL, &o, NULL));
  until(&r.done, 1);
  OK(offloop_pool_submit(r.pool, wait_for_own_pool, &r, NULL, NULL, &task));
  OK(offloop_task_wait(task, -1, &v));
  CHECK(take_int(v) == 5);
  OK(offloop_task_wait(r.task, -1, &v));
  CHECK(take_int(v) == 4);
  offloop_task_free(r.task);
  offloop_task_free(task);
  OK(offloop_pool_shutdown(r.pool, -1));
  offloop_pool_free(r.pool);
}

void reentry(void) {
  enum { ROUNDS = 200 };
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  struct request r;
  offloop_event event;
  size_t count;
  int with_queue;

  nested_waits();
  memset(&r, 0, sizeof r);
  r.pool = pool_of(2, 100);
  r.thread = pthread_self();
  for (with_queue = 0; with_queue < 2; with_queue++) {
    if (with_queue) OK(offloop_cq_new(&r.cq));
    r.left = ROUNDS;
    set(&r.done, 0);
    set(&r.freed, 0);
    submit_next(&r);
    while (with_queue && !get(&r.done)) {
      OK(offloop_cq_wait(r.cq, -1));
      OK(offloop_cq_drain(r.cq, &event, 1, &count));
      CHECK(count == 0);
    }
    until(&r.done, 1);
    until(&r.freed, ROUNDS);
  }

  set(&r.done, 0);
  o.on_done = on_cancelled;
  o.user = &r;
  OK(offloop_pool_submit(r.pool, meddle, &r, NULL, &o, &r.task));
  until(&r.done, 2);
  offloop_cq_free(r.cq);
  OK(offloop_pool_shutdown(r.pool, -1));
  offloop_pool_free(r.pool);
}

/* ---- a wait without end goes on after a signal ---- */

static int handled;
static void on_signal(int number) {
  (void)number;
  add(&handled);
}

struct scene {
  offloop_pool *pool;
  offloop_task *task;
  offloop_cq *cq;
  offloop_producer *producer;
  offloop_consumer *consumer;
  int over;
};
static void wait_for_task(struct scene *s) {
  offloop_value *v = NULL;
  OK(offloop_task_wait(s->task, -1, &v));
  CHECK(take_int(v) == 42);
}
static void wait_for_cq(struct scene *s) { OK(offloop_cq_wait(s->cq, -1)); }
static void wait_for_room(struct scene *s) {
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_task *task = NULL;
  offloop_value *v = NULL;
  o.on_full = OFFLOOP_ON_FULL_WAIT;
  OK(offloop_pool_submit(s->pool, give_int, (void *)5, NULL, &o, &task));
  OK(offloop_task_wait(task, -1, &v));
  CHECK(take_int(v) == 5);
  offloop_task_free(task);
}
static void wait_for_end(struct scene *s) { OK(offloop_pool_shutdown(s->pool, -1)); }
static void wait_for_record(struct scene *s) {
  offloop_record record;
  OK(offloop_consumer_pop(s->consumer, -1, &record));
  CHECK(record.len == 5 && memcmp(record.data, "after", 5) == 0);
}
static void wait_to_push(struct scene *s) { OK(offloop_producer_push(s->producer, "after", 5, -1)); }

struct wait {
  struct scene *scene;
  void (*call)(struct scene *);
  int over;
};
static void *run_wait(void *arg) {
  struct wait *w = arg;
  w->call(w->scene);
  set(&w->over, 1);
  return NULL;
}
/* Interrupts `call` again and again, then lets it end by `release`. */
static void storm(struct scene *s, void (*call)(struct scene *), void (*release)(struct scene *)) {
  struct wait w;
  pthread_t thread;
  int i;
  memset(&w, 0, sizeof w);
  w.scene = s;
  w.call = call;
  CHECK(pthread_create(&thread, NULL, run_wait, &w) == 0);
  for (i = 0; i < 300; i++) {
    int before = get(&handled);
    CHECK(pthread_kill(thread, SIGUSR1) == 0);
    until(&handled, before + 1);
  }
  CHECK(!get(&w.over));
  release(s);
  CHECK(pthread_join(thread, NULL) == 0 && w.over);
}
static void open_gate(struct scene *s) {
  (void)s;
  set(&gate, 1);
}
static void push_one(struct scene *s) { OK(offloop_producer_push(s->producer, "after", 5, -1)); }
static void pop_all(struct scene *s) {
  offloop_record record;
  do OK(offloop_consumer_pop(s->consumer, -1, &record));
  while (record.len != 5);
}

/* A pool of one worker that is held, with room for one more. */
static void hold_pool(struct scene *s) {
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  set(&gate, 0);
  set(&held, 0);
  s->pool = pool_of(1, 1);
  o.cq = s->cq;
  OK(offloop_pool_submit(s->pool, hold, (void *)42, NULL, s->cq ? &o : NULL, &s->task));
  until(&held, 1);
}
static void end_pool(struct scene *s) {
  offloop_task_free(s->task);
  OK(offloop_pool_shutdown(s->pool, -1));
  offloop_pool_free(s->pool);
}

void signals(void) {
  static char filler[400];
  struct sigaction action, old;
  struct scene s;
  offloop_ring_options ro = OFFLOOP_RING_OPTIONS_INIT;
  offloop_ring *ring = NULL;

  memset(&action, 0, sizeof action);
  memset(&s, 0, sizeof s);
  action.sa_handler = on_signal; /* without SA_RESTART */
  CHECK(sigaction(SIGUSR1, &action, &old) == 0);

  hold_pool(&s);
  storm(&s, wait_for_task, open_gate);
  end_pool(&s);

  hold_pool(&s);
  OK(offloop_pool_submit(s.pool, give_int, NULL, NULL, NULL, NULL)); /* the queue is full */
  storm(&s, wait_for_room, open_gate);
  end_pool(&s);

  hold_pool(&s);
  storm(&s, wait_for_end, open_gate);
  end_pool(&s);

  OK(offloop_cq_new(&s.cq));
  hold_pool(&s);
  storm(&s, wait_for_cq, open_gate);
  end_pool(&s);
  offloop_cq_free(s.cq);

  ro.kind = "spsc";
  ro.capacity = 4096;
  OK(offloop_ring_create(&ro, &ring));
  OK(offloop_producer_new(ring, NULL, &s.producer));
  OK(offloop_consumer_new(ring, NULL, &s.consumer));
  storm(&s, wait_for_record, push_one);
  while (offloop_producer_try_push(s.producer, filler, sizeof filler) == OFFLOOP_OK) {}
  storm(&s, wait_to_push, pop_all);
  offloop_producer_free(s.producer);
  offloop_consumer_free(s.consumer);
  offloop_ring_free(ring);
  CHECK(sigaction(SIGUSR1, &old, NULL) == 0);
}

/* ---- a free of what another thread's call is moving ---- */

struct moving {
  offloop_pool *pool;
  offloop_buffer *buffer;
  offloop_status status;
  offloop_task *task;
};
static void *move_into_full_pool(void *arg) {
  struct moving *m = arg;
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  o.on_full = OFFLOOP_ON_FULL_WAIT;
  m->status = offloop_pool_submit_op(m->pool, "noop", &m->buffer, 1, NULL, &o, &m->task);
  return NULL;
}
static int buffers_freed;
static void on_buffer_free(void *user) {
  (void)user;
  add(&buffers_freed);
}

void frees(void) {
  static char text[] = "the caller's bytes";
  int accepted;
  for (accepted = 0; accepted < 2; accepted++) {
    struct scene s;
    struct moving m;
    offloop_buffer *buffer = NULL;
    offloop_value *v = NULL;
    pthread_t thread;
    uint8_t *data;
    const uint8_t *bytes;
    size_t len;

    memset(&s, 0, sizeof s);
    memset(&m, 0, sizeof m);
    set(&buffers_freed, 0);
    hold_pool(&s);
    OK(offloop_pool_submit(s.pool, give_int, NULL, NULL, NULL, NULL)); /* the queue is full */
    OK(offloop_buffer_from_foreign(text, sizeof text, NULL, on_buffer_free, &buffer));
    m.pool = s.pool;
    m.buffer = buffer;
    CHECK(pthread_create(&thread, NULL, move_into_full_pool, &m) == 0);
    while (offloop_buffer_data(buffer, &data, &len) != OFFLOOP_ERR_IN_USE) sched_yield();
    offloop_buffer_free(buffer);
    IS(offloop_buffer_data(buffer, &data, &len), INVALID); /* at once */
    offloop_buffer_free(buffer);
    CHECK(get(&buffers_freed) == 0); /* the call has its bytes */
    if (accepted) {
      set(&gate, 1);
      CHECK(pthread_join(thread, NULL) == 0);
      CHECK(m.status == OFFLOOP_OK && m.buffer == NULL);
      OK(offloop_task_wait(m.task, -1, &v));
      OK(offloop_value_get_bytes(v, &bytes, &len));
      CHECK(len == sizeof text && memcmp(bytes, text, len) == 0);
      offloop_value_free(v);
      offloop_task_free(m.task);
    } else {
      OK(offloop_pool_shutdown(s.pool, 0));
      CHECK(pthread_join(thread, NULL) == 0);
      CHECK(m.status == OFFLOOP_ERR_CLOSED && m.buffer == buffer);
      set(&gate, 1);
    }
    IS(offloop_buffer_data(buffer, &data, &len), INVALID);
    until(&buffers_freed, 1);
    end_pool(&s);
    CHECK(get(&buffers_freed) == 1);
  }
}

/* The C ABI under good and bad use; rings are in rings.c, channels in channels.c, process pools in processes.c, clusters in clusters.c, threads that get in each other's way in waits.c. `abi` runs every section,
 * `abi SECTION…` some; `abi child FD` is the other process of the buffer test. Compiled with -DFAILPOINTS against a library with that
 * feature, it also makes every export panic. */
#define _GNU_SOURCE
#include "check.h"
#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

long checks;
#define MISALIGNED ((void *)((uintptr_t)scratch + 1))
static uint64_t scratch[64];

static int freed, called;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static void bump(int *counter) {
  pthread_mutex_lock(&lock);
  ++*counter;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}
static int read_counter(int *counter) {
  int n;
  pthread_mutex_lock(&lock);
  n = *counter;
  pthread_mutex_unlock(&lock);
  return n;
}
static void await_count(int *counter, int want) {
  pthread_mutex_lock(&lock);
  while (*counter < want) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
}
static void on_free(void *arg) { (void)arg; bump(&freed); }

static offloop_buffer *buffer(const char *text) {
  offloop_buffer *b = NULL;
  OK(offloop_buffer_from_bytes(text, strlen(text), &b));
  return b;
}
static offloop_value *integer(int64_t n) {
  offloop_value *v = NULL;
  OK(offloop_value_new_int(n, &v));
  return v;
}
offloop_pool *pool_of(int64_t workers, int64_t queue) {
  offloop_pool_options o = OFFLOOP_POOL_OPTIONS_INIT;
  offloop_pool *p = NULL;
  o.max_workers = workers;
  o.max_queue = queue;
  OK(offloop_pool_new(&o, &p));
  return p;
}

/* ---- C functions ---- */

static int gate_open, started;
static int32_t wait_at_gate(offloop_task_ctx *ctx, void *arg) {
  (void)ctx, (void)arg;
  bump(&started);
  await_count(&gate_open, 1);
  return OFFLOOP_OK;
}
static int32_t add_one(offloop_task_ctx *ctx, void *arg) {
  offloop_value *v = NULL;
  int32_t s = offloop_value_new_int((int64_t)(intptr_t)arg + 1, &v);
  return s ? s : offloop_ctx_set_result(ctx, &v);
}
static int32_t fail_with(offloop_task_ctx *ctx, void *arg) {
  offloop_ctx_set_error(ctx, "the text");
  return (int32_t)(intptr_t)arg;
}
static int32_t until_cancelled(offloop_task_ctx *ctx, void *arg) {
  (void)arg;
  bump(&started);
  for (;;) {
    int32_t s = offloop_ctx_cancelled(ctx);
    if (s) return s;
  }
}
static void on_done(void *user, offloop_status status, offloop_value *value) {
  *(offloop_status *)user = status;
  offloop_value_free(value);
  bump(&called);
}

static void functions(void) {
  offloop_pool *pool = pool_of(1, 2);
  offloop_task *task = NULL, *waiting = NULL, *third = NULL;
  offloop_value *v = NULL;
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_status seen = 1;
  int64_t n = 0;

  freed = called = started = gate_open = 0;
  OK(offloop_pool_submit(pool, add_one, (void *)41, on_free, NULL, &task));
  OK(offloop_task_wait(task, -1, &v));
  OK(offloop_value_get_int(v, &n));
  CHECK(n == 42);
  IS(offloop_task_wait(task, -1, &v), INVALID); /* taken once */
  offloop_task_free(task);
  offloop_value_free(v);
  await_count(&freed, 1);

  /* errors: a status of the table, and any other number */
  OK(offloop_pool_submit(pool, fail_with, (void *)(intptr_t)OFFLOOP_ERR_NOT_FOUND, on_free, NULL, &task));
  IS(offloop_task_wait(task, -1, NULL), NOT_FOUND);
  CHECK(strcmp(offloop_last_error(), "not found: the text") == 0);
  offloop_task_free(task);
  OK(offloop_pool_submit(pool, fail_with, (void *)7, on_free, NULL, &task));
  IS(offloop_task_wait(task, -1, NULL), TASK_FAILED);
  CHECK(strstr(offloop_last_error(), "status=7"));
  offloop_task_free(task);
  await_count(&freed, 3);

  /* arg_free: running, queued and cancelled, refused because full, queue timeout */
  OK(offloop_pool_submit(pool, wait_at_gate, NULL, on_free, NULL, &task));
  await_count(&started, 1);
  OK(offloop_pool_submit(pool, add_one, NULL, on_free, NULL, &waiting));
  o.queue_timeout_ns = 1000000;
  OK(offloop_pool_submit(pool, add_one, NULL, on_free, &o, &third));
  IS(offloop_task_wait(third, -1, NULL), TIMEOUT);
  await_count(&freed, 4);
  offloop_task_free(third);
  OK(offloop_pool_submit(pool, add_one, NULL, on_free, NULL, &third));
  memset(&o, 0, sizeof o);
  o.struct_size = sizeof o;
  o.on_done = on_done;
  o.user = &seen;
  o.user_free = on_free;
  IS(offloop_pool_submit(pool, add_one, NULL, on_free, &o, NULL), FULL);
  CHECK(read_counter(&freed) == 4 && read_counter(&called) == 0); /* the failed call took nothing */
  IS(offloop_task_wait(waiting, 0, NULL), TIMEOUT);
  OK(offloop_task_cancel(waiting));
  IS(offloop_task_wait(waiting, -1, NULL), CANCELLED);
  OK(offloop_task_cancel(waiting)); /* nothing happens */
  await_count(&freed, 5);
  bump(&gate_open);
  OK(offloop_task_wait(task, -1, &v));
  CHECK(v == NULL); /* no result */
  OK(offloop_task_wait(third, -1, NULL));
  await_count(&freed, 7);
  offloop_task_free(task);
  offloop_task_free(waiting);
  offloop_task_free(third);

  /* a running task is cancelled and timed out */
  started = 0;
  OK(offloop_pool_submit(pool, until_cancelled, NULL, on_free, NULL, &task));
  await_count(&started, 1);
  OK(offloop_task_cancel(task));
  IS(offloop_task_wait(task, -1, NULL), CANCELLED);
  offloop_task_free(task);
  memset(&o, 0, sizeof o);
  o.struct_size = sizeof o;
  o.timeout_ns = 1000000;
  OK(offloop_pool_submit(pool, until_cancelled, NULL, on_free, &o, &task));
  IS(offloop_task_wait(task, -1, NULL), TIMEOUT);
  offloop_task_free(task);
  await_count(&freed, 9);

  /* callbacks: at submit, and later, on a task that is done */
  o.timeout_ns = 0;
  o.on_done = on_done;
  o.user = &seen;
  o.user_free = on_free;
  OK(offloop_pool_submit(pool, fail_with, (void *)(intptr_t)OFFLOOP_ERR_CORRUPT, on_free, &o, NULL));
  await_count(&freed, 11);
  CHECK(called == 1 && seen == OFFLOOP_ERR_CORRUPT);
  OK(offloop_pool_submit(pool, add_one, NULL, on_free, NULL, &task));
  OK(offloop_task_on_done(task, on_done, &seen, on_free));
  await_count(&freed, 13);
  CHECK(called == 2 && seen == OFFLOOP_OK);
  offloop_task_free(task);

  /* a closed pool */
  OK(offloop_pool_shutdown(pool, -1));
  IS(offloop_pool_submit(pool, add_one, NULL, on_free, &o, NULL), CLOSED);
  CHECK(read_counter(&freed) == 13 && called == 2);
  offloop_pool_free(pool);
}

/* ---- ops, batches ---- */

static void ops(void) {
  offloop_pool *pool = pool_of(2, 1000);
  offloop_buffer *in = buffer("abc"), *same[2];
  offloop_value *params = NULL, *v = NULL, *sleep_ms = NULL;
  offloop_task *tasks[100], *task = NULL;
  offloop_call calls[100];
  offloop_buffer *inputs[100];
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_stats stats;
  const uint8_t *data;
  size_t len, i;
  offloop_buffer *keep = in;

  IS(offloop_pool_submit_op(pool, "sha255", &in, 1, NULL, NULL, &task), NOT_FOUND);
  CHECK(strstr(offloop_last_error(), "op=sha255"));
  OK(offloop_value_new_map(&params));
  v = integer(1);
  OK(offloop_value_map_set(params, "no_such_option", &v));
  IS(offloop_pool_submit_op(pool, "sha256", &in, 1, params, NULL, &task), INVALID);
  CHECK(strstr(offloop_last_error(), "no_such_option"));
  same[0] = same[1] = in;
  IS(offloop_pool_submit_op(pool, "noop", same, 2, NULL, NULL, NULL), IN_USE); /* one buffer twice */
  CHECK(in == keep && same[0] == in);
  { /* untouched: still readable */
    uint8_t *p;
    OK(offloop_buffer_data(in, &p, &len));
    CHECK(len == 3 && !memcmp(p, "abc", 3));
  }
  offloop_value_free(params);

  OK(offloop_value_new_map(&params));
  OK(offloop_value_new_float(0.5, &sleep_ms));
  OK(offloop_value_map_set(params, "sleep_ms", &sleep_ms));
  OK(offloop_pool_submit_op(pool, "noop", &in, 1, params, NULL, &task));
  CHECK(in == NULL);
  IS(offloop_buffer_data(keep, (uint8_t **)&data, &len), INVALID); /* moved */
  OK(offloop_task_wait(task, -1, &v));
  OK(offloop_value_get_bytes(v, &data, &len));
  CHECK(len == 3 && !memcmp(data, "abc", 3));
  OK(offloop_value_take_buffer(&v, &in));
  offloop_buffer_free(in);
  offloop_task_free(task);
  offloop_value_free(params);

  /* a batch that never fits is told so, and waits for nothing */
  {
    offloop_pool *narrow = pool_of(1, 2);
    memset(calls, 0, sizeof calls);
    for (i = 0; i < 3; i++) calls[i].function = add_one;
    for (i = OFFLOOP_ON_FULL_REJECT; i <= OFFLOOP_ON_FULL_WAIT; i++) {
      o.on_full = (uint32_t)i;
      IS(offloop_pool_submit_many(narrow, calls, 3, &o, NULL), FULL);
      CHECK(strstr(offloop_last_error(), "max_queue=2, batch=3"));
    }
    o.on_full = 0;
    offloop_pool_free(narrow);
  }

  /* all or nothing */
  freed = 0;
  memset(calls, 0, sizeof calls);
  for (i = 0; i < 100; i++) {
    if (i % 2) {
      calls[i].function = add_one;
      calls[i].arg = (void *)i;
      calls[i].arg_free = on_free;
    } else {
      inputs[i] = buffer("x");
      calls[i].op = "sha256";
      calls[i].inputs_io = &inputs[i];
      calls[i].input_count = 1;
    }
  }
  calls[98].op = "nope";
  IS(offloop_pool_submit_many(pool, calls, 100, NULL, tasks), NOT_FOUND);
  CHECK(read_counter(&freed) == 0 && inputs[0] != NULL && inputs[96] != NULL);
  calls[98].op = NULL;
  IS(offloop_pool_submit_many(pool, calls, 100, NULL, tasks), INVALID);
  calls[98].op = "sha256";
  o.on_done = on_done;
  IS(offloop_pool_submit_many(pool, calls, 100, &o, tasks), INVALID);
  CHECK(read_counter(&freed) == 0);
  o.on_done = NULL;
  o.priority = 128; /* a batch of nothing is checked as any other */
  IS(offloop_pool_submit_many(pool, NULL, 0, &o, NULL), INVALID);
  CHECK(strstr(offloop_last_error(), "priority"));
  o.priority = 0;
  OK(offloop_pool_submit_many(pool, NULL, 0, &o, tasks));
  OK(offloop_pool_submit_many(pool, calls, 100, NULL, tasks));
  for (i = 0; i < 100; i++) {
    OK(offloop_task_wait(tasks[i], -1, &v));
    if (i % 2) {
      int64_t n = 0;
      OK(offloop_value_get_int(v, &n));
      CHECK(n == (int64_t)i + 1);
    } else {
      OK(offloop_value_get_bytes(v, &data, &len));
      CHECK(len == 32 && data[0] == 0x2d && inputs[i] == NULL); /* sha256("x") */
    }
    offloop_value_free(v);
    offloop_task_free(tasks[i]);
  }
  await_count(&freed, 50);

  OK(offloop_pool_shutdown(pool, -1));
  IS(offloop_pool_submit_many(pool, NULL, 0, NULL, NULL), CLOSED);
  memset(&stats, 0, sizeof stats);
  stats.struct_size = sizeof stats;
  OK(offloop_pool_stats(pool, &stats));
  CHECK(stats.submitted == 101 && stats.completed == 101 && stats.run.count == 101 && stats.struct_size == sizeof stats);
  OK(offloop_metrics(OFFLOOP_METRICS_PROMETHEUS, &v));
  offloop_value_free(v);
  OK(offloop_pool_ops(pool, &v));
  OK(offloop_value_array_len(v, &len));
  CHECK(len >= 2);
  offloop_value_free(v);
  offloop_pool_free(pool);
}

/* ---- one op of each family, with good input and with hostile ---- */

/* What an op makes of `data`: its status, and its result unless `result` is NULL. Frees `params`. */
static offloop_status run_op(offloop_pool *pool, const char *op, const void *data, size_t len, offloop_value *params, offloop_value **result) {
  offloop_buffer *in = NULL;
  offloop_task *task = NULL;
  offloop_status status;
  OK(offloop_buffer_from_bytes(data, len, &in));
  status = offloop_pool_submit_op(pool, op, &in, 1, params, NULL, &task);
  if (status == OFFLOOP_OK) {
    status = offloop_task_wait(task, -1, result);
    offloop_task_free(task);
  }
  offloop_buffer_free(in);
  offloop_value_free(params);
  return status;
}
static offloop_status try_op(offloop_pool *pool, const char *op, const void *data, size_t len, offloop_value *params) {
  offloop_value *result = NULL;
  offloop_status status = run_op(pool, op, data, len, params, &result);
  CHECK((status == OFFLOOP_OK) == (result != NULL));
  offloop_value_free(result);
  return status;
}
static offloop_value *option(const char *name, int64_t n) {
  offloop_value *map = NULL, *v = integer(n);
  OK(offloop_value_new_map(&map));
  OK(offloop_value_map_set(map, name, &v));
  return map;
}
static int has_op(offloop_pool *pool, const char *op) {
  offloop_status status = try_op(pool, op, "", 0, NULL);
  if (status == OFFLOOP_ERR_NOT_FOUND) printf("  skipped: this library was built without %s\n", op);
  return status != OFFLOOP_ERR_NOT_FOUND;
}
/* Cut short anywhere and with flipped bits: some error of the data, or a result; what counts is what a sanitizer says. */
static void damage(offloop_pool *pool, const char *op, const uint8_t *data, size_t len, int times) {
  uint8_t *copy = malloc(len);
  uint64_t x = 0x9e3779b97f4a7c15u ^ len;
  int i;
  CHECK(copy != NULL);
  for (i = 0; i < times; i++) {
    size_t cut = len;
    offloop_status status;
    memcpy(copy, data, len);
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    if (i % 2) cut = x % len;
    else copy[x % len] ^= (uint8_t)(1u << (x >> 61));
    status = try_op(pool, op, copy, cut, NULL);
    CHECK(status == OFFLOOP_OK || status == OFFLOOP_ERR_CORRUPT || status == OFFLOOP_ERR_TOO_LARGE || status == OFFLOOP_ERR_UNSUPPORTED || status == OFFLOOP_ERR_INVALID);
  }
  free(copy);
}

static void compress_ops(offloop_pool *pool) {
  static const char *pairs[][2] = {{"gzip", "gunzip"}, {"zlib", "unzlib"}, {"deflate", "inflate"}, {"zstd", "unzstd"}, {"brotli", "unbrotli"}, {"lz4", "unlz4"}};
  static uint8_t text[20000];
  size_t i;
  for (i = 0; i < sizeof text; i++) text[i] = (uint8_t)(i * i >> 7);
  for (i = 0; i < sizeof pairs / sizeof *pairs; i++) {
    offloop_value *packed = NULL, *back = NULL;
    const uint8_t *data;
    size_t len;
    OK(run_op(pool, pairs[i][0], text, sizeof text, NULL, &packed));
    OK(offloop_value_get_bytes(packed, &data, &len));
    OK(run_op(pool, pairs[i][1], data, len, NULL, &back));
    IS(try_op(pool, pairs[i][1], data, len / 2, NULL), CORRUPT);
    IS(try_op(pool, pairs[i][1], data, len, option("max_output", 1000)), TOO_LARGE);
    damage(pool, pairs[i][1], data, len, 200);
    OK(offloop_value_get_bytes(back, &data, &len));
    CHECK(len == sizeof text && !memcmp(data, text, len));
    offloop_value_free(packed);
    offloop_value_free(back);
  }
  IS(try_op(pool, "gzip", text, sizeof text, option("level", 10)), INVALID);
}

static void image_ops(offloop_pool *pool) {
  static const char *names[] = {"420.jpg", "progressive.jpg", "cmyk.jpg", "orientation6.jpg", "rgb8i.png", "gray16.png", "trns.png", "animated.gif", "animated.webp", "lossy_alpha.webp", "lossless.webp", "indexed.bmp"};
  /* A bitmap header of 65,000 x 65,000 pixels and nothing behind it. */
  static const uint8_t bomb[54] = {'B', 'M', 54, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0, 0xe8, 0xfd, 0, 0, 0xe8, 0xfd, 0, 0, 1, 0, 24};
  size_t i;
  IS(try_op(pool, "image.thumbnail", "no image", 8, option("width", 8)), UNSUPPORTED);
  IS(try_op(pool, "image.thumbnail", bomb, sizeof bomb, option("width", 8)), TOO_LARGE);
  for (i = 0; i < sizeof names / sizeof *names; i++) {
    static uint8_t data[1 << 20];
    char path[128];
    FILE *file;
    size_t len;
    snprintf(path, sizeof path, "core/tests/images/%s", names[i]);
    file = fopen(path, "rb");
    CHECK(file != NULL);
    len = fread(data, 1, sizeof data, file);
    fclose(file);
    OK(try_op(pool, "image.thumbnail", data, len, option("width", 8)));
    IS(try_op(pool, "image.thumbnail", data, len / 3, option("width", 8)), CORRUPT);
    damage(pool, "image.convert", data, len, 60);
    damage(pool, "image.probe", data, len, 60);
  }
}

static void families(void) {
  offloop_pool *pool = pool_of(2, 1024);
  if (has_op(pool, "sha256")) damage(pool, "sha256", (const uint8_t *)"abcdef", 6, 10);
  if (has_op(pool, "gzip")) compress_ops(pool);
  if (has_op(pool, "image.probe")) image_ops(pool);
  if (has_op(pool, "json.validate")) {
    static const char json[] = "{\"a\": [1, 2.5e3, null, \"\\u00e9\\n\"], \"b\": {\"c\": true}}";
    static char deep[100000];
    memset(deep, '[', sizeof deep);
    OK(try_op(pool, "json.minify", json, sizeof json - 1, NULL));
    IS(try_op(pool, "json.minify", json, sizeof json - 2, NULL), CORRUPT);
    IS(try_op(pool, "json.minify", "[\"\xff\"]", 5, NULL), CORRUPT);
    CHECK(try_op(pool, "json.minify", deep, sizeof deep, NULL) != OFFLOOP_OK);
    damage(pool, "json.minify", (const uint8_t *)json, sizeof json - 1, 500);
    damage(pool, "json.format", (const uint8_t *)json, sizeof json - 1, 500);
  }
  if (has_op(pool, "csv.to_arrow")) {
    static const char csv[] = "id,name,share\n1,\"a,b\",0.5\n2,\"c\"\"d\",\n3,e,1e3\n";
    OK(try_op(pool, "csv.to_arrow", csv, sizeof csv - 1, NULL));
    IS(try_op(pool, "csv.to_arrow", "a,b\n1,\"open", 11, NULL), CORRUPT);
    IS(try_op(pool, "csv.to_arrow", "a,b\n1,2,3\n", 10, NULL), CORRUPT);
    damage(pool, "csv.to_arrow", (const uint8_t *)csv, sizeof csv - 1, 500);
    damage(pool, "csv.probe", (const uint8_t *)csv, sizeof csv - 1, 500);
  }
  if (has_op(pool, "password.verify")) {
    static const char absurd[] = "$argon2id$v=19$m=4294967295,t=4294967295,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    offloop_value *params = NULL, *hash = NULL;
    IS(try_op(pool, "password.hash", "secret", 6, option("iterations", 4294967295)), TOO_LARGE);
    IS(try_op(pool, "password.hash", "secret", 6, option("memory_kib", 4294967295)), TOO_LARGE);
    IS(try_op(pool, "password.hash", "secret", 6, option("memory_kib", 1)), INVALID);
    OK(try_op(pool, "password.hash", "secret", 6, option("memory_kib", 64)));
    OK(offloop_value_new_map(&params));
    OK(offloop_value_new_str(absurd, OFFLOOP_NUL_TERMINATED, &hash));
    OK(offloop_value_map_set(params, "hash", &hash));
    IS(try_op(pool, "password.verify", "secret", 6, params), TOO_LARGE);
  }
  OK(offloop_pool_shutdown(pool, -1));
  offloop_pool_free(pool);
}

/* ---- completion queue ---- */

static void completion(void) {
  enum { ROUNDS = 20000, BATCH = 16 };
  offloop_pool *pool = pool_of(2, 65536);
  offloop_cq *cq = NULL;
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT, with_callback = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_event events[BATCH];
  offloop_status seen = 1;
  struct pollfd fd = {-1, POLLIN, 0};
  uint64_t next = 0, done = 0, sum = 0;
  size_t count, i;

  OK(offloop_cq_new(&cq));
  OK(offloop_cq_fd(cq, &fd.fd));
  IS(offloop_cq_wait(cq, 0), TIMEOUT);
  o.cq = cq;
  o.tag = UINT64_MAX;
  IS(offloop_pool_submit(pool, add_one, NULL, NULL, &o, NULL), INVALID);
  called = freed = 0;
  with_callback.cq = cq;
  with_callback.on_done = on_done;
  with_callback.user = &seen;
  with_callback.user_free = on_free;
  while (done < ROUNDS) {
    while (next < ROUNDS && next - done < 64) {
      o.tag = next;
      if (next % 10 == 0)
        OK(offloop_pool_submit(pool, add_one, (void *)(intptr_t)next, NULL, &with_callback, NULL));
      else
        OK(offloop_pool_submit(pool, add_one, (void *)(intptr_t)next, NULL, &o, NULL));
      next++;
    }
    CHECK(poll(&fd, 1, 60000) == 1); /* a lost wake-up ends here */
    OK(offloop_cq_drain(cq, events, BATCH, &count));
    CHECK(count <= BATCH);
    for (i = 0; i < count; i++) {
      int64_t n = 0;
      OK(offloop_value_get_int(events[i].value, &n));
      CHECK(events[i].status == OFFLOOP_OK && (uint64_t)n == events[i].tag + 1 && events[i].kind == OFFLOOP_EVENT_DONE);
      offloop_value_free(events[i].value);
      sum++;
    }
    done = sum + (uint64_t)read_counter(&called);
  }
  CHECK(called == ROUNDS / 10 && seen == OFFLOOP_OK);
  await_count(&freed, ROUNDS / 10);

  /* a queue that is freed calls what it owes */
  gate_open = started = called = freed = 0;
  OK(offloop_pool_submit(pool, wait_at_gate, NULL, NULL, &with_callback, NULL));
  await_count(&started, 1);
  offloop_cq_free(cq);
  CHECK(called == 1 && seen == OFFLOOP_ERR_CLOSED);
  bump(&gate_open);
  OK(offloop_pool_shutdown(pool, -1));
  await_count(&freed, 1);
  CHECK(called == 1);
  offloop_pool_free(pool);
}

/* ---- buffers, also in another process ---- */

static int child(const char *fd) {
  offloop_buffer *b = NULL;
  uint8_t *data;
  size_t len;
  OK(offloop_buffer_attach(atoi(fd), &b));
  OK(offloop_buffer_data(b, &data, &len));
  CHECK(len == 100000 && data[0] == 'p' && data[99999] == 0);
  data[99999] = 'c';
  offloop_buffer_free(b);
  return 0;
}

static void buffers(const char *self) {
  offloop_buffer *b = NULL, *c = NULL;
  offloop_token token, forged;
  uint8_t *data, *again;
  size_t len;
  int fd = -1, pipes[2], status;
  char text[16];
  pid_t pid;
  static char mine[100];

  b = buffer("hello");
  OK(offloop_buffer_data(b, &data, &len));
  c = b;
  OK(offloop_buffer_transfer(&b, &token));
  CHECK(b == NULL && strlen(token.text) < OFFLOOP_TOKEN_SIZE);
  IS(offloop_buffer_transfer(&c, &token), INVALID);
  forged = token;
  forged.text[strlen(forged.text) - 1] ^= 1;
  CHECK(offloop_buffer_receive(&forged, &b) != OFFLOOP_OK);
  OK(offloop_buffer_receive(&token, &b));
  OK(offloop_buffer_data(b, &again, &len));
  CHECK(again == data && len == 5); /* moved, not copied */
  IS(offloop_buffer_receive(&token, &c), DETACHED);
  IS(offloop_token_revoke(&token), DETACHED);
  IS(offloop_buffer_fd(b, &fd), INVALID); /* not shared */
  offloop_buffer_free(b);

  freed = 0;
  OK(offloop_buffer_from_foreign(mine, sizeof mine, NULL, on_free, &b));
  OK(offloop_buffer_data(b, &data, &len));
  CHECK((char *)data == mine && len == sizeof mine);
  OK(offloop_buffer_transfer(&b, &token));
  OK(offloop_token_revoke(&token));
  CHECK(freed == 1);

  IS(offloop_buffer_new((size_t)-1, &b), TOO_LARGE);
  CHECK(pipe(pipes) == 0);
  IS(offloop_buffer_attach(pipes[0], &b), INVALID);
  IS(offloop_buffer_attach(-1, &b), INVALID);
  IS(offloop_buffer_attach(999999, &b), INVALID);
  close(pipes[0]);
  close(pipes[1]);

  OK(offloop_buffer_new_shared(100000, &b));
  OK(offloop_buffer_data(b, &data, &len));
  data[0] = 'p';
  OK(offloop_buffer_fd(b, &fd));
  fd = dup(fd); /* without close-on-exec */
  snprintf(text, sizeof text, "%d", fd);
  pid = fork();
  if (pid == 0) {
    execl(self, self, "child", text, (char *)NULL);
    _exit(127);
  }
  CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(data[99999] == 'c');
  close(fd);
  offloop_buffer_free(b);
}

/* ---- values ---- */

static void values(void) {
  offloop_value *map = NULL, *v = NULL, *copy = NULL;
  const offloop_value *item, *key;
  const char *text, *message;
  const uint8_t *bytes;
  size_t len, n;
  uint32_t type;
  bool flag;
  double f;
  uint64_t shape[2] = {2, 3};
  const uint64_t *dims;
  int16_t numbers[6] = {1, 2, 3, 4, 5, 6};

  OK(offloop_value_new_map(&map));
  OK(offloop_value_new_str("grüße", OFFLOOP_NUL_TERMINATED, &v));
  OK(offloop_value_map_set(map, "text", &v));
  OK(offloop_value_new_typed(OFFLOOP_DTYPE_I16, shape, 2, numbers, sizeof numbers, &v));
  OK(offloop_value_map_set(map, "typed", &v));
  IS(offloop_value_new_typed(OFFLOOP_DTYPE_I16, shape, 2, numbers, 11, &v), INVALID);
  { /* what some host could not hold is refused here, in any order */
    static const uint64_t far[2][2] = {{0, UINT64_MAX}, {UINT64_MAX, 0}}, nothing[2] = {0, 3};
    uint64_t ones[65];
    for (n = 0; n < 65; n++) ones[n] = 1;
    IS(offloop_value_new_typed(OFFLOOP_DTYPE_I8, far[0], 2, numbers, 0, &v), INVALID);
    IS(offloop_value_new_typed(OFFLOOP_DTYPE_I8, far[1], 2, numbers, 0, &v), INVALID);
    IS(offloop_value_new_typed(OFFLOOP_DTYPE_I8, ones, 65, numbers, 1, &v), INVALID);
    CHECK(strstr(offloop_last_error(), "dimensions=65, max=64"));
    OK(offloop_value_new_typed(OFFLOOP_DTYPE_I8, ones, 64, numbers, 1, &v));
    offloop_value_free(v);
    OK(offloop_value_new_typed(OFFLOOP_DTYPE_I8, nothing, 2, numbers, 0, &v));
    offloop_value_free(v);
  }
  IS(offloop_value_new_typed(99, shape, 2, numbers, 12, &v), INVALID);
  OK(offloop_value_new_bool(true, &v));
  OK(offloop_value_map_set(map, "flag", &v));
  OK(offloop_value_new_error("KeyError", "no such key", &v));
  OK(offloop_value_map_set(map, "error", &v));
  OK(offloop_value_new_big(true, (const uint8_t *)"\0\0\0\0\0\0\0\0\1\0", 10, &v));
  OK(offloop_value_map_set(map, "big", &v));
  OK(offloop_value_new_date(1e12, &v));
  OK(offloop_value_map_set(map, "date", &v));
  IS(offloop_value_new_str("\xff", OFFLOOP_NUL_TERMINATED, &v), INVALID);
  IS(offloop_value_new_str("a", (size_t)-2, &v), INVALID);
  IS(offloop_value_map_get(map, "\xff", &item), INVALID);

  OK(offloop_value_copy(map, &copy));
  OK(offloop_value_map_len(copy, &n));
  CHECK(n == 6);
  OK(offloop_value_map_at(copy, 0, &key, &item));
  OK(offloop_value_get_str(key, &text, &len));
  CHECK(len == 4 && !memcmp(text, "text", 4));
  OK(offloop_value_get_str(item, &text, &len));
  CHECK(len == 7);
  OK(offloop_value_map_get(copy, "typed", &item));
  OK(offloop_value_get_typed(item, &type, &dims, &n));
  CHECK(type == OFFLOOP_DTYPE_I16 && n == 2 && dims[1] == 3);
  OK(offloop_value_get_bytes(item, &bytes, &len));
  CHECK(len == 12 && bytes[2] == 2);
  OK(offloop_value_map_get(copy, "flag", &item));
  OK(offloop_value_get_bool(item, &flag));
  CHECK(flag);
  IS(offloop_value_get_float(item, &f), INVALID);
  OK(offloop_value_map_get(copy, "error", &item));
  OK(offloop_value_get_error(item, &text, &len, &message, &n));
  CHECK(len == 8 && n == 11);
  OK(offloop_value_map_get(copy, "big", &item));
  OK(offloop_value_get_big(item, &flag, &bytes, &len));
  CHECK(flag && len == 9 && bytes[8] == 1);
  OK(offloop_value_map_get(copy, "date", &item));
  OK(offloop_value_get_date(item, &f));
  CHECK(f == 1e12);
  offloop_value_free(copy);
  IS(offloop_value_get_date(item, &f), INVALID); /* ended with its root */
  offloop_value_free(map);
}

/* ---- values as messages ---- */

/* The hexadecimal text after a quote; its end is the next quote. */
static size_t unhex(const char *text, uint8_t *out) {
  size_t n = 0;
  unsigned byte;
  while (text[2 * n] != '"' && sscanf(text + 2 * n, "%2x", &byte) == 1) out[n++] = (uint8_t)byte;
  return n;
}

static void recode(const uint8_t *message, size_t len, const uint8_t *want, size_t want_len) {
  offloop_value *v = NULL;
  offloop_buffer *b = NULL;
  uint8_t *data;
  OK(offloop_value_decode(message, len, NULL, &v));
  OK(offloop_value_encode(v, NULL, &b));
  OK(offloop_buffer_data(b, &data, &len));
  CHECK(len == want_len && !memcmp(data, want, len));
  offloop_buffer_free(b);
  offloop_value_free(v);
}

/* Every vector that has no buffers beside it; the file has one entry in each line. */
static void codec_vectors(void) {
  static char line[1 << 16];
  static uint8_t want[1 << 15], also[1 << 15];
  FILE *file = fopen("tests/vectors/codec.json", "r");
  char *at;
  size_t len;
  long values_seen = 0, hostile = 0;
  CHECK(file);
  while (fgets(line, sizeof line, file)) {
    if (!(at = strstr(line, "\"hex\": \"")) || strstr(line, "\"beside\"")) continue;
    len = unhex(at + 8, want);
    if ((at = strstr(line, "\"kind\": \""))) {
      offloop_codec_options o = OFFLOOP_CODEC_OPTIONS_INIT;
      offloop_value *v = NULL;
      char *limit = strstr(line, "\"options\": {\"max_");
      if (limit && strstr(limit, "max_depth")) o.max_depth = (size_t)atoi(strchr(limit + 12, ':') + 1);
      if (limit && strstr(limit, "max_items")) o.max_items = (size_t)atoi(strchr(limit + 12, ':') + 1);
      if (limit && strstr(limit, "max_bytes")) o.max_bytes = (size_t)atoi(strchr(limit + 12, ':') + 1);
      CHECK(offloop_value_decode(want, len, &o, &v) == (strstr(at, "TooLarge") ? OFFLOOP_ERR_TOO_LARGE : OFFLOOP_ERR_CORRUPT));
      CHECK(!v);
      hostile++;
      continue;
    }
    recode(want, len, want, len);
    if ((at = strstr(line, "\"also\": [")))
      for (at = strchr(at, '[') + 1; *at == '"'; at += at[1] == ',' ? 3 : 1) {
        size_t n = unhex(at + 1, also);
        recode(also, n, want, len);
        at += 1 + 2 * n;
      }
    values_seen++;
  }
  fclose(file);
  CHECK(values_seen > 80 && hostile > 80);
}

static void codec(void) {
  offloop_value *error = NULL, *v = NULL, *back = NULL;
  offloop_buffer *b = NULL;
  offloop_codec_options o = OFFLOOP_CODEC_OPTIONS_INIT;
  const offloop_value *item;
  const char *text;
  uint8_t *data;
  size_t len;
  int64_t n;
  uint32_t nanos;
  bool negative;
  const uint8_t *magnitude;

  codec_vectors();
  OK(offloop_value_new_error("ValueError", "no", &error));
  OK(offloop_value_new_str("line 1", OFFLOOP_NUL_TERMINATED, &v));
  OK(offloop_value_error_set(error, "stack", &v));
  CHECK(!v);
  OK(offloop_value_new_time(-1, 999999999, &v));
  OK(offloop_value_error_set(error, "when", &v));
  OK(offloop_value_new_error("OSError", "disk", &v));
  OK(offloop_value_error_set(error, "cause", &v));
  v = integer(1);
  OK(offloop_value_error_set(error, "code", &v));
  v = integer(2);
  OK(offloop_value_error_set(error, "code", &v));
  v = integer(3);
  IS(offloop_value_error_set(error, "stack", &v), INVALID);
  IS(offloop_value_error_set(v, "stack", &error), INVALID);
  IS(offloop_value_error_get(v, "code", &item), INVALID);
  IS(offloop_value_get_stack(v, &text, &len), INVALID);
  IS(offloop_value_get_time(v, &n, &nanos), INVALID);
  offloop_value_free(v), v = NULL;
  IS(offloop_value_new_time(0, 1000000000, &v), INVALID);
  IS(offloop_value_new_date(0.0 / 0.0, &v), INVALID);

  OK(offloop_value_encode(error, NULL, &b));
  OK(offloop_buffer_data(b, &data, &len));
  OK(offloop_value_decode(data, len, NULL, &back));
  OK(offloop_value_get_stack(back, &text, &len));
  CHECK(len == 6 && !memcmp(text, "line 1", 6));
  OK(offloop_value_error_get(back, "code", &item));
  OK(offloop_value_get_int(item, &n));
  CHECK(n == 2);
  OK(offloop_value_error_get(back, "when", &item));
  OK(offloop_value_get_time(item, &n, &nanos));
  CHECK(n == -1 && nanos == 999999999);
  OK(offloop_value_error_get(back, "cause", &item));
  OK(offloop_value_get_stack(item, &text, &len));
  CHECK(len == 0);
  IS(offloop_value_error_get(item, "cause", &item), NOT_FOUND);
  IS(offloop_value_error_get(back, "nothing", &item), NOT_FOUND);
  offloop_value_free(back), offloop_value_free(error);

  OK(offloop_buffer_data(b, &data, &len));
  o.max_depth = 513;
  IS(offloop_value_decode(data, len, &o, &v), INVALID);
  o.max_depth = 2, o.struct_size = 3;
  IS(offloop_value_decode(data, len, &o, &v), INVALID);
  o.struct_size = sizeof o, o.max_bytes = len - 1;
  IS(offloop_value_decode(data, len, &o, &v), TOO_LARGE);
  IS(offloop_value_decode(data, len - 1, NULL, &v), CORRUPT);
  CHECK(strstr(offloop_last_error(), "offset="));
  IS(offloop_value_decode(NULL, 1, NULL, &v), INVALID);
  IS(offloop_value_decode(data, len, NULL, NULL), INVALID);
  CHECK(!v);

  /* A buffer is copied into the message and becomes bytes; the value keeps it. */
  offloop_buffer_free(b), b = buffer("abc");
  OK(offloop_value_new_buffer(&b, &v));
  OK(offloop_value_encode(v, NULL, &b));
  OK(offloop_buffer_data(b, &data, &len));
  CHECK(len == 5 && !memcmp(data, "\xc4\3abc", 5));
  offloop_value_free(v), offloop_buffer_free(b), b = NULL;

  /* An integer takes the type that holds it. */
  OK(offloop_value_new_big(true, (const uint8_t *)"\5\0\0\0\0\0\0\0\0\0", 10, &v));
  OK(offloop_value_get_int(v, &n));
  CHECK(n == -5);
  IS(offloop_value_get_big(v, &negative, &magnitude, &len), INVALID);
  offloop_value_free(v);
}

/* ---- every export × bad input ---- */

static void *stale_value, *stale_buffer, *stale_pool, *stale_task, *stale_cq;
static offloop_value *good_value;
static offloop_buffer *good_buffer;

/* Handles that are none of the wanted type: NULL, forged, small, all ones, freed, another type. */
#define BAD(stale, other) {NULL, FORGED, (void *)1, (void *)-1, stale, other}
#define EACH(bad) for (i = 0; i < 6; i++) { void *h = bad[i]; (void)h;
#define END }

static void bad_inputs(void) {
  offloop_pool *pool = pool_of(1, 10);
  offloop_value *v = NULL;
  offloop_task *task = NULL;
  offloop_cq *cq = NULL;
  const offloop_value *cv;
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_pool_options po = OFFLOOP_POOL_OPTIONS_INIT;
  offloop_stats stats;
  offloop_event event;
  offloop_token token;
  offloop_call call;
  void *out_bad[2];
  size_t i, n;
  int fd;
  uint8_t *data;
  const uint8_t *cdata;
  const char *text;
  uint32_t type;
  bool flag;
  int64_t num;
  double f;
  struct { offloop_submit_options o; uint64_t tail; } newer;

  OK(offloop_cq_new(&cq));
  OK(offloop_pool_submit(pool, add_one, NULL, NULL, NULL, &task));
  OK(offloop_task_wait(task, -1, NULL));
  stale_value = integer(1), stale_buffer = buffer("x"), stale_pool = pool_of(1, 1), stale_task = task, stale_cq = cq;
  offloop_value_free(stale_value), offloop_buffer_free(stale_buffer), offloop_pool_free(stale_pool), offloop_task_free(stale_task), offloop_cq_free(stale_cq);
  good_value = integer(5), good_buffer = buffer("good");
  memset(&stats, 0, sizeof stats), stats.struct_size = sizeof stats;
  memset(&call, 0, sizeof call), memset(&token, 0, sizeof token);

  { void *bad[] = BAD(stale_value, good_buffer); EACH(bad)
    offloop_buffer *b = NULL; offloop_value *m = h;
    offloop_value_free(i == 5 ? NULL : h);
    IS(offloop_value_copy(h, &v), INVALID); IS(offloop_value_get_type(h, &type), INVALID); IS(offloop_value_get_bool(h, &flag), INVALID);
    IS(offloop_value_get_int(h, &num), INVALID); IS(offloop_value_get_float(h, &f), INVALID); IS(offloop_value_get_date(h, &f), INVALID);
    IS(offloop_value_get_big(h, &flag, &cdata, &n), INVALID); IS(offloop_value_get_str(h, &text, &n), INVALID);
    IS(offloop_value_get_bytes(h, &cdata, &n), INVALID); IS(offloop_value_get_typed(h, &type, (const uint64_t **)&cdata, &n), INVALID);
    IS(offloop_value_get_error(h, &text, &n, &text, &n), INVALID); IS(offloop_value_array_len(h, &n), INVALID); IS(offloop_value_map_len(h, &n), INVALID);
    IS(offloop_value_array_get(h, 0, &cv), INVALID); IS(offloop_value_map_get(h, "k", &cv), INVALID); IS(offloop_value_map_at(h, 0, &cv, &cv), INVALID);
    IS(offloop_value_get_time(h, &num, &type), INVALID); IS(offloop_value_get_stack(h, &text, &n), INVALID); IS(offloop_value_error_get(h, "k", &cv), INVALID);
    IS(offloop_value_error_set(h, "k", &good_value), INVALID); IS(offloop_value_encode(h, NULL, &b), INVALID); CHECK(!b);
    IS(offloop_value_array_push(h, &good_value), INVALID); IS(offloop_value_map_set(h, "k", &good_value), INVALID); CHECK(good_value);
    IS(offloop_value_array_push(good_value, &m), INVALID); IS(offloop_value_take_buffer(&m, &b), INVALID); CHECK(m == h);
    if (h) IS(offloop_pool_submit_op(pool, "noop", NULL, 0, h, NULL, NULL), INVALID);
  END }
  { void *bad[] = BAD(stale_buffer, good_value); EACH(bad)
    offloop_buffer *m = h;
    offloop_buffer_free(h);
    IS(offloop_buffer_data(h, &data, &n), INVALID); IS(offloop_buffer_fd(h, &fd), INVALID); IS(offloop_buffer_transfer(&m, &token), INVALID);
    IS(offloop_value_new_buffer(&m, &v), INVALID); IS(offloop_pool_submit_op(pool, "noop", &m, 1, NULL, NULL, NULL), INVALID); CHECK(m == h);
  END }
  { void *bad[] = BAD(stale_pool, good_value); EACH(bad)
    offloop_pool_free(i == 5 ? NULL : h);
    IS(offloop_pool_shutdown(h, 0), INVALID); IS(offloop_pool_resize(h, 0, 1), INVALID); IS(offloop_pool_stats(h, &stats), INVALID);
    IS(offloop_pool_load(h, "/x.so", NULL), INVALID); IS(offloop_pool_ops(h, &v), INVALID); IS(offloop_pool_submit(h, add_one, NULL, NULL, NULL, NULL), INVALID);
    IS(offloop_pool_submit_op(h, "noop", NULL, 0, NULL, NULL, NULL), INVALID); IS(offloop_pool_submit_many(h, &call, 1, NULL, NULL), INVALID);
  END }
  { void *bad[] = BAD(stale_task, good_value); EACH(bad)
    offloop_task_free(h);
    IS(offloop_task_wait(h, 0, NULL), INVALID); IS(offloop_task_cancel(h), INVALID); IS(offloop_task_on_done(h, on_done, NULL, NULL), INVALID);
  END }
  { void *bad[] = BAD(stale_cq, good_value); EACH(bad)
    offloop_cq_free(h);
    IS(offloop_cq_fd(h, &fd), INVALID); IS(offloop_cq_wait(h, 0), INVALID); IS(offloop_cq_drain(h, &event, 1, &n), INVALID);
    o.cq = h;
    if (h) IS(offloop_pool_submit(pool, add_one, NULL, NULL, &o, NULL), INVALID);
    o.cq = NULL;
  END }
  { void *bad[] = BAD(stale_value, good_value); EACH(bad)
    offloop_value *m = NULL;
    IS(offloop_ctx_cancelled(h), INVALID); IS(offloop_ctx_progress(h, &good_value), INVALID); IS(offloop_ctx_params(h, &cv), INVALID);
    IS(offloop_ctx_input_count(h, &n), INVALID); IS(offloop_ctx_input(h, 0, &cdata, &n), INVALID); IS(offloop_ctx_take_input(h, 0, (offloop_buffer **)&m), INVALID);
    IS(offloop_ctx_set_result(h, &good_value), INVALID); IS(offloop_ctx_set_error(h, "x"), INVALID); CHECK(good_value);
  END }
  /* results: NULL and misaligned */
  out_bad[0] = NULL, out_bad[1] = MISALIGNED;
  for (i = 0; i < 2; i++) {
    void *p = out_bad[i];
    IS(offloop_value_new_nil(p), INVALID); IS(offloop_value_new_bool(true, p), INVALID); IS(offloop_value_new_int(1, p), INVALID); IS(offloop_value_new_float(1, p), INVALID);
    IS(offloop_value_new_big(true, NULL, 0, p), INVALID); IS(offloop_value_new_str("x", 1, p), INVALID); IS(offloop_value_new_bytes("x", 1, p), INVALID);
    IS(offloop_value_new_buffer(&good_buffer, p), INVALID); IS(offloop_value_new_buffer(p, &v), INVALID); IS(offloop_value_new_array(p), INVALID); IS(offloop_value_new_map(p), INVALID);
    IS(offloop_value_new_date(1, p), INVALID); IS(offloop_value_new_typed(1, NULL, 0, NULL, 1, p), INVALID); IS(offloop_value_new_error("a", "b", p), INVALID);
    IS(offloop_value_copy(good_value, p), INVALID); IS(offloop_value_get_type(good_value, p), INVALID); IS(offloop_value_get_int(good_value, p), INVALID);
    IS(offloop_value_take_buffer(p, &good_buffer), INVALID); IS(offloop_value_take_buffer(&good_value, p), INVALID); CHECK(good_value && good_buffer);
    IS(offloop_buffer_new(1, p), INVALID); IS(offloop_buffer_new_shared(1, p), INVALID); IS(offloop_buffer_from_bytes("x", 1, p), INVALID);
    IS(offloop_buffer_from_foreign(scratch, 1, NULL, NULL, p), INVALID); IS(offloop_buffer_data(good_buffer, p, &n), INVALID); IS(offloop_buffer_data(good_buffer, &data, p), INVALID);
    IS(offloop_buffer_fd(good_buffer, p), INVALID); IS(offloop_buffer_attach(0, p), INVALID); IS(offloop_buffer_transfer(p, &token), INVALID); IS(offloop_buffer_receive(&token, p), INVALID);
    IS(offloop_pool_new(NULL, p), INVALID); IS(offloop_pool_default(p), INVALID); IS(offloop_pool_stats(pool, p), INVALID); IS(offloop_pool_ops(pool, p), INVALID);
    IS(offloop_cq_new(p), INVALID); IS(offloop_metrics(0, p), INVALID);
  }
  IS(offloop_buffer_transfer(&good_buffer, NULL), INVALID); IS(offloop_buffer_receive(NULL, &good_buffer), INVALID); IS(offloop_token_revoke(NULL), INVALID); IS(offloop_token_revoke(&token), INVALID);
  IS(offloop_value_new_bytes(NULL, 5, &v), INVALID); IS(offloop_value_new_bytes("x", (size_t)-1, &v), INVALID); IS(offloop_value_new_str(NULL, OFFLOOP_NUL_TERMINATED, &v), INVALID);
  IS(offloop_value_new_error(NULL, "x", &v), INVALID); IS(offloop_buffer_from_bytes(NULL, 1, &good_buffer), INVALID); IS(offloop_buffer_from_foreign(NULL, 1, NULL, NULL, &good_buffer), INVALID);
  IS(offloop_pool_submit(pool, NULL, NULL, NULL, NULL, NULL), INVALID); IS(offloop_pool_submit_op(pool, NULL, NULL, 0, NULL, NULL, NULL), INVALID);
  IS(offloop_pool_submit_op(pool, "\xff", NULL, 0, NULL, NULL, NULL), INVALID); IS(offloop_pool_submit_op(pool, "noop", NULL, 1, NULL, NULL, NULL), INVALID);
  IS(offloop_pool_submit_op(pool, "noop", &good_buffer, (size_t)-1, NULL, NULL, NULL), INVALID); IS(offloop_pool_submit_many(pool, NULL, 1, NULL, NULL), INVALID);
  IS(offloop_pool_submit_many(pool, &call, (size_t)-1, NULL, NULL), INVALID); IS(offloop_pool_load(pool, NULL, NULL), INVALID); IS(offloop_pool_load(pool, "/no/such.so", NULL), NOT_FOUND);
  IS(offloop_pool_submit_op(pool, "noop", NULL, 0, good_value, NULL, NULL), INVALID); IS(offloop_metrics(9, &v), INVALID);
  IS(offloop_value_array_len(good_value, &n), INVALID); IS(offloop_pool_resize(pool, -1, 0), INVALID); IS(offloop_pool_resize(pool, -1, 1000000), INVALID);

  /* options structs */
  o.struct_size = 0; IS(offloop_pool_submit(pool, add_one, NULL, NULL, &o, NULL), INVALID);
  o.struct_size = sizeof o - 8; IS(offloop_pool_submit(pool, add_one, NULL, NULL, &o, NULL), INVALID);
  o.struct_size = (size_t)-1; IS(offloop_pool_submit(pool, add_one, NULL, NULL, &o, NULL), INVALID);
  IS(offloop_pool_submit(pool, add_one, NULL, NULL, MISALIGNED, NULL), INVALID);
  memset(&newer, 0, sizeof newer); newer.o.struct_size = sizeof newer; newer.tail = 1;
  IS(offloop_pool_submit(pool, add_one, NULL, NULL, &newer.o, NULL), VERSION);
  newer.tail = 0;
  OK(offloop_pool_submit(pool, add_one, NULL, NULL, &newer.o, NULL));
  o.struct_size = sizeof o;
  o.priority = 128; IS(offloop_pool_submit(pool, add_one, NULL, NULL, &o, NULL), INVALID); CHECK(strstr(offloop_last_error(), "priority")); o.priority = 0;
  o.timeout_ns = -1; IS(offloop_pool_submit(pool, add_one, NULL, NULL, &o, NULL), INVALID); CHECK(strstr(offloop_last_error(), "timeout_ns")); o.timeout_ns = INT64_MAX;
  IS(offloop_pool_submit(pool, add_one, NULL, NULL, &o, NULL), INVALID); o.timeout_ns = 0;
  o.on_full = 7; IS(offloop_pool_submit(pool, add_one, NULL, NULL, &o, NULL), INVALID); o.on_full = 0;
  o.key = "\xff"; IS(offloop_pool_submit(pool, add_one, NULL, NULL, &o, NULL), INVALID); o.key = NULL;
  o.tag = 1; IS(offloop_pool_submit(pool, add_one, NULL, NULL, &o, NULL), INVALID);
  po.max_workers = -1; IS(offloop_pool_new(&po, &pool), INVALID); CHECK(strstr(offloop_last_error(), "max_workers")); po.max_workers = 100000;
  IS(offloop_pool_new(&po, &pool), INVALID); po.max_workers = 0; po.nice = 50; IS(offloop_pool_new(&po, &pool), INVALID); po.nice = 0;
  po.max_queue = INT64_MAX; IS(offloop_pool_new(&po, &pool), INVALID); po.max_queue = 0; po.name = "\xff"; IS(offloop_pool_new(&po, &pool), INVALID);
  CHECK(!strcmp(offloop_status_name(0), "OFFLOOP_OK") && !strcmp(offloop_status_name(-3), "ERR_OFFLOOP_FULL") && !strcmp(offloop_status_name(-99), "ERR_OFFLOOP_UNKNOWN"));
  CHECK(offloop_abi_version() == OFFLOOP_ABI_VERSION && offloop_wire_version() == OFFLOOP_WIRE_VERSION);

  /* still working, nothing lost */
  OK(offloop_pool_submit_op(pool, "noop", &good_buffer, 1, NULL, NULL, &task));
  OK(offloop_task_wait(task, -1, &v));
  offloop_value_free(v), offloop_task_free(task), offloop_value_free(good_value);
  OK(offloop_pool_shutdown(pool, -1));
  offloop_pool_free(pool);
}

/* ---- panics ---- */

#ifdef FAILPOINTS
void offloop_failpoint_panic(void);
#define P(call) do { offloop_failpoint_panic(); IS(call, PANIC); CHECK(strstr(offloop_last_error(), "failpoint")); } while (0)
#define PV(call) do { offloop_failpoint_panic(); call; CHECK(strstr(offloop_last_error(), "failpoint")); } while (0)
static void panics(void) {
  offloop_pool *p = pool_of(1, 10); offloop_value *v = integer(1); offloop_buffer *b = buffer("x"); offloop_cq *q = NULL; offloop_task *t = NULL;
  void *x = scratch;
  OK(offloop_cq_new(&q)); OK(offloop_pool_submit(p, add_one, NULL, NULL, NULL, &t));
  P(offloop_value_new_nil(x)); P(offloop_value_new_bool(1, x)); P(offloop_value_new_int(1, x)); P(offloop_value_new_big(1, x, 1, x)); P(offloop_value_new_float(1, x));
  P(offloop_value_new_str("x", 1, x)); P(offloop_value_new_bytes("x", 1, x)); P(offloop_value_new_buffer(&b, x)); P(offloop_value_new_array(x)); P(offloop_value_new_map(x));
  P(offloop_value_new_date(1, x)); P(offloop_value_new_typed(1, x, 1, x, 1, x)); P(offloop_value_new_error("a", "b", x)); P(offloop_value_copy(v, x)); PV(offloop_value_free(v));
  P(offloop_value_get_type(v, x)); P(offloop_value_get_bool(v, x)); P(offloop_value_get_int(v, x)); P(offloop_value_get_float(v, x)); P(offloop_value_get_date(v, x));
  P(offloop_value_get_big(v, x, x, x)); P(offloop_value_get_str(v, x, x)); P(offloop_value_get_bytes(v, x, x)); P(offloop_value_get_typed(v, x, x, x)); P(offloop_value_get_error(v, x, x, x, x));
  P(offloop_value_take_buffer(&v, x)); P(offloop_value_array_push(v, &v)); P(offloop_value_array_len(v, x)); P(offloop_value_array_get(v, 0, x)); P(offloop_value_map_set(v, "k", &v));
  P(offloop_value_map_len(v, x)); P(offloop_value_map_get(v, "k", x)); P(offloop_value_map_at(v, 0, x, x));
  P(offloop_value_new_time(0, 0, x)); P(offloop_value_get_time(v, x, x)); P(offloop_value_get_stack(v, x, x)); P(offloop_value_error_set(v, "k", &v)); P(offloop_value_error_get(v, "k", x));
  P(offloop_value_encode(v, NULL, x)); P(offloop_value_decode(x, 1, NULL, x));
  P(offloop_buffer_new(1, x)); P(offloop_buffer_new_shared(1, x)); P(offloop_buffer_from_bytes("x", 1, x)); P(offloop_buffer_from_foreign(x, 1, NULL, NULL, x)); P(offloop_buffer_data(b, x, x));
  P(offloop_buffer_fd(b, x)); P(offloop_buffer_attach(0, x)); P(offloop_buffer_transfer(&b, x)); P(offloop_buffer_receive(x, x)); P(offloop_token_revoke(x)); PV(offloop_buffer_free(b));
  P(offloop_ctx_cancelled(x)); P(offloop_ctx_progress(x, &v)); P(offloop_ctx_params(x, x)); P(offloop_ctx_input_count(x, x)); P(offloop_ctx_input(x, 0, x, x)); P(offloop_ctx_take_input(x, 0, x));
  P(offloop_ctx_set_result(x, &v)); P(offloop_ctx_set_error(x, "x"));
  P(offloop_cq_new(x)); P(offloop_cq_fd(q, x)); P(offloop_cq_wait(q, 0)); P(offloop_cq_drain(q, x, 1, x)); PV(offloop_cq_free(q));
  P(offloop_pool_new(NULL, x)); P(offloop_pool_default(x)); PV(offloop_pool_free(p)); P(offloop_pool_shutdown(p, 0)); P(offloop_pool_resize(p, 0, 1)); P(offloop_pool_stats(p, x));
  P(offloop_pool_load(p, "/x", NULL)); P(offloop_pool_ops(p, x)); P(offloop_pool_submit(p, add_one, NULL, NULL, NULL, x)); P(offloop_pool_submit_op(p, "noop", NULL, 0, NULL, NULL, x));
  P(offloop_pool_submit_many(p, x, 0, NULL, NULL)); P(offloop_task_wait(t, 0, x)); P(offloop_task_on_done(t, on_done, NULL, NULL)); P(offloop_task_cancel(t)); PV(offloop_task_free(t)); P(offloop_metrics(0, x));
  offloop_failpoint_panic(); CHECK(offloop_status_name(0) != NULL);
  /* everything is still there */
  OK(offloop_task_wait(t, -1, NULL));
  offloop_value_free(v), offloop_buffer_free(b), offloop_cq_free(q), offloop_task_free(t), offloop_pool_shutdown(p, -1), offloop_pool_free(p);
}
#endif

/* ---- random handle operations ---- */

static uint32_t seed = 12345;
static uint32_t rnd(uint32_t n) { seed = seed * 1664525u + 1013904223u; return (uint32_t)(((uint64_t)seed * n) >> 32); }

static void random_handles(void) {
  enum { N = 64 };
  int ops_left = getenv("OFFLOOP_RANDOM_OPS") ? atoi(getenv("OFFLOOP_RANDOM_OPS")) : 100000;
  void *h[N] = {0};
  static const char *texts[] = {"a", "b", "c"};
  while (ops_left-- > 0) {
    void **a = &h[rnd(N)], *b = h[rnd(N)];
    offloop_token token;
    uint8_t *data;
    const uint8_t *cdata;
    const offloop_value *view;
    size_t n;
    int64_t num;
    switch (rnd(14)) {
    case 0: { offloop_value *v = integer(ops_left); *a = v; break; } /* leaks what was there: on purpose, freed below if it is */
    case 1: { offloop_value *v = NULL; OK(offloop_value_new_map(&v)); *a = v; break; }
    case 2: { offloop_value *v = NULL; OK(offloop_value_new_array(&v)); *a = v; break; }
    case 3: *a = buffer("some bytes"); break;
    case 4: offloop_value_free(b); break;
    case 5: offloop_buffer_free(b); break;
    case 6: { offloop_value *v = b; if (!offloop_value_array_push(*a, &v)) CHECK(v == NULL); break; }
    case 7: { offloop_value *v = b; if (!offloop_value_map_set(*a, texts[rnd(3)], &v)) CHECK(v == NULL); break; }
    case 8: offloop_value_get_int(b, &num); offloop_value_array_len(b, &n); break;
    case 9: if (!offloop_buffer_data(b, &data, &n)) CHECK(n == 10 && data[0] == 's'); break;
    case 10: { offloop_buffer *m = b; if (!offloop_buffer_transfer(&m, &token)) { CHECK(!m); OK(offloop_buffer_receive(&token, &m)); *a = m; } break; }
    case 11: { offloop_buffer *m = b; offloop_value *v = NULL; if (!offloop_value_new_buffer(&m, &v)) *a = v; break; }
    case 12: if (!offloop_value_map_get(b, texts[rnd(3)], &view)) { offloop_value_get_bytes(view, &cdata, &n); *a = (void *)(uintptr_t)view; } break;
    case 13: { offloop_value *v = NULL; if (!offloop_value_copy(b, &v)) *a = v; offloop_value_free(v); break; }
    }
    if (rnd(3) == 0) { /* keep the table from growing */
      uint32_t i = rnd(N);
      offloop_value_free(h[i]);
      offloop_buffer_free(h[i]);
    }
  }
}

/* ---- cycles ---- */

static long status_kb(const char *key) {
  char line[256];
  long kb = -1;
  FILE *f = fopen("/proc/self/status", "r");
  while (f && fgets(line, sizeof line, f))
    if (!strncmp(line, key, strlen(key))) kb = atol(line + strlen(key));
  if (f) fclose(f);
  return kb;
}
int open_fds(void) {
  int n = 0;
  DIR *d = opendir("/proc/self/fd");
  while (d && readdir(d)) n++;
  if (d) closedir(d);
  return n;
}
/* Workers that have signed off may still be on their way out, with what they hold. */
int fds_settle(int most) {
  int tries;
  for (tries = 0; tries < 5000 && open_fds() > most; tries++) sched_yield();
  return open_fds() <= most;
}
static void one_cycle(void) {
  offloop_pool *pool = pool_of(2, 100);
  offloop_cq *cq = NULL;
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_event event;
  offloop_buffer *b = NULL;
  size_t n = 0;
  int fd;
  OK(offloop_cq_new(&cq));
  OK(offloop_cq_fd(cq, &fd));
  o.cq = cq;
  OK(offloop_buffer_new_shared(100000, &b));
  OK(offloop_pool_submit_op(pool, "noop", &b, 1, NULL, &o, NULL));
  while (n == 0) {
    OK(offloop_cq_wait(cq, -1));
    OK(offloop_cq_drain(cq, &event, 1, &n));
  }
  CHECK(event.status == OFFLOOP_OK);
  offloop_value_free(event.value);
  OK(offloop_pool_shutdown(pool, -1));
  offloop_pool_free(pool);
  offloop_cq_free(cq);
}
static void cycles(void) {
  int i, count = getenv("OFFLOOP_CYCLES") ? atoi(getenv("OFFLOOP_CYCLES")) : 1000, fds, tries;
  long rss, threads;
  for (i = 0; i < 100; i++) one_cycle();
  rss = status_kb("VmRSS:"), threads = status_kb("Threads:"), fds = open_fds();
  for (i = 0; i < count; i++) one_cycle();
  for (tries = 0; tries < 5000 && status_kb("Threads:") > threads; tries++) sched_yield();
  CHECK(fds_settle(fds));
  printf("  %d cycles: threads %ld -> %ld, fds %d -> %d, RSS %ld -> %ld KiB\n", count, threads, status_kb("Threads:"), fds, open_fds(), rss, status_kb("VmRSS:"));
  CHECK(status_kb("Threads:") <= threads);
  CHECK(status_kb("VmRSS:") <= rss + 4096);
}

int main(int argc, char **argv) {
  static const struct { const char *name; void (*run)(void); } all[] = {
    {"functions", functions}, {"ops", ops}, {"families", families}, {"completion", completion}, {"reentry", reentry}, {"signals", signals}, {"frees", frees}, {"values", values}, {"codec", codec}, {"bad_inputs", bad_inputs}, {"rings", rings}, {"channels", channels}, {"process_pools", process_pools}, {"clusters", clusters},
#ifdef FAILPOINTS
    {"panics", panics}, {"ring_panics", ring_panics}, {"channel_panics", channel_panics}, {"process_panics", process_panics},
#endif
    {"random_handles", random_handles}, {"cycles", cycles}};
  size_t i;
  int a;
  setvbuf(stdout, NULL, _IONBF, 0);
  alarm(600); /* a watchdog: a hang ends here and not at somebody's patience */
  if (argc == 3 && !strcmp(argv[1], "child")) return child(argv[2]);
  if (argc == 3 && !strcmp(argv[1], "member")) return member_child(argv[2]);
  if (argc > 1 && !strcmp(argv[1], "worker")) return process_child(argc > 2 ? argv[2] : NULL);
  if (argc == 3 && !strcmp(argv[1], "channel")) return channel_child(argv[2]);
  if (argc > 2 && !strcmp(argv[1], "ring")) return ring_child(argc - 2, argv + 2);
  for (i = 0; i < sizeof all / sizeof *all; i++) {
    struct timespec from, to;
    int wanted = argc == 1;
    long before = checks;
    for (a = 1; a < argc; a++) wanted |= !strcmp(argv[a], all[i].name);
    if (!wanted) continue;
    clock_gettime(CLOCK_MONOTONIC, &from);
    all[i].run();
    if (i == 0) buffers("/proc/self/exe");
    clock_gettime(CLOCK_MONOTONIC, &to);
    printf("  %-15s %7ld checks %6.2f s\n", all[i].name, checks - before, (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
  }
#ifndef FAILPOINTS
  if (argc == 1) printf("  panics skipped: this library was built without failpoints; `make asan` runs them\n");
#endif
  return 0;
}

/* The C driver of the conformance runner: PROTOCOL.md through offloop.h and nothing else. */

#define _GNU_SOURCE
#include "driver.h"
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t came = PTHREAD_COND_INITIALIZER;

typedef struct {
  char *name;
  char *reply; /* NULL until it has its outcome */
  char *error; /* what `task.error` says of it */
  offloop_task *task;
} task_entry;

typedef struct {
  char *name;
  offloop_pool *pool;
  offloop_process_pool *processes; /* instead of it */
  int waits;
} pool_entry;

typedef struct {
  char *name;
  offloop_buffer *buffer; /* NULL once it was moved */
} buffer_entry;

typedef struct {
  char *name;
  offloop_ring *ring;
  offloop_producer *producer;
  offloop_consumer *consumer;
} ring_entry;

static task_entry tasks[MAX_NAMED];
static pool_entry pools[MAX_NAMED];
static buffer_entry buffers[MAX_NAMED];
typedef struct {
  char *name;
  offloop_consumer *consumer;
  uint64_t delivery;
} delivery_entry;

static ring_entry rings[MAX_NAMED]; /* rings, producers and consumers */
static delivery_entry deliveries[MAX_NAMED];

static channel_entry channels[MAX_NAMED];

typedef struct {
  char *name;
  offloop_stream *stream; /* NULL once it was closed */
} stream_entry;

static stream_entry streams[MAX_NAMED];
static int stream_count;
static int channel_count; /* under the lock */
static int delivery_count;
static int task_count, pool_count, buffer_count, ring_count, freed_count;
static char order[4096];

/* ---- text ---- */

void *grab(void *memory) {
  if (memory == NULL) abort();
  return memory;
}

char *hex(const void *data, size_t len) {
  static const char digits[] = "0123456789abcdef";
  char *out = grab(malloc(2 * len + 1));
  for (size_t i = 0; i < len; i++) {
    out[2 * i] = digits[((const unsigned char *)data)[i] >> 4];
    out[2 * i + 1] = digits[((const unsigned char *)data)[i] & 15];
  }
  out[2 * len] = 0;
  return out;
}

static unsigned nibble(char c) { return (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10); }

static unsigned char *unhex(const char *text, size_t *len) {
  size_t n = strlen(text) / 2;
  unsigned char *out = grab(malloc(n + 1));
  for (size_t i = 0; i < n; i++) out[i] = (unsigned char)(nibble(text[2 * i]) << 4 | nibble(text[2 * i + 1]));
  *len = n;
  return out;
}

char *format(const char *pattern, ...) {
  char *out = NULL;
  va_list list;
  va_start(list, pattern);
  if (vasprintf(&out, pattern, list) < 0) abort();
  va_end(list);
  return out;
}

/* Takes the reply. */
void say(const char *number, char *reply) {
  size_t len = strlen(reply);
  while (len > 0 && reply[len - 1] == ' ') reply[--len] = 0;
  flockfile(stdout);
  printf("%s %s\n", number, reply);
  fflush(stdout);
  funlockfile(stdout);
  free(reply);
}

/* "ERR_OFFLOOP_WORKER_LOST" → "WorkerLost". */
static void kind_of(offloop_status status, char out[64]) {
  const char *code = offloop_status_name(status);
  int up = 1;
  if (strncmp(code, "ERR_OFFLOOP_", 12) == 0) code += 12;
  while (*code != 0) {
    if (*code == '_') {
      up = 1;
    } else {
      *out++ = up ? *code : (char)(*code + ('a' - 'A'));
      up = 0;
    }
    code++;
  }
  *out = 0;
}

char *show_error(offloop_status status, const char *message, size_t len) {
  char kind[64];
  char *text = hex(message, len);
  kind_of(status, kind);
  char *out = format("err kind=%s status=%d message=%s", kind, status, text);
  free(text);
  return out;
}

char *last_error(offloop_status status) {
  char *message = grab(strdup(offloop_last_error()));
  char *out = show_error(status, message, strlen(message));
  free(message);
  return out;
}

char *driver_error(const char *what) {
  char *text = hex(what, strlen(what));
  char *out = format("err kind=Driver status=0 message=%s", text);
  free(text);
  return out;
}

/* A moved handle is NULL in C: there is nothing to ask the library about. */
static char *detached(void) { return show_error(OFFLOOP_ERR_DETACHED, "the handle is NULL", 18); }

/* Class, message, stack, code and cause of an error, each empty where it has none. */
static char *error_fields(const offloop_value *error) {
  static const char *const keys[] = {"name", "text", "stack", "code", "cause"};
  const char *texts[5] = {"", "", "", "", ""};
  size_t lens[5] = {0};
  const offloop_value *item;
  char *out = format("%s", "");
  if (error != NULL && offloop_value_get_error(error, &texts[0], &lens[0], &texts[1], &lens[1]) == OFFLOOP_OK) {
    offloop_value_get_stack(error, &texts[2], &lens[2]);
    if (offloop_value_error_get(error, "code", &item) == OFFLOOP_OK) offloop_value_get_str(item, &texts[3], &lens[3]);
    const char *name;
    size_t len;
    if (offloop_value_error_get(error, "cause", &item) == OFFLOOP_OK) offloop_value_get_error(item, &name, &len, &texts[4], &lens[4]);
  }
  for (int i = 0; i < 5; i++) {
    char *h = hex(texts[i], lens[i]), *longer = format("%s%s=%s ", out, keys[i], h);
    free(out);
    free(h);
    out = longer;
  }
  return out;
}

/* Frees the value. */
static char *show(offloop_status status, offloop_value *value) {
  const uint8_t *bytes;
  const char *text, *name;
  size_t len, name_len;
  int64_t number;
  bool flag;
  char *out = NULL, *h;
  if (status != OFFLOOP_OK) {
    if (value != NULL && offloop_value_get_error(value, &name, &name_len, &text, &len) == OFFLOOP_OK) {
      out = show_error(status, text, len);
    } else {
      out = last_error(status);
    }
  } else if (value == NULL) {
    out = format("ok other=1");
  } else if (offloop_value_get_bytes(value, &bytes, &len) == OFFLOOP_OK) {
    h = hex(bytes, len);
    out = format("ok bytes=%s", h);
    free(h);
  } else if (offloop_value_get_bool(value, &flag) == OFFLOOP_OK) {
    out = format("ok bool=%s", flag ? "true" : "false");
  } else if (offloop_value_get_int(value, &number) == OFFLOOP_OK) {
    out = format("ok int=%lld", (long long)number);
  } else if (offloop_value_get_str(value, &text, &len) == OFFLOOP_OK) {
    h = hex(text, len);
    out = format("ok text=%s", h);
    free(h);
  } else {
    out = format("ok other=1");
  }
  offloop_value_free(value);
  return out;
}

/* ---- arguments and names ---- */

const char *get(const args_t *args, const char *key) {
  for (int i = 0; i < args->count; i++) {
    if (strcmp(args->keys[i], key) == 0) return args->values[i];
  }
  return NULL;
}

int64_t number(const args_t *args, const char *key, int64_t otherwise) {
  const char *value = get(args, key);
  return value == NULL ? otherwise : strtoll(value, NULL, 10);
}

int64_t ms(const args_t *args, const char *key) { return number(args, key, 0) * 1000000; }

static pool_entry *pool_of(const args_t *args) {
  const char *name = get(args, "pool");
  for (int i = 0; name != NULL && i < pool_count; i++) {
    if (strcmp(pools[i].name, name) == 0) return &pools[i];
  }
  return NULL;
}

static task_entry *task_of(const char *name) {
  for (int i = 0; name != NULL && i < task_count; i++) {
    if (strcmp(tasks[i].name, name) == 0) return &tasks[i];
  }
  return NULL;
}

static buffer_entry *buffer_named(const char *name, int make) {
  for (int i = 0; name != NULL && i < buffer_count; i++) {
    if (strcmp(buffers[i].name, name) == 0) return &buffers[i];
  }
  if (!make || name == NULL || buffer_count == MAX_NAMED) return NULL;
  buffers[buffer_count].name = grab(strdup(name));
  return &buffers[buffer_count++];
}

static task_entry *new_task(const char *name) {
  if (name == NULL || task_count == MAX_NAMED) return NULL;
  tasks[task_count].name = grab(strdup(name));
  return &tasks[task_count++];
}

offloop_value *param(const char *text) {
  offloop_value *value = NULL;
  char *end;
  size_t len;
  if (strcmp(text, "true") == 0 || strcmp(text, "false") == 0) {
    offloop_value_new_bool(text[0] == 't', &value);
  } else if (strncmp(text, "x:", 2) == 0) {
    unsigned char *bytes = unhex(text + 2, &len);
    offloop_value_new_bytes(bytes, len, &value);
    free(bytes);
  } else {
    long long whole = strtoll(text, &end, 10);
    if (*text != 0 && *end == 0) {
      offloop_value_new_int(whole, &value);
    } else {
      double real = strtod(text, &end);
      if (strchr(text, '.') != NULL && *end == 0) {
        offloop_value_new_float(real, &value);
      } else {
        offloop_value_new_str(text, strlen(text), &value);
      }
    }
  }
  return value;
}

static offloop_value *params(const args_t *args) {
  offloop_value *map = NULL;
  for (int i = 0; i < args->count; i++) {
    if (strncmp(args->keys[i], "p.", 2) != 0) continue;
    if (map == NULL) offloop_value_new_map(&map);
    offloop_value *item = param(args->values[i]);
    offloop_value_map_set(map, args->keys[i] + 2, &item);
  }
  return map;
}

/* ---- tasks ---- */

static void settle(task_entry *task, char *reply) {
  pthread_mutex_lock(&lock);
  task->reply = reply;
  pthread_cond_broadcast(&came);
  pthread_mutex_unlock(&lock);
}

static void on_done(void *user, offloop_status status, offloop_value *value) {
  task_entry *task = user;
  char *error = error_fields(status == OFFLOOP_OK ? NULL : value);
  char *reply = show(status, value);
  pthread_mutex_lock(&lock);
  task->error = error;
  if (order[0] != 0) strncat(order, ",", sizeof order - strlen(order) - 1);
  strncat(order, task->name, sizeof order - strlen(order) - 1);
  task->reply = reply;
  pthread_cond_broadcast(&came);
  pthread_mutex_unlock(&lock);
}

/* The one argument of a worker's function: a map of the options, with the input. */
static offloop_value *call_of(const args_t *args, const char *input) {
  offloop_value *map = params(args), *item = NULL, *all = NULL;
  if (map == NULL) offloop_value_new_map(&map);
  if (input != NULL) {
    size_t len;
    unsigned char *bytes = unhex(input, &len);
    offloop_value_new_bytes(bytes, len, &item);
    free(bytes);
    offloop_value_map_set(map, "input", &item);
  }
  offloop_value_new_array(&all);
  offloop_value_array_push(all, &map);
  return all;
}

static void submit_call(pool_entry *pool, const args_t *args, const char *input, task_entry *task, const offloop_submit_options *options) {
  offloop_value *call = call_of(args, input);
  offloop_task *handle = NULL;
  offloop_status status = offloop_process_pool_call(pool->processes, get(args, "op"), &call, options, &handle);
  if (status != OFFLOOP_OK) settle(task, last_error(status));
  pthread_mutex_lock(&lock);
  task->task = handle;
  pthread_mutex_unlock(&lock);
  offloop_value_free(call);
}

static void submit(pool_entry *pool, const args_t *args) {
  task_entry *task = task_of(get(args, "task"));
  offloop_submit_options options = OFFLOOP_SUBMIT_OPTIONS_INIT;
  options.retries = (uint32_t)number(args, "retries", 0);
  options.priority = (int32_t)number(args, "priority", 0);
  options.timeout_ns = ms(args, "timeout");
  options.queue_timeout_ns = ms(args, "queue_timeout");
  options.key = get(args, "key");
  options.on_full = pool->waits ? OFFLOOP_ON_FULL_WAIT : OFFLOOP_ON_FULL_REJECT;
  options.on_done = on_done;
  options.user = task;
  if (pool->processes != NULL) {
    submit_call(pool, args, get(args, "input"), task, &options);
    return;
  }

  offloop_buffer *own = NULL, **input = NULL;
  const char *name = get(args, "buffer"), *text = get(args, "input");
  if (name != NULL) {
    buffer_entry *entry = buffer_named(name, 0);
    if (entry == NULL || entry->buffer == NULL) {
      settle(task, detached());
      return;
    }
    input = &entry->buffer;
  } else if (text != NULL) {
    size_t len;
    unsigned char *bytes = unhex(text, &len);
    offloop_buffer_from_bytes(bytes, len, &own);
    free(bytes);
    input = &own;
  }
  offloop_value *map = params(args);
  offloop_task *handle = NULL;
  offloop_status status = offloop_pool_submit_op(pool->pool, get(args, "op"), input, input != NULL, map, &options, &handle);
  if (status != OFFLOOP_OK) settle(task, last_error(status));
  pthread_mutex_lock(&lock);
  task->task = handle;
  pthread_mutex_unlock(&lock);
  offloop_value_free(map);
  offloop_buffer_free(own);
}

static char *submit_many(pool_entry *pool, const args_t *args) {
  char *names = grab(strdup(get(args, "tasks"))), *inputs = grab(strdup(get(args, "inputs")));
  char *rest_names = names, *rest_inputs = inputs, *name, *input;
  offloop_call calls[MAX_NAMED] = {{0}};
  offloop_buffer *moved[MAX_NAMED] = {0};
  offloop_task *handles[MAX_NAMED] = {0};
  task_entry *first = &tasks[task_count];
  offloop_value *map = params(args);
  size_t n = 0, len;
  while ((name = strsep(&rest_names, ",")) != NULL && (input = strsep(&rest_inputs, ",")) != NULL) {
    if (pool->processes != NULL) {
      offloop_submit_options options = OFFLOOP_SUBMIT_OPTIONS_INIT;
      options.on_done = on_done;
      options.user = new_task(name);
      submit_call(pool, args, input, options.user, &options);
      continue;
    }
    unsigned char *bytes = unhex(input, &len);
    offloop_buffer_from_bytes(bytes, len, &moved[n]);
    free(bytes);
    new_task(name);
    calls[n].op = get(args, "op");
    calls[n].inputs_io = &moved[n];
    calls[n].input_count = 1;
    calls[n].params = map;
    n++;
  }
  offloop_status status = pool->processes != NULL ? OFFLOOP_OK : offloop_pool_submit_many(pool->pool, calls, n, NULL, handles);
  for (size_t i = 0; i < n; i++) {
    if (status != OFFLOOP_OK) {
      settle(&first[i], last_error(status));
      offloop_buffer_free(moved[i]);
    } else {
      first[i].task = handles[i];
      offloop_task_on_done(handles[i], on_done, &first[i], NULL);
    }
  }
  offloop_value_free(map);
  free(names);
  free(inputs);
  return format("ok");
}

/* ---- verbs that wait, each on a thread of its own ---- */

void release(args_t *args) {
  free(args->line);
  free(args);
}

static void *wait_thread(void *arg) {
  args_t *args = arg;
  task_entry *task = task_of(get(args, "task"));
  pthread_mutex_lock(&lock);
  while (task->reply == NULL) pthread_cond_wait(&came, &lock);
  const char *error = task->error == NULL ? "" : task->error;
  char *reply = strcmp(args->verb, "task.error") == 0 ? format("ok %s", error) : grab(strdup(task->reply));
  pthread_mutex_unlock(&lock);
  say(args->number, reply);
  release(args);
  return NULL;
}

static void *close_thread(void *arg) {
  args_t *args = arg;
  int64_t grace = get(args, "grace") == NULL ? -1 : ms(args, "grace");
  pool_entry *pool = pool_of(args);
  offloop_status status = pool->processes != NULL ? offloop_process_pool_shutdown(pool->processes, grace) : offloop_pool_shutdown(pool->pool, grace);
  say(args->number, status == OFFLOOP_OK ? format("ok") : last_error(status));
  release(args);
  return NULL;
}

static void *submit_thread(void *arg) {
  args_t *args = arg;
  submit(pool_of(args), args);
  say(args->number, format("ok"));
  release(args);
  return NULL;
}

static void *op_thread(void *arg) {
  args_t *args = arg;
  offloop_pool *pool = NULL;
  offloop_buffer *input = NULL;
  offloop_task *task = NULL;
  offloop_value *result = NULL, *map = params(args);
  offloop_status status = offloop_pool_default(&pool);
  size_t len;
  unsigned char *bytes = unhex(get(args, "input") == NULL ? "" : get(args, "input"), &len);
  if (status == OFFLOOP_OK) status = offloop_buffer_from_bytes(bytes, len, &input);
  if (status == OFFLOOP_OK) status = offloop_pool_submit_op(pool, get(args, "op"), &input, get(args, "input") != NULL, map, NULL, &task);
  if (status == OFFLOOP_OK) status = offloop_task_wait(task, -1, &result);
  say(args->number, status == OFFLOOP_OK ? show(status, result) : last_error(status));
  offloop_task_free(task);
  offloop_buffer_free(input);
  offloop_value_free(map);
  offloop_pool_free(pool);
  free(bytes);
  release(args);
  return NULL;
}

char *later(void *(*body)(void *), args_t *args) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, body, args) != 0) abort();
  pthread_detach(thread);
  return NULL;
}

/* ---- pools ---- */

static offloop_status make_processes(const args_t *args, offloop_process_pool **out) {
  static const char *own[] = {"/proc/self/exe", "worker", NULL}, *broken[] = {"/proc/self/exe", "broken", NULL};
  const char *command[MAX_ARGS] = {NULL};
  offloop_process_pool_options options = OFFLOOP_PROCESS_POOL_OPTIONS_INIT;
  char *parts = get(args, "command") == NULL ? NULL : grab(strdup(get(args, "command"))), *rest = parts;
  for (int i = 0; rest != NULL && i < MAX_ARGS - 1; i++) command[i] = strsep(&rest, ",");
  options.command = parts != NULL ? command : get(args, "broken") != NULL ? broken : own;
  options.max_workers = number(args, "max_workers", 0);
  options.max_queue = number(args, "max_queue", 0);
  options.cancel_grace_ns = ms(args, "cancel_grace");
  options.max_tasks_per_worker = number(args, "max_tasks_per_worker", 0);
  offloop_status status = offloop_process_pool_new(&options, out);
  free(parts);
  return status;
}

static char *pool_new(const args_t *args) {
  offloop_pool_options options = OFFLOOP_POOL_OPTIONS_INIT;
  options.max_workers = number(args, "max_workers", 0);
  options.max_queue = number(args, "max_queue", 0);
  options.max_overdue = number(args, "max_overdue", 0);
  pool_entry *entry = &pools[pool_count];
  offloop_status status = get(args, "worker") != NULL ? make_processes(args, &entry->processes) : offloop_pool_new(&options, &entry->pool);
  if (status != OFFLOOP_OK) return last_error(status);
  const char *full = get(args, "on_full");
  entry->waits = full != NULL && strcmp(full, "wait") == 0;
  entry->name = grab(strdup(get(args, "pool")));
  pool_count++;
  return format("ok");
}

static char *pool_stats(pool_entry *pool) {
  offloop_stats s;
  s.struct_size = sizeof s;
  offloop_status status = pool->processes != NULL ? offloop_process_pool_stats(pool->processes, &s) : offloop_pool_stats(pool->pool, &s);
  if (status != OFFLOOP_OK) return last_error(status);
#define N(field) (unsigned long long)s.field
  return format("ok queued=%llu running=%llu workers=%llu overdue=%llu submitted=%llu completed=%llu failed=%llu timed_out=%llu cancelled=%llu "
                "lost=%llu retried=%llu recycled=%llu wait_count=%llu run_count=%llu",
                N(queued), N(running), N(workers), N(overdue), N(submitted), N(completed), N(failed), N(timed_out), N(cancelled), N(lost), N(retried),
                N(recycled), N(wait.count), N(run.count));
}

/* ---- calls whose values are messages ---- */

static void call_done(void *user, offloop_status status, offloop_value *value) {
  char *number = user, *reply = NULL;
  if (status == OFFLOOP_OK) {
    offloop_value *nil = NULL;
    offloop_buffer *message = NULL;
    uint8_t *data;
    size_t len;
    if (value == NULL) offloop_value_new_nil(&nil);
    status = offloop_value_encode(value != NULL ? value : nil, NULL, &message);
    if (status == OFFLOOP_OK) status = offloop_buffer_data(message, &data, &len);
    if (status == OFFLOOP_OK) {
      char *h = hex(data, len);
      reply = format("ok message=%s", h);
      free(h);
    } else {
      reply = last_error(status);
    }
    offloop_buffer_free(message);
    offloop_value_free(nil);
    offloop_value_free(value);
  } else {
    char *fields = error_fields(value), *outcome = show(status, value);
    reply = format("%s %s", outcome, fields);
    free(fields);
    free(outcome);
  }
  say(number, reply);
  free(number);
}

static char *pool_call(pool_entry *pool, const args_t *args) {
  offloop_submit_options options = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_value *value = NULL, *all = NULL;
  size_t len;
  unsigned char *bytes = unhex(get(args, "message"), &len);
  offloop_status status = offloop_value_decode(bytes, len, NULL, &value);
  free(bytes);
  if (status == OFFLOOP_OK) status = offloop_value_new_array(&all);
  if (status == OFFLOOP_OK) status = offloop_value_array_push(all, &value);
  options.on_done = call_done;
  options.user = grab(strdup(args->number));
  if (status == OFFLOOP_OK) status = offloop_process_pool_call(pool->processes, get(args, "op"), &all, &options, NULL);
  if (status == OFFLOOP_OK) return NULL;
  free(options.user);
  offloop_value_free(value);
  offloop_value_free(all);
  return last_error(status);
}

/* ---- streams ---- */

static stream_entry *stream_of(const args_t *args) {
  const char *name = get(args, "stream");
  for (int i = 0; name != NULL && i < stream_count; i++) {
    if (strcmp(streams[i].name, name) == 0) return &streams[i];
  }
  return NULL;
}

static void *next_thread(void *arg) {
  args_t *args = arg;
  offloop_value *value = NULL;
  offloop_status status = offloop_stream_next(stream_of(args)->stream, -1, &value);
  say(args->number, status != OFFLOOP_OK ? last_error(status) : value == NULL ? format("ok end=1") : show(status, value));
  release(args);
  return NULL;
}

static char *stream_verb(pool_entry *pool, args_t *args) {
  stream_entry *entry = stream_of(args);
  if (strcmp(args->verb, "stream.open") == 0 && pool != NULL && stream_count < MAX_NAMED) {
    offloop_submit_options options = OFFLOOP_SUBMIT_OPTIONS_INIT;
    options.retries = (uint32_t)number(args, "retries", 0);
    options.timeout_ns = ms(args, "timeout");
    offloop_value *call = call_of(args, NULL);
    stream_entry *made = &streams[stream_count];
    offloop_status status = offloop_process_pool_stream(pool->processes, get(args, "op"), &call, &options, &made->stream);
    offloop_value_free(call);
    if (status != OFFLOOP_OK) return last_error(status);
    made->name = grab(strdup(get(args, "stream")));
    stream_count++;
    return format("ok");
  }
  if (entry == NULL) return driver_error("no such stream, or no such verb");
  if (strcmp(args->verb, "stream.next") == 0) return later(next_thread, args);
  offloop_stream_free(entry->stream);
  entry->stream = NULL;
  return format("ok");
}

/* ---- buffers ---- */

static void foreign_free(void *user) {
  pthread_mutex_lock(&lock);
  freed_count++;
  pthread_mutex_unlock(&lock);
  free(user);
}

static char *buffer_verb(const char *verb, const args_t *args) {
  offloop_buffer *made = NULL;
  offloop_status status = OFFLOOP_OK;
  buffer_entry *entry = buffer_named(get(args, "buf"), 0);
  size_t len = 0;
  uint8_t *data = NULL;
  offloop_token token;
  memset(&token, 0, sizeof token);

  if (strcmp(verb, "buffer.new") == 0) {
    size_t want = (size_t)number(args, "len", 0);
    status = get(args, "shared") != NULL ? offloop_buffer_new_shared(want, &made) : offloop_buffer_new(want, &made);
  } else if (strcmp(verb, "buffer.from") == 0) {
    unsigned char *bytes = unhex(get(args, "data"), &len);
    status = offloop_buffer_from_bytes(bytes, len, &made);
    free(bytes);
  } else if (strcmp(verb, "buffer.foreign") == 0) {
    unsigned char *bytes = unhex(get(args, "data"), &len);
    status = offloop_buffer_from_foreign(bytes, len, bytes, foreign_free, &made);
  } else if (strcmp(verb, "buffer.receive") == 0) {
    strncpy(token.text, get(args, "token"), sizeof token.text - 1);
    status = offloop_buffer_receive(&token, &made);
  } else if (strcmp(verb, "buffer.revoke") == 0) {
    strncpy(token.text, get(args, "token"), sizeof token.text - 1);
    status = offloop_token_revoke(&token);
    return status == OFFLOOP_OK ? format("ok") : last_error(status);
  } else if (strcmp(verb, "buffer.attach") == 0) {
    char path[64];
    const char *from = get(args, "from"), *colon = strchr(from, ':');
    snprintf(path, sizeof path, "/proc/%.*s/fd/%s", (int)(colon - from), from, colon + 1);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return driver_error(path);
    status = offloop_buffer_attach(fd, &made);
    close(fd);
  } else if (entry == NULL) {
    return driver_error("no such buffer, or no such verb");
  } else if (strcmp(verb, "buffer.free") == 0) {
    offloop_buffer_free(entry->buffer);
    entry->buffer = NULL;
    return format("ok");
  } else if (strcmp(verb, "buffer.info") == 0) {
    int fd = -1;
    if (entry->buffer == NULL) return format("ok len=0 detached=1 fd=none");
    status = offloop_buffer_data(entry->buffer, &data, &len);
    if (status != OFFLOOP_OK) return last_error(status);
    if (offloop_buffer_fd(entry->buffer, &fd) != OFFLOOP_OK || fd < 0) return format("ok len=%zu detached=0 fd=none", len);
    return format("ok len=%zu detached=0 fd=%d:%d", len, (int)getpid(), fd);
  } else if (entry->buffer == NULL) {
    return detached();
  } else if (strcmp(verb, "buffer.transfer") == 0) {
    status = offloop_buffer_transfer(&entry->buffer, &token);
    return status == OFFLOOP_OK ? format("ok token=%s", token.text) : last_error(status);
  } else {
    status = offloop_buffer_data(entry->buffer, &data, &len);
    if (status != OFFLOOP_OK) return last_error(status);
    size_t at = (size_t)number(args, "at", 0);
    if (strcmp(verb, "buffer.write") == 0) {
      size_t n;
      unsigned char *bytes = unhex(get(args, "data"), &n);
      memcpy(data + at, bytes, n);
      free(bytes);
      return format("ok");
    }
    char *h = hex(data + at, (size_t)number(args, "len", (int64_t)(len - at)));
    char *reply = format("ok data=%s", h);
    free(h);
    return reply;
  }
  if (status != OFFLOOP_OK) return last_error(status);
  entry = buffer_named(get(args, "buf"), 1);
  entry->buffer = made;
  return format("ok");
}

/* ---- rings ---- */

static ring_entry *ring_named(const char *name) {
  for (int i = 0; name != NULL && i < ring_count; i++) {
    if (strcmp(rings[i].name, name) == 0) return &rings[i];
  }
  return NULL;
}

static char *keep_ring(const char *name, ring_entry made, offloop_status status) {
  if (status != OFFLOOP_OK) return last_error(status);
  if (name == NULL || ring_count == MAX_NAMED) return driver_error("no name, or too many");
  made.name = grab(strdup(name));
  rings[ring_count++] = made;
  return format("ok");
}

static unsigned char *record_of(const args_t *args, size_t *len) {
  if (get(args, "len") == NULL) return unhex(get(args, "data"), len);
  *len = (size_t)number(args, "len", 0);
  return grab(calloc(*len + 1, 1));
}

/* A record as a reply. One that is in flight is kept under its name. */
static char *show_record(offloop_status status, const offloop_record *record, offloop_consumer *consumer, const args_t *args) {
  if (status == OFFLOOP_ERR_EMPTY) return format("ok empty=1");
  if (status != OFFLOOP_OK) return last_error(status);
  char *h = hex(record->data, record->len);
  char *reply = record->delivery == 0 ? format("ok data=%s", h) : format("ok data=%s redelivered=%d", h, record->redelivered != 0);
  free(h);
  if (record->delivery == 0) return reply;
  const char *name = get(args, "as") == NULL ? "" : get(args, "as");
  int i = 0;
  while (i < delivery_count && strcmp(deliveries[i].name, name) != 0) i++;
  if (i == MAX_NAMED) {
    free(reply);
    return driver_error("too many deliveries");
  }
  if (i == delivery_count) deliveries[delivery_count++].name = grab(strdup(name));
  deliveries[i].consumer = consumer;
  deliveries[i].delivery = record->delivery;
  return reply;
}

static char *end_delivery(const char *verb, const args_t *args) {
  for (int i = 0; i < delivery_count; i++) {
    if (strcmp(deliveries[i].name, get(args, "delivery")) != 0) continue;
    offloop_status (*end)(offloop_consumer *, uint64_t) = strcmp(verb, "ring.ack") == 0 ? offloop_consumer_ack : offloop_consumer_nack;
    offloop_status status = end(deliveries[i].consumer, deliveries[i].delivery);
    return status == OFFLOOP_OK ? format("ok") : last_error(status);
  }
  return driver_error("no such delivery");
}

static char *show_pushed(offloop_status status) {
  if (status != OFFLOOP_OK && status != OFFLOOP_ERR_FULL) return last_error(status);
  return format("ok pushed=%d", status == OFFLOOP_OK);
}

static void *push_thread(void *arg) {
  args_t *args = arg;
  size_t len;
  unsigned char *bytes = record_of(args, &len);
  int64_t timeout = get(args, "timeout") == NULL ? -1 : ms(args, "timeout");
  offloop_status status = offloop_producer_push(ring_named(get(args, "producer"))->producer, bytes, len, timeout);
  say(args->number, status == OFFLOOP_OK ? format("ok") : last_error(status));
  free(bytes);
  release(args);
  return NULL;
}

static void *pop_thread(void *arg) {
  args_t *args = arg;
  offloop_record record;
  offloop_consumer *consumer = ring_named(get(args, "consumer"))->consumer;
  offloop_status status = offloop_consumer_pop(consumer, get(args, "timeout") == NULL ? -1 : ms(args, "timeout"), &record);
  char *reply = show_record(status, &record, consumer, args);
  offloop_consumer_release(consumer);
  say(args->number, reply);
  release(args);
  return NULL;
}

static char *ring_make(const char *verb, const args_t *args) {
  ring_entry made = {0}, *ring = ring_named(get(args, "ring"));
  if (strcmp(verb, "ring.create") == 0) {
    offloop_ring_options options = OFFLOOP_RING_OPTIONS_INIT;
    options.kind = get(args, "kind");
    options.on_full = get(args, "on_full");
    options.capacity = (size_t)number(args, "capacity", 0);
    options.slot_size = (size_t)number(args, "slot_size", 0);
    options.max_participants = (size_t)number(args, "max_participants", 0);
    options.path = get(args, "path");
    offloop_status status = offloop_ring_create(&options, &made.ring);
    return keep_ring(get(args, "ring"), made, status);
  }
  if (strcmp(verb, "ring.attach") == 0 && get(args, "path") != NULL) {
    offloop_status status = offloop_ring_attach_path(get(args, "path"), &made.ring);
    return keep_ring(get(args, "ring"), made, status);
  }
  if (strcmp(verb, "ring.attach") == 0) {
    int32_t fds[MAX_NAMED];
    size_t count = 0;
    char *list = grab(strdup(get(args, "fds"))), *rest = list, *one;
    while ((one = strsep(&rest, ",")) != NULL && count < MAX_NAMED) fds[count++] = atoi(one);
    free(list);
    offloop_status status = offloop_ring_attach(fds, count, &made.ring);
    return keep_ring(get(args, "ring"), made, status);
  }
  if (ring == NULL) return driver_error("no such ring, or no such verb");
  if (strcmp(verb, "ring.producer") == 0) {
    offloop_producer_options options = OFFLOOP_PRODUCER_OPTIONS_INIT;
    options.batch = get(args, "batch") != NULL;
    offloop_status status = offloop_producer_new(ring->ring, &options, &made.producer);
    return keep_ring(get(args, "producer"), made, status);
  }
  if (strcmp(verb, "ring.consumer") == 0) {
    offloop_consumer_options options = OFFLOOP_CONSUMER_OPTIONS_INIT;
    options.ack = get(args, "ack");
    offloop_status status = offloop_consumer_new(ring->ring, &options, &made.consumer);
    return keep_ring(get(args, "consumer"), made, status);
  }
  if (strcmp(verb, "ring.close") != 0) return driver_error("no such verb");
  offloop_status status = offloop_ring_close(ring->ring);
  return status == OFFLOOP_OK ? format("ok") : last_error(status);
}

static char *ring_inspect(const args_t *args) {
  offloop_value *stat = NULL;
  const offloop_value *kind, *capacity, *participants;
  const char *text;
  size_t len, count;
  int64_t bytes;
  offloop_status status = offloop_ring_inspect(get(args, "path"), &stat);
  if (status == OFFLOOP_OK) status = offloop_value_map_get(stat, "kind", &kind);
  if (status == OFFLOOP_OK) status = offloop_value_get_str(kind, &text, &len);
  if (status == OFFLOOP_OK) status = offloop_value_map_get(stat, "capacity", &capacity);
  if (status == OFFLOOP_OK) status = offloop_value_get_int(capacity, &bytes);
  if (status == OFFLOOP_OK) status = offloop_value_map_get(stat, "participants", &participants);
  if (status == OFFLOOP_OK) status = offloop_value_array_len(participants, &count);
  char *reply = status == OFFLOOP_OK ? format("ok kind=%.*s capacity=%lld participants=%zu", (int)len, text, (long long)bytes, count) : last_error(status);
  offloop_value_free(stat);
  return reply;
}

static char *ring_verb(const char *verb, args_t *args) {
  if (strcmp(verb, "ring.inspect") == 0) return ring_inspect(args);
  ring_entry *producer = ring_named(get(args, "producer")), *consumer = ring_named(get(args, "consumer"));
  if (get(args, "ring") != NULL) return ring_make(verb, args);
  if (get(args, "delivery") != NULL) return end_delivery(verb, args);
  if (producer != NULL) {
    if (strcmp(verb, "ring.push") == 0) return later(push_thread, args);
    if (strcmp(verb, "ring.flush") == 0) {
      offloop_status status = offloop_producer_flush(producer->producer);
      return status == OFFLOOP_OK ? format("ok") : last_error(status);
    }
    size_t len;
    void *room;
    unsigned char *bytes = record_of(args, &len);
    offloop_status status;
    if (strcmp(verb, "ring.claim") == 0) {
      status = offloop_producer_try_claim(producer->producer, len, &room);
      if (status == OFFLOOP_OK) {
        memcpy(room, bytes, len);
        status = offloop_producer_commit(producer->producer, len);
      }
    } else {
      status = offloop_producer_try_push(producer->producer, bytes, len);
    }
    free(bytes);
    return show_pushed(status);
  }
  if (consumer == NULL) return driver_error("no such producer or consumer");
  if (strcmp(verb, "ring.pop") == 0) return later(pop_thread, args);
  if (strcmp(verb, "ring.leave") == 0) {
    offloop_consumer_free(consumer->consumer);
    return format("ok");
  }
  offloop_record records[MAX_NAMED];
  size_t count = 0, max = (size_t)number(args, "max", 1);
  if (strcmp(verb, "ring.try_pop") == 0) {
    offloop_status status = offloop_consumer_try_pop(consumer->consumer, records);
    char *reply = show_record(status, records, consumer->consumer, args);
    offloop_consumer_release(consumer->consumer);
    return reply;
  }
  offloop_status status = offloop_consumer_read(consumer->consumer, records, max < MAX_NAMED ? max : MAX_NAMED, &count);
  if (status != OFFLOOP_OK && status != OFFLOOP_ERR_EMPTY) return last_error(status);
  char *reply = format("ok data=");
  for (size_t i = 0; i < count; i++) {
    char *h = hex(records[i].data, records[i].len), *longer = format("%s%s%s", reply, i == 0 ? "" : ",", h);
    free(h);
    free(reply);
    reply = longer;
  }
  offloop_consumer_release(consumer->consumer);
  return reply;
}

/* ---- channels ---- */

/* All zero when there is none. */
static channel_entry channel_named(const char *name) {
  channel_entry found = {0};
  pthread_mutex_lock(&lock);
  for (int i = 0; name != NULL && i < channel_count; i++) {
    if (strcmp(channels[i].name, name) == 0) found = channels[i];
  }
  pthread_mutex_unlock(&lock);
  return found;
}

char *keep_channel(const char *name, channel_entry made, offloop_status status) {
  if (status != OFFLOOP_OK) return last_error(status);
  if (name == NULL) return driver_error("no name");
  pthread_mutex_lock(&lock);
  if (channel_count == MAX_NAMED) abort();
  made.name = grab(strdup(name));
  channels[channel_count++] = made;
  pthread_mutex_unlock(&lock);
  return format("ok");
}

/* The value of a message: text of the line, or a buffer, which moves. */
static offloop_value *message_of(const args_t *args) {
  buffer_entry *entry = buffer_named(get(args, "buffer"), 0);
  offloop_value *value = NULL;
  if (entry == NULL) return param(get(args, "value"));
  offloop_value_new_buffer(&entry->buffer, &value);
  return value;
}

/* `show`, of a buffer too. Frees the value. */
char *show_message(offloop_value *value) {
  offloop_buffer *buffer = NULL;
  uint8_t *data;
  size_t len;
  if (offloop_value_take_buffer(&value, &buffer) != OFFLOOP_OK) return show(OFFLOOP_OK, value);
  offloop_status status = offloop_buffer_data(buffer, &data, &len);
  if (status != OFFLOOP_OK) return last_error(status);
  char *h = hex(data, len), *reply = format("ok bytes=%s", h);
  free(h);
  offloop_buffer_free(buffer);
  return reply;
}

static offloop_channel_options sizes_of(const args_t *args) {
  offloop_channel_options options = OFFLOOP_CHANNEL_OPTIONS_INIT;
  if (get(args, "max_queued") != NULL) options.max_queued = (size_t)atol(get(args, "max_queued"));
  return options;
}

static char *channel_wait(const char *verb, const args_t *args) {
  channel_entry made = {0}, channel = channel_named(get(args, "channel"));
  offloop_status status;
  offloop_incoming in;
  if (strcmp(verb, "channel.accept") == 0) {
    status = offloop_listener_accept(channel_named(get(args, "listener")).listener, -1, &made.channel);
    return keep_channel(get(args, "channel"), made, status);
  }
  if (strcmp(verb, "channel.connect") == 0) {
    offloop_channel_options options = sizes_of(args);
    status = offloop_channel_connect(get(args, "path"), -1, &options, &made.channel);
    return keep_channel(get(args, "channel"), made, status);
  }
  if (strcmp(verb, "channel.recv") == 0) {
    status = offloop_channel_recv(channel.channel, -1, &in);
    if (status != OFFLOOP_OK) return last_error(status);
    int asked = in.kind == OFFLOOP_INCOMING_REQUEST;
    made.channel = channel.channel;
    made.request = in.id;
    if (asked) free(keep_channel(get(args, "as"), made, OFFLOOP_OK));
    char *shown = show_message(in.value), *reply = format("%s request=%d", shown, asked);
    free(shown);
    return reply;
  }
  offloop_value *value = message_of(args);
  if (strcmp(verb, "channel.send") == 0) {
    status = offloop_channel_send(channel.channel, &value, NULL, 0, -1);
  } else {
    status = offloop_channel_request(channel.channel, &value, NULL, 0, get(args, "timeout") == NULL ? -1 : ms(args, "timeout"), &in);
  }
  char *reply = status != OFFLOOP_OK ? last_error(status) : strcmp(verb, "channel.send") == 0 ? format("ok") : show_message(in.value);
  offloop_value_free(value);
  return reply;
}

static void *channel_thread(void *arg) {
  args_t *args = arg;
  say(args->number, channel_wait(args->verb, args));
  release(args);
  return NULL;
}

static char *channel_verb(const char *verb, args_t *args) {
  channel_entry made = {0}, other = {0};
  offloop_status status;
  if (strcmp(verb, "channel.pair") == 0) {
    status = offloop_channel_pair(NULL, &made.channel, &other.channel);
    free(keep_channel(get(args, "other"), other, status));
    return keep_channel(get(args, "channel"), made, status);
  }
  if (strcmp(verb, "channel.listen") == 0) {
    offloop_channel_options options = sizes_of(args);
    status = offloop_channel_listen(get(args, "path"), &options, &made.listener);
    return keep_channel(get(args, "listener"), made, status);
  }
  if (strcmp(verb, "channel.close") == 0) {
    offloop_channel *channel = channel_named(get(args, "channel")).channel;
    status = get(args, "grace") == NULL ? offloop_channel_close(channel) : offloop_channel_shutdown(channel, ms(args, "grace"));
    return status == OFFLOOP_OK ? format("ok") : last_error(status);
  }
  if (strcmp(verb, "channel.reply") == 0) {
    channel_entry asked = channel_named(get(args, "request"));
    offloop_value *value = message_of(args);
    status = offloop_channel_reply(asked.channel, asked.request, 0, &value, NULL, 0, -1);
    offloop_value_free(value);
    return status == OFFLOOP_OK ? format("ok") : last_error(status);
  }
  static const char *const waits[] = {"channel.accept", "channel.connect", "channel.recv", "channel.send", "channel.request"};
  for (size_t i = 0; i < sizeof waits / sizeof *waits; i++) {
    if (strcmp(verb, waits[i]) == 0) return later(channel_thread, args);
  }
  return driver_error("no such verb");
}

/* ---- the driver as a worker: the functions that scenarios name as `op`, each with one map ---- */

static const offloop_value *argument(offloop_task_ctx *ctx) {
  const offloop_value *all, *one;
  return offloop_ctx_params(ctx, &all) == OFFLOOP_OK && offloop_value_array_get(all, 0, &one) == OFFLOOP_OK ? one : NULL;
}

static const offloop_value *option(offloop_task_ctx *ctx, const char *key) {
  const offloop_value *item;
  return offloop_value_map_get(argument(ctx), key, &item) == OFFLOOP_OK ? item : NULL;
}

static int64_t whole(offloop_task_ctx *ctx, const char *key) {
  int64_t n = 0;
  offloop_value_get_int(option(ctx, key), &n);
  return n;
}

static int32_t give(offloop_task_ctx *ctx, const offloop_value *value) {
  offloop_value *copy = NULL;
  offloop_status status = value == NULL ? OFFLOOP_OK : offloop_value_copy(value, &copy);
  return status == OFFLOOP_OK && copy != NULL ? offloop_ctx_set_result(ctx, &copy) : status;
}

static int32_t noop(offloop_task_ctx *ctx, void *arg) {
  (void)arg;
  for (int64_t left = whole(ctx, "sleep_ms"); left > 0; left--) {
    offloop_status status = offloop_ctx_cancelled(ctx);
    if (status != OFFLOOP_OK) return status;
    usleep(1000);
  }
  return give(ctx, option(ctx, "input"));
}

static int32_t length_of(offloop_task_ctx *ctx, void *arg) {
  const uint8_t *bytes;
  size_t len;
  offloop_value *n = NULL;
  (void)arg;
  offloop_status status = offloop_value_get_bytes(option(ctx, "input"), &bytes, &len);
  if (status == OFFLOOP_OK) status = offloop_value_new_int((int64_t)len, &n);
  return status == OFFLOOP_OK ? offloop_ctx_set_result(ctx, &n) : status;
}

static int32_t leave(offloop_task_ctx *ctx, void *arg) {
  (void)arg;
  _exit((int)whole(ctx, "code"));
}

static int32_t kill_self(offloop_task_ctx *ctx, void *arg) {
  (void)arg;
  kill(getpid(), (int)whole(ctx, "signal"));
  pause();
  return OFFLOOP_OK;
}

static int32_t fault(offloop_task_ctx *ctx, void *arg) {
  (void)ctx;
  *(volatile char *)arg = 1; /* its argument is NULL */
  return OFFLOOP_OK;
}

static int32_t eat(offloop_task_ctx *ctx, void *arg) {
  (void)ctx;
  for (volatile int going = arg == NULL; going;) memset(grab(malloc(1 << 24)), 1, 1 << 24);
  return OFFLOOP_OK;
}

static int32_t spin(offloop_task_ctx *ctx, void *arg) {
  (void)ctx;
  for (volatile int going = arg == NULL; going;) {}
  return OFFLOOP_OK;
}

static int32_t fail(offloop_task_ctx *ctx, void *arg) {
  const char *text;
  char copy[256];
  size_t len;
  (void)arg;
  if (offloop_value_get_str(option(ctx, "text"), &text, &len) == OFFLOOP_OK) {
    snprintf(copy, sizeof copy, "%.*s", (int)len, text);
    offloop_ctx_set_error(ctx, copy);
  }
  return 7;
}

static int32_t count(offloop_task_ctx *ctx, void *arg) {
  for (int64_t i = 0; i != whole(ctx, "n"); i++) {
    offloop_value *n = NULL;
    usleep(1000 * (useconds_t)whole(ctx, "sleep_ms"));
    offloop_status status = offloop_value_new_int(i, &n);
    if (status == OFFLOOP_OK) status = offloop_ctx_give(ctx, &n);
    offloop_value_free(n);
    if (status != OFFLOOP_OK) return status == OFFLOOP_ERR_CLOSED ? OFFLOOP_OK : status;
  }
  if (option(ctx, "code") != NULL) return leave(ctx, arg);
  return option(ctx, "text") != NULL ? fail(ctx, arg) : OFFLOOP_OK;
}

static int32_t echo(offloop_task_ctx *ctx, void *arg) {
  (void)arg;
  return give(ctx, argument(ctx));
}

static int32_t what(offloop_task_ctx *ctx, void *arg) {
  static const char *const names[] = {"nil", "bool", "int", "big", "float", "str", "bytes", "array", "map", "date", "typed", "buffer", "error"};
  offloop_value *name = NULL;
  uint32_t type;
  (void)arg;
  offloop_status status = offloop_value_get_type(argument(ctx), &type);
  if (status == OFFLOOP_OK) status = offloop_value_new_str(names[type], OFFLOOP_NUL_TERMINATED, &name);
  return status == OFFLOOP_OK ? offloop_ctx_set_result(ctx, &name) : status;
}

static int worker(int broken) {
  static const offloop_function good[] = {
      {"noop", noop, NULL}, {"length", length_of, NULL}, {"exit", leave, NULL}, {"kill", kill_self, NULL}, {"fault", fault, NULL}, {"eat", eat, NULL},
      {"spin", spin, NULL}, {"fail", fail, NULL},        {"count", count, NULL}, {"echo", echo, NULL}, {"what", what, NULL}};
  static const offloop_function bad[] = {{"no model", noop, NULL}, {"no model", noop, NULL}};
  if (broken) return offloop_worker_main(bad, 2) != OFFLOOP_OK;
  return offloop_worker_main(good, sizeof good / sizeof *good) != OFFLOOP_OK;
}

/* ---- the loop ---- */

/* NULL when the reply comes later, from a thread that owns `args`. */
static char *run(args_t *args) {
  const char *verb = args->verb;
  pool_entry *pool = pool_of(args);
  task_entry *task;
  if (strcmp(verb, "hello") == 0) {
    return format("ok lang=c abi=%u wire=%u caps=foreign,back,ordered,grace,processes,names,counts,leaves,streams,rings,channels,clusters", (unsigned)offloop_abi_version(), (unsigned)offloop_wire_version());
  }
  if (strcmp(verb, "pool.new") == 0) return pool_new(args);
  if (strcmp(verb, "order.take") == 0) {
    pthread_mutex_lock(&lock);
    char *reply = format("ok tasks=%s", order);
    order[0] = 0;
    pthread_mutex_unlock(&lock);
    return reply;
  }
  if (strcmp(verb, "foreign.freed") == 0) {
    pthread_mutex_lock(&lock);
    char *reply = format("ok count=%d", freed_count);
    pthread_mutex_unlock(&lock);
    return reply;
  }
  if (strcmp(verb, "op.run") == 0) return later(op_thread, args);
  if (strncmp(verb, "buffer.", 7) == 0) return buffer_verb(verb, args);
  if (strncmp(verb, "ring.", 5) == 0) return ring_verb(verb, args);
  if (strncmp(verb, "channel.", 8) == 0) return channel_verb(verb, args);
  if (strncmp(verb, "cluster.", 8) == 0) return cluster_verb(verb, args);
  if (strncmp(verb, "stream.", 7) == 0) return stream_verb(pool, args);
  if (strncmp(verb, "task.", 5) == 0) {
    if ((task = task_of(get(args, "task"))) == NULL) return driver_error("no such task");
    if (strcmp(verb, "task.wait") == 0 || strcmp(verb, "task.error") == 0) return later(wait_thread, args);
    pthread_mutex_lock(&lock);
    offloop_task *handle = task->task;
    pthread_mutex_unlock(&lock);
    if (handle != NULL) offloop_task_cancel(handle);
    return format("ok");
  }
  if (pool == NULL) return driver_error("no such pool, or no such verb");
  if (strcmp(verb, "pool.submit") == 0) {
    new_task(get(args, "task"));
    if (pool->waits) return later(submit_thread, args);
    submit(pool, args);
    return format("ok");
  }
  if (strcmp(verb, "pool.submit_many") == 0) return submit_many(pool, args);
  if (strcmp(verb, "pool.stats") == 0) return pool_stats(pool);
  if (strcmp(verb, "pool.call") == 0) {
    char *reply = pool_call(pool, args);
    if (reply == NULL) release(args);
    return reply;
  }
  if (strcmp(verb, "pool.close") == 0) return later(close_thread, args);
  if (strcmp(verb, "pool.resize") == 0) {
    int64_t least = number(args, "min_workers", -1), most = number(args, "max_workers", -1);
    offloop_status status = pool->processes != NULL ? offloop_process_pool_resize(pool->processes, least, most) : offloop_pool_resize(pool->pool, least, most);
    return status == OFFLOOP_OK ? format("ok") : last_error(status);
  }
  return driver_error("no such verb");
}

int main(int argc, char **argv) {
  if (argc == 5 && strcmp(argv[1], "member") == 0) return member(argv + 2);
  if (argc > 1) return worker(strcmp(argv[1], "broken") == 0);
  char *line = NULL;
  size_t room = 0;
  ssize_t len;
  while ((len = getline(&line, &room, stdin)) > 0) {
    if (line[len - 1] == '\n') line[len - 1] = 0;
    args_t *args = grab(calloc(1, sizeof *args));
    args->line = grab(strdup(line));
    char *rest = args->line, *token;
    args->number = strsep(&rest, " ");
    args->verb = strsep(&rest, " ");
    while (rest != NULL && (token = strsep(&rest, " ")) != NULL && args->count < MAX_ARGS) {
      char *value = strchr(token, '=');
      if (value == NULL) continue;
      *value = 0;
      args->keys[args->count] = token;
      args->values[args->count++] = value + 1;
    }
    char *number_text = grab(strdup(args->number));
    char *reply = run(args);
    if (reply != NULL) {
      say(number_text, reply);
      release(args);
    }
    free(number_text);
  }
  free(line);
  return 0;
}

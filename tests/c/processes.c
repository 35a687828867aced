/* Process pools under good and bad use. `abi worker` is a worker of one, `abi worker twice` one with a table that is none. */
#define _GNU_SOURCE
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LONG_AGO 30000 /* ms; ends a hang of a worker, nothing is measured by it */

static void nap(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&t, NULL);
}

/* ---- the worker's part ---- */

static const offloop_value *argument(offloop_task_ctx *ctx, size_t i) {
  const offloop_value *all, *one;
  if (offloop_ctx_params(ctx, &all) || offloop_value_array_get(all, i, &one)) return NULL;
  return one;
}
static int64_t number(offloop_task_ctx *ctx, size_t i) {
  int64_t n = 0;
  offloop_value_get_int(argument(ctx, i), &n);
  return n;
}
static int32_t result(offloop_task_ctx *ctx, offloop_value *v) { return offloop_ctx_set_result(ctx, &v); }

static int32_t echo(offloop_task_ctx *ctx, void *arg) {
  offloop_value *v = NULL;
  (void)arg;
  if (!argument(ctx, 0)) return OFFLOOP_OK;
  return offloop_value_copy(argument(ctx, 0), &v) || result(ctx, v);
}
static int32_t add(offloop_task_ctx *ctx, void *arg) { return result(ctx, int_value(number(ctx, 0) + number(ctx, 1) + *(int *)arg)); }
static int32_t context(offloop_task_ctx *ctx, void *arg) {
  offloop_value *v = NULL;
  (void)arg;
  OK(offloop_worker_context(&v));
  return v ? result(ctx, v) : OFFLOOP_OK;
}
static int32_t pid(offloop_task_ctx *ctx, void *arg) { (void)arg; return result(ctx, int_value(getpid())); }
static int32_t where(offloop_task_ctx *ctx, void *arg) {
  char text[4200];
  offloop_value *v = NULL;
  const char *had = getenv("OFFLOOP_TEST_ADDED");
  size_t len;
  (void)arg;
  snprintf(text, sizeof text, "%s ", had ? had : "(none)");
  len = strlen(text);
  if (!getcwd(text + len, sizeof text - len)) return 1;
  OK(offloop_value_new_str(text, OFFLOOP_NUL_TERMINATED, &v));
  return result(ctx, v);
}
static int32_t fail(offloop_task_ctx *ctx, void *arg) {
  (void)arg;
  offloop_ctx_set_error(ctx, "no such city");
  return (int32_t)number(ctx, 0);
}
static int32_t leave(offloop_task_ctx *ctx, void *arg) { (void)arg; _exit((int)number(ctx, 0)); }
static int32_t shoot(offloop_task_ctx *ctx, void *arg) {
  (void)arg;
  kill(getpid(), (int)number(ctx, 0));
  nap(LONG_AGO);
  return OFFLOOP_OK;
}
static int32_t once(offloop_task_ctx *ctx, void *arg) { /* ends its first process: argument 0 is a path that is not there yet */
  const char *text;
  char path[64];
  size_t len;
  int fd;
  (void)arg;
  OK(offloop_value_get_str(argument(ctx, 0), &text, &len));
  snprintf(path, sizeof path, "%.*s", (int)len, text);
  fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
  if (fd >= 0) _exit(9);
  return result(ctx, int_value(getpid()));
}
static int32_t stubborn(offloop_task_ctx *ctx, void *arg) { (void)ctx, (void)arg; nap(LONG_AGO); return OFFLOOP_OK; }
static int32_t listens(offloop_task_ctx *ctx, void *arg) {
  offloop_value *v = int_value(getpid());
  offloop_status s;
  (void)arg;
  OK(offloop_ctx_progress(ctx, &v)); /* it runs */
  while ((s = offloop_ctx_cancelled(ctx)) == OFFLOOP_OK) nap(1);
  return s;
}
static int32_t tells(offloop_task_ctx *ctx, void *arg) {
  int64_t i, n = number(ctx, 0);
  (void)arg;
  for (i = 1; i <= n; i++) {
    offloop_value *v = int_value(i);
    OK(offloop_ctx_progress(ctx, &v));
    nap(2);
  }
  return result(ctx, int_value(n));
}

/* Gives 1 … n, then fails if a second argument says so. */
static int32_t gives(offloop_task_ctx *ctx, void *arg) {
  int64_t i, n = number(ctx, 0);
  const offloop_value *args = NULL;
  size_t len = 0;
  (void)arg;
  for (i = 1; i <= n; i++) {
    offloop_value *v = int_value(i);
    offloop_status s = offloop_ctx_give(ctx, &v);
    if (s) {
      CHECK(s == OFFLOOP_ERR_CLOSED && v);
      offloop_value_free(v);
      break;
    }
    CHECK(!v);
  }
  OK(offloop_ctx_params(ctx, &args));
  OK(offloop_value_array_len(args, &len));
  if (len > 1) return OFFLOOP_ERR_NOT_FOUND;
  return result(ctx, int_value(i - 1));
}

/* Comes back in a child as well: what that process says is nobody's. */
static int32_t forks(offloop_task_ctx *ctx, void *arg) {
  pid_t child = fork();
  (void)arg;
  CHECK(child >= 0);
  return result(ctx, int_value(child ? child : -1));
}
/* Runs this program, as a worker may run any: it is nobody's worker. */
static int32_t starts_itself(offloop_task_ctx *ctx, void *arg) {
  pid_t child = fork();
  int status = 0;
  (void)arg;
  if (!child) {
    execl("/proc/self/exe", "test", "worker", "nobodys", (char *)NULL);
    _exit(1);
  }
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
  return result(ctx, int_value(WEXITSTATUS(status)));
}

int process_child(const char *how) {
  static int hundred = 100;
  static const offloop_function good[] = {
    {"echo", echo, NULL}, {"add", add, &hundred}, {"pid", pid, NULL}, {"where", where, NULL}, {"fail", fail, NULL}, {"leave", leave, NULL},
    {"shoot", shoot, NULL}, {"once", once, NULL}, {"stubborn", stubborn, NULL}, {"listens", listens, NULL}, {"gives", gives, NULL}, {"tells", tells, NULL}, {"context", context, NULL},
    {"forks", forks, NULL}, {"starts itself", starts_itself, NULL}};
  static const offloop_function twice[] = {{"echo", echo, NULL}, {"echo", add, &hundred}};
  if (how && !strcmp(how, "early")) { /* asks before it is a worker, and again afterwards */
    offloop_value *v = NULL;
    OK(offloop_worker_context(&v));
    hundred = (int)int_of(v);
    offloop_value_free(v);
    OK(offloop_worker_main(good, sizeof good / sizeof *good));
    return offloop_worker_context(&v) == OFFLOOP_ERR_IN_USE ? 0 : 7;
  }
  if (how && !strcmp(how, "nobodys")) return offloop_worker_main(good, 1) == OFFLOOP_ERR_UNSUPPORTED ? 42 : 43;
  if (how) return offloop_worker_main(twice, 2) == OFFLOOP_ERR_EXISTS ? 3 : 4;
  if (offloop_worker_main(good, sizeof good / sizeof *good)) return 5;
  return offloop_worker_main(good, 1) == OFFLOOP_ERR_IN_USE ? 0 : 6;
}

/* ---- the pool's part ---- */

static const char *const worker[] = {"/proc/self/exe", "worker", NULL};

static offloop_process_pool_options options_of(int64_t workers) {
  offloop_process_pool_options o = OFFLOOP_PROCESS_POOL_OPTIONS_INIT;
  o.command = worker;
  o.max_workers = workers;
  return o;
}
static offloop_process_pool *make(const offloop_process_pool_options *o) {
  offloop_process_pool *p = NULL;
  OK(offloop_process_pool_new(o, &p));
  return p;
}
static offloop_process_pool *procs(int64_t workers) {
  offloop_process_pool_options o = options_of(workers);
  return make(&o);
}
static offloop_value *args_of(offloop_value *first) {
  offloop_value *all = NULL;
  OK(offloop_value_new_array(&all));
  if (first) OK(offloop_value_array_push(all, &first));
  return all;
}
static offloop_task *call_with(offloop_process_pool *p, const char *name, offloop_value *first, const offloop_submit_options *o) {
  offloop_value *args = args_of(first);
  offloop_task *t = NULL;
  OK(offloop_process_pool_call(p, name, &args, o, &t));
  CHECK(args == NULL && t != NULL);
  return t;
}
static offloop_status outcome(offloop_task *t, offloop_value **v) {
  offloop_status s = offloop_task_wait(t, -1, v);
  offloop_task_free(t);
  return s;
}
static offloop_status status_of(offloop_process_pool *p, const char *name, offloop_value *first) {
  offloop_value *v = NULL;
  offloop_status s = outcome(call_with(p, name, first, NULL), &v);
  CHECK(v == NULL);
  return s;
}
static int64_t int_back(offloop_task *t) {
  offloop_value *v = NULL;
  int64_t n;
  OK(outcome(t, &v));
  n = int_of(v);
  offloop_value_free(v);
  return n;
}
static int64_t ask(offloop_process_pool *p, const char *name, offloop_value *first) { return int_back(call_with(p, name, first, NULL)); }
static offloop_stats stats_of(offloop_process_pool *p) {
  offloop_stats s;
  s.struct_size = sizeof s;
  OK(offloop_process_pool_stats(p, &s));
  return s;
}
static int has_children(void) { /* reaps none */
  siginfo_t info;
  return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 || errno != ECHILD;
}
/* No process is left when a shutdown returns. */
static void end(offloop_process_pool *p) {
  OK(offloop_process_pool_shutdown(p, -1));
  CHECK(!has_children());
  offloop_process_pool_free(p);
}

static void calls(void) {
  offloop_process_pool *p = procs(2);
  offloop_task *tasks[200];
  offloop_value *args, *v = NULL;
  offloop_stats s;
  int i;
  for (i = 0; i < 200; i++) tasks[i] = call_with(p, "echo", int_value(i), NULL);
  for (i = 0; i < 200; i++) CHECK(int_back(tasks[i]) == i);
  CHECK(ask(p, "pid", NULL) != getpid());

  /* several arguments, and what the function's own arg holds */
  args = args_of(int_value(1));
  v = int_value(20);
  OK(offloop_value_array_push(args, &v));
  OK(offloop_process_pool_call(p, "add", &args, NULL, &tasks[0]));
  CHECK(args == NULL && int_back(tasks[0]) == 121);

  /* no arguments, no result; nobody waits */
  OK(offloop_process_pool_call(p, "echo", NULL, NULL, &tasks[0]));
  v = (void *)&v;
  OK(outcome(tasks[0], &v));
  CHECK(v == NULL);
  OK(offloop_process_pool_call(p, "pid", NULL, NULL, NULL));

  OK(offloop_process_pool_shutdown(p, -1));
  s = stats_of(p);
  CHECK(s.submitted == 204 && s.completed == 204 && s.failed == 0 && s.lost == 0 && s.run.count == 204);
  IS(offloop_process_pool_call(p, "pid", NULL, NULL, NULL), CLOSED);
  end(p);
}

static void long_values(void) {
  static const size_t lens[] = {0, 1, 2000, 2032, 2033, 2048, 2049, 100000, 16 << 20};
  offloop_process_pool *p = procs(2);
  size_t i, k, len;
  const uint8_t *back;
  for (i = 0; i < sizeof lens / sizeof *lens; i++) {
    offloop_buffer *b = NULL;
    offloop_value *v = NULL;
    uint8_t *data;
    OK(offloop_buffer_new(lens[i], &b));
    OK(offloop_buffer_data(b, &data, &len));
    for (k = 0; k < len; k++) data[k] = (uint8_t)(k * 7 % 251);
    OK(offloop_value_new_buffer(&b, &v));
    OK(outcome(call_with(p, "echo", v, NULL), &v));
    OK(offloop_value_get_bytes(v, &back, &len));
    CHECK(len == lens[i]);
    for (k = 0; k < len && back[k] == (uint8_t)(k * 7 % 251); k++) {}
    CHECK(k == len);
    offloop_value_free(v);
  }
  end(p);
}

static void errors(void) {
  offloop_process_pool *p = procs(1);
  offloop_value *array = args_of(NULL), *other = int_value(1);
  const offloop_value *view;
  offloop_task *t = NULL;

  CHECK(status_of(p, "fail", int_value(OFFLOOP_ERR_NOT_FOUND)) == OFFLOOP_ERR_NOT_FOUND);
  CHECK(!strcmp(offloop_last_error(), "not found: no such city"));
  CHECK(status_of(p, "fail", int_value(7)) == OFFLOOP_ERR_TASK_FAILED);
  CHECK(!strcmp(offloop_last_error(), "task failed: no such city (status=7)"));
  CHECK(status_of(p, "no such", NULL) == OFFLOOP_ERR_NOT_FOUND);
  CHECK(says("name=no such") && says("functions=add context echo fail"));
  CHECK(stats_of(p).failed == 3 && stats_of(p).completed == 0);

  /* what a refused call was given stays the caller's */
  IS(offloop_process_pool_call(p, "echo", &other, NULL, &t), INVALID);
  CHECK(says("arguments are not an array") && t == NULL && int_of(other) == 1);
  OK(offloop_value_array_push(array, &other));
  OK(offloop_value_array_get(array, 0, &view));
  other = (offloop_value *)(uintptr_t)view;
  IS(offloop_process_pool_call(p, "echo", &other, NULL, &t), INVALID);
  IS(offloop_process_pool_call(p, NULL, &array, NULL, &t), INVALID);
  IS(offloop_process_pool_call(p, "\xff", &array, NULL, &t), INVALID);
  IS(offloop_process_pool_call(NULL, "echo", &array, NULL, &t), INVALID);
  IS(offloop_process_pool_call(FORGED, "echo", &array, NULL, &t), INVALID);
  IS(offloop_process_pool_call((void *)array, "echo", &array, NULL, &t), INVALID);
  CHECK(says("want=process pool") && says("got=value"));
  IS(offloop_pool_stats((void *)p, NULL), INVALID);
  other = NULL;
  IS(offloop_process_pool_call(p, "echo", &other, NULL, &t), INVALID);
  other = FORGED;
  IS(offloop_process_pool_call(p, "echo", &other, NULL, &t), INVALID);
  end(p);
  IS(offloop_process_pool_call(p, "echo", &array, NULL, &t), INVALID);
  IS(offloop_process_pool_shutdown(p, 0), INVALID);
  offloop_process_pool_free(p);
  offloop_process_pool_free(NULL);
  OK(offloop_value_array_get(array, 0, &view));
  CHECK(t == NULL && int_of(view) == 1);
  offloop_value_free(array);

  IS(offloop_worker_main(NULL, 0), UNSUPPORTED);
  CHECK(says("no process pool has started this process"));
  other = (void *)&other;
  IS(offloop_worker_context(&other), UNSUPPORTED);
  IS(offloop_worker_context(NULL), INVALID);
  CHECK(other == (void *)&other);
}

static void names_of_arguments(void) {
  offloop_process_pool *p = procs(1);
  offloop_value *args = args_of(int_value(4)), *named = NULL, *seven = int_value(7);
  const offloop_value *view;
  offloop_task *t = NULL;
  OK(offloop_value_new_map(&named));
  OK(offloop_process_pool_call_named(p, "echo", &args, &named, NULL, &t));
  CHECK(!args && !named && int_back(t) == 4); /* none in the map */
  OK(offloop_process_pool_call_named(p, "pid", NULL, NULL, NULL, &t));
  CHECK(int_back(t) > 0);

  /* what a refused call was given stays the caller's, in its place */
  args = args_of(int_value(5));
  IS(offloop_process_pool_call_named(p, "echo", &args, &seven, NULL, &t), INVALID);
  CHECK(says("arguments by name are not a map") && says("got=int") && int_of(seven) == 7);
  OK(offloop_value_new_map(&named));
  IS(offloop_process_pool_call_named(p, "echo", &named, &args, NULL, &t), INVALID);
  CHECK(says("arguments are not an array"));
  IS(offloop_process_pool_call_named(p, "echo", &named, &named, NULL, &t), IN_USE);
  OK(offloop_value_map_set(named, "n", &seven));
  OK(offloop_process_pool_call_named(p, "echo", &args, &named, NULL, &t));
  IS(outcome(t, NULL), INVALID);
  CHECK(!args && !named && says("have no named arguments") && says("named=1"));
  end(p);
  args = args_of(int_value(6)), seven = int_value(7);
  OK(offloop_value_new_map(&named));
  OK(offloop_value_map_set(named, "n", &seven));
  IS(offloop_process_pool_call_named(p, "echo", &args, &named, NULL, &t), INVALID);
  p = procs(1);
  OK(offloop_process_pool_shutdown(p, -1));
  IS(offloop_process_pool_call_named(p, "echo", &args, &named, NULL, &t), CLOSED);
  OK(offloop_value_array_get(args, 0, &view));
  CHECK(int_of(view) == 6);
  OK(offloop_value_map_get(named, "n", &view));
  CHECK(int_of(view) == 7);
  offloop_value_free(args);
  offloop_value_free(named);
  end(p);
}

static void contexts(void) {
  static const char *const early[] = {"/proc/self/exe", "worker", "early", NULL};
  offloop_process_pool_options o = options_of(1);
  offloop_process_pool *p = procs(1);
  offloop_value *v = NULL, *twenty = int_value(20), *args = args_of(int_value(1)), *two = int_value(2);
  const offloop_value *view;
  OK(outcome(call_with(p, "context", NULL, NULL), &v));
  CHECK(v == NULL); /* there is none */
  end(p);

  o.context = twenty;
  p = make(&o);
  CHECK(int_of(twenty) == 20); /* copied */
  offloop_value_free(twenty);
  CHECK(ask(p, "context", NULL) == 20);
  end(p);

  /* it may be asked for before the functions are offered; values keep their form */
  twenty = int_value(20), o.command = early, o.context = twenty;
  p = make(&o);
  OK(offloop_value_array_push(args, &two));
  {
    offloop_task *t = NULL;
    OK(offloop_process_pool_call(p, "add", &args, NULL, &t));
    CHECK(int_back(t) == 23);
  }
  end(p);
  offloop_value_free(twenty);
  o = options_of(1), args = args_of(int_value(3)), o.context = args;
  p = make(&o);
  OK(outcome(call_with(p, "context", NULL, NULL), &v));
  OK(offloop_value_array_get(v, 0, &view));
  CHECK(int_of(view) == 3);
  offloop_value_free(v);
  end(p);
  offloop_value_free(args);
  o.context = FORGED;
  IS(offloop_process_pool_new(&o, &p), INVALID);
}

static void sizes(void) {
  offloop_process_pool_options o = options_of(1);
  offloop_process_pool *p;
  offloop_task *held[3];
  offloop_value *v;
  int i;

  /* more workers run more at once; one that is too many ends when it is idle */
  o.idle_timeout_ns = 1 * MS;
  p = make(&o);
  for (i = 0; i < 3; i++) held[i] = call_with(p, "listens", NULL, NULL);
  while (stats_of(p).running < 1) nap(1);
  nap(20);
  CHECK(stats_of(p).running == 1 && stats_of(p).queued == 2);
  OK(offloop_process_pool_resize(p, -1, 3));
  while (stats_of(p).running < 3) nap(1);
  OK(offloop_process_pool_resize(p, -1, 1));
  for (i = 0; i < 3; i++) {
    OK(offloop_task_cancel(held[i]));
    IS(outcome(held[i], NULL), CANCELLED);
  }
  while (stats_of(p).workers > 1) nap(1);
  CHECK(ask(p, "pid", NULL) > 0 && stats_of(p).cancelled == 3);
  IS(offloop_process_pool_resize(p, -1, 5000), INVALID);
  CHECK(says("option=max_workers, value=5000"));
  IS(offloop_process_pool_resize(p, 2, 1), INVALID);
  IS(offloop_process_pool_resize(NULL, -1, 1), INVALID);
  end(p);

  /* terminate: what runs and what waits is cancelled, and no process is left */
  p = procs(1);
  for (i = 0; i < 3; i++) held[i] = call_with(p, "stubborn", NULL, NULL);
  while (stats_of(p).running < 1) nap(1);
  OK(offloop_process_pool_terminate(p));
  for (i = 0; i < 3; i++) {
    v = NULL;
    IS(outcome(held[i], &v), CANCELLED);
  }
  IS(offloop_process_pool_call(p, "pid", NULL, NULL, NULL), CLOSED);
  while (has_children()) nap(1);
  OK(offloop_process_pool_terminate(p));
  IS(offloop_process_pool_terminate(NULL), INVALID);
  end(p);
}

static void counts(void) {
  offloop_process_pool_options o = options_of(1);
  offloop_submit_options again = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_process_pool *p;
  offloop_stats s;
  int i;
  again.retries = 2;
  p = procs(1);
  IS(outcome(call_with(p, "leave", int_value(4), &again), NULL), WORKER_LOST);
  s = stats_of(p);
  CHECK(s.retried == 2 && s.lost == 1 && s.recycled == 0);
  end(p);
  o.max_tasks_per_worker = 1;
  p = make(&o);
  for (i = 0; i < 4; i++) CHECK(ask(p, "pid", NULL) > 0);
  while (stats_of(p).recycled < 3) nap(1);
  CHECK(stats_of(p).retried == 0 && stats_of(p).completed == 4);
  end(p);
}

static void bad_options(void) {
  static const char *const none[] = {NULL};
  static const char *const nameless[] = {"=x", NULL};
  static const char *const bare[] = {"A=1", "B", NULL};
  offloop_process_pool *p = NULL;
  offloop_process_pool_options o = OFFLOOP_PROCESS_POOL_OPTIONS_INIT;
  IS(offloop_process_pool_new(NULL, &p), INVALID);
  IS(offloop_process_pool_new(&o, &p), INVALID);
  CHECK(says("has no command"));
#define BAD(field, value, text) do { o = options_of(1); o.field = value; IS(offloop_process_pool_new(&o, &p), INVALID); CHECK(says(text)); } while (0)
  BAD(command, none, "has no command");
  BAD(command, (void *)((uintptr_t)none + 1), "misaligned");
  BAD(env, nameless, "text==x");
  BAD(env, bare, "text=B");
  BAD(max_workers, 5000, "option=max_workers, value=5000");
  BAD(min_workers, -1, "option=min_workers, value=-1");
  BAD(min_workers, 2, "option=min_workers, value=2");
  BAD(max_queue, -1, "option=max_queue");
  BAD(idle_timeout_ns, -1, "option=idle_timeout_ns");
  BAD(concurrency, 5000, "option=concurrency");
  BAD(cancel_grace_ns, -1, "option=cancel_grace_ns");
  BAD(max_tasks_per_worker, -1, "option=max_tasks_per_worker");
  BAD(max_worker_age_ns, -1, "option=max_worker_age_ns");
  BAD(ready_timeout_ns, -1, "option=ready_timeout_ns");
  BAD(nice, 20, "option=nice");
  BAD(name, "\xff", "UTF-8");
  BAD(struct_size, 8, "struct_size");
#undef BAD
  o = options_of(1);
  IS(offloop_process_pool_new(&o, NULL), INVALID);
  CHECK(p == NULL);
}

static void places(void) {
  static const char *const added[] = {"OFFLOOP_TEST_ADDED=a=b", NULL};
  offloop_process_pool_options o = options_of(1);
  offloop_process_pool *p;
  offloop_value *v = NULL;
  const char *text;
  size_t len;
  setenv("OFFLOOP_TEST_ADDED", "the program's own", 1);
  o.env = added;
  o.cwd = "/usr";
  o.name = "elsewhere";
  p = make(&o);
  OK(outcome(call_with(p, "where", NULL, NULL), &v));
  OK(offloop_value_get_str(v, &text, &len));
  CHECK(len == 8 && !memcmp(text, "a=b /usr", 8));
  offloop_value_free(v);
  end(p);
  o = options_of(1);
  p = make(&o);
  setenv("OFFLOOP_TEST_ADDED", "too late", 1);
  OK(outcome(call_with(p, "where", NULL, NULL), &v));
  OK(offloop_value_get_str(v, &text, &len));
  CHECK(!memcmp(text, "the program's own ", 18));
  offloop_value_free(v);
  unsetenv("OFFLOOP_TEST_ADDED");
  end(p);
}

/* ---- completion queues and callbacks ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int done, freed;
static struct { offloop_status status; char name[40], message[80]; int64_t number; } last;

static void text_into(char *to, size_t room, const char *text, size_t len) { snprintf(to, room, "%.*s", (int)len, text); }
static void on_done(void *user, offloop_status status, offloop_value *v) {
  const char *name, *message;
  size_t name_len, message_len;
  pthread_mutex_lock(&lock);
  last.status = status, last.number = -1, last.name[0] = last.message[0] = 0;
  if (status == OFFLOOP_OK && v) last.number = int_of(v);
  if (status != OFFLOOP_OK) {
    OK(offloop_value_get_error(v, &name, &name_len, &message, &message_len));
    text_into(last.name, sizeof last.name, name, name_len);
    text_into(last.message, sizeof last.message, message, message_len);
  }
  offloop_value_free(v);
  CHECK(user == &last);
  done++;
  pthread_mutex_unlock(&lock);
}
static void on_free(void *user) {
  CHECK(user == &last);
  pthread_mutex_lock(&lock);
  freed++;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}
static void await_freed(int n) {
  pthread_mutex_lock(&lock);
  while (freed < n) pthread_cond_wait(&changed, &lock);
  CHECK(freed == n && done == n);
  pthread_mutex_unlock(&lock);
}
static offloop_event next_event(offloop_cq *cq) {
  offloop_event e;
  size_t n = 0;
  for (;;) {
    OK(offloop_cq_drain(cq, &e, 1, &n));
    if (n) return e;
    OK(offloop_cq_wait(cq, -1));
  }
}
static void is_error(offloop_value *v, const char *want_name, const char *want_message, const char *want_code) {
  const char *name, *message, *code;
  const offloop_value *property;
  size_t n, m, c;
  OK(offloop_value_get_error(v, &name, &n, &message, &m));
  CHECK(n == strlen(want_name) && !memcmp(name, want_name, n) && m == strlen(want_message) && !memcmp(message, want_message, m));
  OK(offloop_value_error_get(v, "code", &property));
  OK(offloop_value_get_str(property, &code, &c));
  CHECK(c == strlen(want_code) && !memcmp(code, want_code, c));
  offloop_value_free(v);
}
static void deliveries(void) {
  offloop_process_pool *p = procs(1);
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_cq *cq = NULL;
  offloop_event e;
  offloop_value *args;
  offloop_task *t;
  int64_t said = 0, i;
  size_t n;
  OK(offloop_cq_new(&cq));
  o.cq = cq;

  /* events have the caller's tag, and what the function gave or failed with */
  for (i = 0; i < 50; i++) {
    o.tag = (uint64_t)(1000 + i);
    offloop_task_free(call_with(p, "echo", int_value(i), &o));
  }
  for (i = 0; i < 50; i++) {
    e = next_event(cq);
    CHECK(e.kind == OFFLOOP_EVENT_DONE && e.status == OFFLOOP_OK && int_of(e.value) == (int64_t)e.tag - 1000);
    offloop_value_free(e.value);
  }
  o.tag = 7;
  offloop_task_free(call_with(p, "fail", int_value(7), &o));
  e = next_event(cq);
  CHECK(e.tag == 7 && e.status == OFFLOOP_ERR_TASK_FAILED);
  is_error(e.value, "OffloopError", "task failed: no such city (status=7)", "ERR_OFFLOOP_TASK_FAILED");

  /* progress, and nothing of it after the outcome */
  offloop_task_free(call_with(p, "tells", int_value(20), &o));
  for (;;) {
    e = next_event(cq);
    CHECK(e.tag == 7 && e.status == OFFLOOP_OK);
    i = int_of(e.value);
    offloop_value_free(e.value);
    if (e.kind == OFFLOOP_EVENT_DONE) break;
    CHECK(i > said && i <= 20);
    said = i;
  }
  CHECK(i == 20 && said > 0);
  OK(offloop_cq_drain(cq, &e, 1, &n));
  CHECK(n == 0);

  /* callbacks: inside a drain, on a thread of offloop, and afterwards */
  o.tag = 0, o.on_done = on_done, o.user = &last, o.user_free = on_free;
  offloop_task_free(call_with(p, "echo", int_value(5), &o));
  while (freed < 1) {
    OK(offloop_cq_wait(cq, -1));
    OK(offloop_cq_drain(cq, &e, 1, &n));
    CHECK(n == 0);
  }
  await_freed(1);
  CHECK(last.status == OFFLOOP_OK && last.number == 5);
  o.cq = NULL;
  offloop_task_free(call_with(p, "fail", int_value(OFFLOOP_ERR_TOO_LARGE), &o));
  await_freed(2);
  CHECK(last.status == OFFLOOP_ERR_TOO_LARGE && !strcmp(last.name, "OffloopError") && !strcmp(last.message, "too large: no such city"));
  t = call_with(p, "echo", int_value(6), NULL);
  OK(offloop_task_on_done(t, on_done, &last, on_free));
  await_freed(3);
  CHECK(last.status == OFFLOOP_OK && last.number == 6);
  IS(offloop_task_wait(t, -1, NULL), INVALID);
  offloop_task_free(t);

  /* a refused call calls nothing and leaves nothing in the queue */
  OK(offloop_process_pool_shutdown(p, -1));
  o.cq = cq;
  args = args_of(NULL);
  IS(offloop_process_pool_call(p, "pid", &args, &o, NULL), CLOSED);
  o.on_done = NULL, o.user_free = NULL, o.tag = 9;
  IS(offloop_process_pool_call(p, "pid", &args, &o, NULL), CLOSED);
  o.tag = (uint64_t)1 << 63;
  IS(offloop_process_pool_call(p, "pid", &args, &o, NULL), INVALID);
  CHECK(args != NULL);
  offloop_value_free(args);
  OK(offloop_cq_drain(cq, &e, 1, &n));
  CHECK(n == 0 && freed == 3 && done == 3);
  offloop_cq_free(cq);
  end(p);
}

/* ---- what goes wrong with workers ---- */

static void losses(void) {
  offloop_process_pool *p = procs(1);
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  char folder[] = "/tmp/offloop-once-XXXXXX", path[64];
  offloop_value *v = NULL;
  int64_t first = ask(p, "pid", NULL);
  CHECK(status_of(p, "leave", int_value(3)) == OFFLOOP_ERR_WORKER_LOST);
  CHECK(says("exit_code=3"));
  CHECK(status_of(p, "shoot", int_value(SIGKILL)) == OFFLOOP_ERR_WORKER_LOST);
  CHECK(says("signal=9"));
  CHECK(ask(p, "pid", NULL) != first);
  CHECK(stats_of(p).lost == 2);

  /* a call that may run again does */
  CHECK(mkdtemp(folder) != NULL);
  snprintf(path, sizeof path, "%s/ran", folder);
  OK(offloop_value_new_str(path, OFFLOOP_NUL_TERMINATED, &v));
  o.retries = 1;
  CHECK(int_back(call_with(p, "once", v, &o)) > 0);
  CHECK(unlink(path) == 0 && rmdir(folder) == 0);
  CHECK(stats_of(p).lost == 2);
  IS(outcome(call_with(p, "leave", int_value(4), &o), &v), WORKER_LOST);
  CHECK(says("exit_code=4") && says("poison"));
  end(p);
}

static void children_of_workers(void) {
  offloop_process_pool *p = procs(1);
  int i;
  CHECK(ask(p, "starts itself", NULL) == 42);
  for (i = 0; i < 3; i++) CHECK(ask(p, "forks", NULL) > 0);
  for (i = 0; i < 500; i++) CHECK(ask(p, "echo", int_value(i)) == i);
  CHECK(stats_of(p).workers == 1);
  end(p);
}

static void deadlines(void) {
  offloop_process_pool_options stern = options_of(1), mild = options_of(1);
  offloop_submit_options o = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_process_pool *p;
  offloop_event e;
  offloop_task *t;
  offloop_cq *cq = NULL;
  int64_t first;

  /* one that does not listen loses its process, and no other call */
  stern.cancel_grace_ns = 20 * MS;
  p = make(&stern);
  first = ask(p, "pid", NULL);
  o.timeout_ns = 50 * MS;
  IS(outcome(call_with(p, "stubborn", NULL, &o), NULL), TIMEOUT);
  CHECK(ask(p, "pid", NULL) != first);
  CHECK(stats_of(p).timed_out == 1);
  end(p);

  /* one that does keeps it */
  mild.cancel_grace_ns = LONG_AGO * MS;
  p = make(&mild);
  OK(offloop_cq_new(&cq));
  o.timeout_ns = 0, o.cq = cq, o.tag = 3;
  first = ask(p, "pid", NULL);
  t = call_with(p, "listens", NULL, &o);
  e = next_event(cq);
  CHECK(e.kind == OFFLOOP_EVENT_PROGRESS && int_of(e.value) == first);
  offloop_value_free(e.value);
  OK(offloop_task_cancel(t));
  do e = next_event(cq), offloop_value_free(e.value);
  while (e.kind != OFFLOOP_EVENT_DONE);
  CHECK(e.status == OFFLOOP_ERR_CANCELLED && e.tag == 3);
  offloop_task_free(t);
  CHECK(ask(p, "pid", NULL) == first);
  offloop_cq_free(cq);
  end(p);

  /* shutdown without patience cancels what runs; outcomes of a freed pool still come */
  p = procs(1);
  t = call_with(p, "stubborn", NULL, NULL);
  while (stats_of(p).running == 0) nap(1);
  OK(offloop_process_pool_shutdown(p, 0));
  IS(outcome(t, NULL), CANCELLED);
  end(p);
  p = procs(1);
  t = call_with(p, "echo", int_value(9), NULL);
  offloop_process_pool_free(p);
  CHECK(int_back(t) == 9);
  while (has_children()) nap(1);
}

static offloop_stream *stream_with(offloop_process_pool *p, int64_t n, int fails) {
  offloop_value *args = args_of(int_value(n)), *more = fails ? int_value(1) : NULL;
  offloop_stream *s = NULL;
  if (more) OK(offloop_value_array_push(args, &more));
  OK(offloop_process_pool_stream(p, "gives", &args, NULL, &s));
  CHECK(!args && s);
  return s;
}
static void streams(void) {
  offloop_process_pool *p = procs(1);
  offloop_submit_options with_cq = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_cq *cq = NULL;
  offloop_value *v = NULL, *args = args_of(int_value(1));
  offloop_stream *s = stream_with(p, 5000, 0);
  int64_t i;

  for (i = 1; i <= 5000; i++) {
    OK(offloop_stream_next(s, -1, &v));
    CHECK(int_of(v) == i);
    offloop_value_free(v);
  }
  OK(offloop_stream_next(s, -1, &v));
  CHECK(!v);
  OK(offloop_stream_next(s, 0, &v)); /* the end stays */
  CHECK(!v);
  offloop_stream_free(s);

  s = stream_with(p, 2, 1); /* the values before an error, the error, the end */
  for (i = 1; i <= 2; i++) {
    OK(offloop_stream_next(s, -1, &v));
    CHECK(int_of(v) == i);
    offloop_value_free(v);
  }
  IS(offloop_stream_next(s, -1, &v), NOT_FOUND);
  OK(offloop_stream_next(s, -1, &v));
  CHECK(!v);
  offloop_stream_free(s);

  offloop_stream_free(stream_with(p, INT64_MAX, 0)); /* nobody reads: the worker is free for others */
  s = stream_with(p, INT64_MAX, 0);
  OK(offloop_stream_next(s, -1, &v));
  offloop_value_free(v);
  offloop_stream_free(s);
  IS(offloop_stream_next(s, 0, &v), INVALID); /* freed */
  CHECK(ask(p, "gives", int_value(9)) == 0); /* a plain call takes nothing */

  OK(offloop_cq_new(&cq));
  with_cq.cq = cq;
  s = NULL;
  IS(offloop_process_pool_stream(p, "gives", &args, &with_cq, &s), INVALID);
  CHECK(args && !s);
  IS(offloop_process_pool_stream(p, NULL, &args, NULL, &s), INVALID);
  IS(offloop_process_pool_stream(p, "gives", &args, NULL, NULL), INVALID);
  IS(offloop_stream_next(NULL, 0, &v), INVALID);
  OK(offloop_process_pool_stream(p, "none", &args, NULL, &s));
  IS(offloop_stream_next(s, -1, &v), NOT_FOUND);
  offloop_stream_free(s);
  offloop_stream_free(NULL);
  offloop_cq_free(cq);
  end(p);
}
static void starts(void) {
  static const char *const missing[] = {"/no/such/program", NULL};
  static const char *const twice[] = {"/proc/self/exe", "worker", "twice", NULL};
  static const char *const sleeps[] = {"sleep", "600", NULL};
  offloop_process_pool_options o = options_of(1);
  offloop_process_pool *p;
  int i;
  o.command = missing;
  p = make(&o);
  CHECK(status_of(p, "echo", NULL) == OFFLOOP_ERR_NOT_FOUND);
  CHECK(says("/no/such/program"));
  end(p);
  o.command = twice;
  p = make(&o);
  CHECK(status_of(p, "echo", NULL) == OFFLOOP_ERR_START_FAILED);
  CHECK(says("two functions have one name") && says("name=echo"));
  end(p);
  /* one that is never ready */
  o.command = sleeps, o.ready_timeout_ns = 50 * MS;
  p = make(&o);
  CHECK(status_of(p, "echo", NULL) == OFFLOOP_ERR_START_FAILED);
  end(p);
  /* replaced before they are worn out */
  for (i = 0; i < 20; i++) {
    int64_t a, b;
    o = options_of(1);
    o.max_tasks_per_worker = 1;
    p = make(&o);
    a = ask(p, "pid", NULL), b = ask(p, "pid", NULL);
    CHECK(a != b);
    end(p);
  }
}

void process_pools(void) {
  int fds, tries, before = open_fds();
  calls();
  /* What the first pool of a process makes for all stays; the supervisors' thread closes its own fds as it ends. */
  CHECK(fds_settle(before + 8));
  fds = open_fds();
  long_values();
  errors();
  bad_options();
  places();
  names_of_arguments();
  contexts();
  sizes();
  counts();
  deliveries();
  losses();
  children_of_workers();
  deadlines();
  streams();
  starts();
  for (tries = 0; tries < 10000 && open_fds() > fds; tries++) nap(1); /* a pool's thread may still be on its way out */
  CHECK(open_fds() <= fds);
}

#ifdef FAILPOINTS
void offloop_failpoint_panic(void);
#define P(call) do { offloop_failpoint_panic(); IS(call, PANIC); CHECK(says("failpoint")); } while (0)
#define PV(call) do { offloop_failpoint_panic(); call; CHECK(says("failpoint")); } while (0)
void process_panics(void) {
  offloop_process_pool_options o = options_of(1);
  offloop_process_pool *p = procs(1);
  offloop_value *args = args_of(int_value(4));
  offloop_task *t = NULL;
  uint64_t scratch[80] = {sizeof scratch};
  void *x = scratch;
  P(offloop_process_pool_new(&o, x)); P(offloop_process_pool_call(p, "echo", &args, NULL, &t));
  P(offloop_process_pool_call_named(p, "echo", &args, NULL, NULL, &t)); P(offloop_process_pool_resize(p, -1, 2)); P(offloop_process_pool_terminate(p));
  P(offloop_worker_context(x)); P(offloop_process_pool_shutdown(p, 0));
  P(offloop_process_pool_stats(p, x)); PV(offloop_process_pool_free(p)); P(offloop_worker_main(NULL, 0));
  /* everything is still there */
  OK(offloop_process_pool_call(p, "echo", &args, NULL, &t));
  CHECK(int_back(t) == 4);
  end(p);
}
#endif

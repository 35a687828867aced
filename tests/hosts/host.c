/* A C program with a pool of processes under a storm of kills: see main.rs. `host-c worker` is a worker of it. */
#define _GNU_SOURCE
#include <offloop.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WATCHDOG 120000000000LL /* ns; ends a hang, nothing is measured by it */

static void failed(const char *what) {
  printf("fail %s (last error: %s)\n", what, offloop_last_error());
  fflush(stdout);
  exit(1);
}
#define CHECK(holds) do { if (!(holds)) failed(#holds); } while (0)
#define OK(call) CHECK((call) == OFFLOOP_OK)

/* ---- the worker's part ---- */

static int64_t number(offloop_task_ctx *ctx) {
  const offloop_value *all, *one;
  int64_t n = 0;
  if (offloop_ctx_params(ctx, &all) == OFFLOOP_OK && offloop_value_array_get(all, 0, &one) == OFFLOOP_OK) offloop_value_get_int(one, &n);
  return n;
}
static int32_t give(offloop_task_ctx *ctx, int64_t n) {
  offloop_value *v = NULL;
  offloop_status s = offloop_value_new_int(n, &v);
  return s == OFFLOOP_OK ? offloop_ctx_set_result(ctx, &v) : s;
}
static int32_t echo(offloop_task_ctx *ctx, void *arg) { return arg == NULL ? give(ctx, number(ctx)) : 1; }
static int32_t hold(offloop_task_ctx *ctx, void *arg) { /* says who runs it, and never ends */
  offloop_value *v = NULL;
  if (offloop_value_new_int(getpid(), &v) != OFFLOOP_OK || offloop_ctx_progress(ctx, &v) != OFFLOOP_OK) return 1;
  for (volatile int holds = arg == NULL; holds;) pause();
  return OFFLOOP_OK;
}
static int32_t doze(offloop_task_ctx *ctx, void *arg) {
  usleep((useconds_t)number(ctx) * 1000);
  return arg == NULL ? give(ctx, number(ctx)) : 1;
}

static int worker(void) {
  static const offloop_function functions[] = {{"echo", echo, NULL}, {"hold", hold, NULL}, {"sleep", doze, NULL}};
  return offloop_worker_main(functions, 3) != OFFLOOP_OK;
}

/* ---- the host's ---- */

static uint64_t state;
static uint64_t below(uint64_t n) { /* xorshift64*, by seed */
  state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
  return (state * 0x2545F4914F6CDD1DULL >> 20) % n;
}

static void mark(const char *name) { /* the runner looks at this process while nothing runs */
  char line[16];
  printf("mark %s\n", name);
  fflush(stdout);
  CHECK(fgets(line, sizeof line, stdin) != NULL);
}

/* Whether this is a live child: the number of one that is gone may be anybody's. */
static int is_live(int64_t process) {
  char path[64], text[1024] = "", *end, how = 'Z';
  int parent = 0;
  snprintf(path, sizeof path, "/proc/%lld/stat", (long long)process);
  FILE *file = fopen(path, "r");
  if (file == NULL) return 0;
  size_t len = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[len] = 0;
  if ((end = strrchr(text, ')')) == NULL) return 0;
  int read = sscanf(end + 1, " %c %d", &how, &parent);
  return read == 2 && how != 'Z' && parent == getpid();
}

typedef struct {
  int64_t kills, tasks, done, lost, poison, retried;
  int64_t flying, holding; /* without an outcome: short ones, and those that wait for their end */
} found;

/* The tag of a task that waits for its end. */
#define HOLDS ((uint64_t)1 << 40)

static void call(offloop_process_pool *pool, offloop_cq *cq, const char *name, int64_t n, uint64_t tag, found *f) {
  offloop_submit_options options = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_value *all = NULL, *value = NULL;
  options.cq = cq;
  options.tag = tag;
  options.retries = tag < HOLDS && tag % 5 == 0 ? 2 : 0;
  OK(offloop_value_new_array(&all));
  OK(offloop_value_new_int(n, &value));
  OK(offloop_value_array_push(all, &value));
  OK(offloop_process_pool_call(pool, name, &all, &options, NULL));
  f->tasks++;
  if (tag < HOLDS) f->flying++;
  else f->holding++;
}

static void event(const offloop_event *e, found *f) {
  int64_t got = 0;
  if (e->kind == OFFLOOP_EVENT_PROGRESS) { /* who holds: killed a little later, while others are on their way */
    OK(offloop_value_get_int(e->value, &got));
    if (below(2) == 0) usleep((useconds_t)below(4000));
    if (is_live(got) && kill((pid_t)got, SIGKILL) == 0) f->kills++;
  } else if (e->status == OFFLOOP_ERR_WORKER_LOST) {
    const char *name, *text;
    size_t len, n;
    OK(offloop_value_get_error(e->value, &name, &len, &text, &n));
    CHECK(memmem(text, n, "signal=9", 8) != NULL);
    f->lost++;
    f->poison += memmem(text, n, "poison=true", 11) != NULL;
  } else {
    CHECK(e->tag < HOLDS);
    OK(e->status);
    OK(offloop_value_get_int(e->value, &got));
    CHECK(got == (e->tag % 3 == 2 ? 2 : (int64_t)e->tag));
    f->done++;
  }
  if (e->kind == OFFLOOP_EVENT_DONE && e->tag < HOLDS) f->flying--;
  else if (e->kind == OFFLOOP_EVENT_DONE) f->holding--;
  offloop_value_free(e->value);
}

/* Kills workers until `kills` are dead, each with a task that waits for its end. Every task has one outcome: its own result, or WorkerLost. */
static found storm(int64_t kills) {
  static const char *const command[] = {"/proc/self/exe", "worker", NULL};
  offloop_process_pool_options options = OFFLOOP_PROCESS_POOL_OPTIONS_INIT;
  offloop_process_pool *pool = NULL;
  offloop_cq *cq = NULL;
  found f = {0};
  options.command = command;
  options.max_workers = 3;
  OK(offloop_process_pool_new(&options, &pool));
  OK(offloop_cq_new(&cq));
  for (uint64_t next = 0, holds = 0; f.kills < kills || f.flying + f.holding > 0;) {
    offloop_event events[64];
    size_t n;
    for (; f.kills < kills && f.flying < 60; next++) call(pool, cq, next % 3 == 2 ? "sleep" : "echo", next % 3 == 2 ? 2 : (int64_t)next, next, &f);
    /* One worker of three is free for the others. */
    for (; f.kills < kills && f.holding < 2; holds++) call(pool, cq, "hold", 0, HOLDS + holds, &f);
    OK(offloop_cq_wait(cq, WATCHDOG));
    OK(offloop_cq_drain(cq, events, 64, &n));
    for (size_t i = 0; i < n; i++) event(&events[i], &f);
  }
  offloop_stats stats;
  stats.struct_size = sizeof stats;
  OK(offloop_process_pool_stats(pool, &stats));
  f.retried = (int64_t)stats.retried;
  OK(offloop_process_pool_shutdown(pool, -1));
  offloop_process_pool_free(pool);
  offloop_cq_free(cq);
  CHECK((int64_t)stats.submitted == f.tasks && (int64_t)stats.completed == f.done && (int64_t)stats.lost == f.lost);
  return f;
}

static const char *argument(int argc, char **argv, const char *key) {
  for (int i = 1; i < argc; i++) {
    if (strncmp(argv[i], key, strlen(key)) == 0 && argv[i][strlen(key)] == '=') return argv[i] + strlen(key) + 1;
  }
  return "0";
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "worker") == 0) return worker();
  state = strtoull(argument(argc, argv, "seed"), NULL, 10) | 1;
  storm(atoll(argument(argc, argv, "warm")));
  mark("before");
  found f = storm(atoll(argument(argc, argv, "kills")));
  mark("after");
  printf("done kills=%lld tasks=%lld done=%lld lost=%lld poison=%lld retried=%lld\n", (long long)f.kills, (long long)f.tasks, (long long)f.done,
         (long long)f.lost, (long long)f.poison, (long long)f.retried);
  return 0;
}

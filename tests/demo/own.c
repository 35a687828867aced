/* A function of one's own, inline and offloaded to processes that are this program, too. One line each: name=value parts. */
#define _POSIX_C_SOURCE 200809L
#include <offloop.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* Primes below n, the slow way. */
static int64_t primes(int64_t n) {
  int64_t count = 0;
  for (int64_t i = 2; i < n; i++) {
    int64_t d = 2;
    while (d * d <= i && i % d != 0) d++;
    count += d * d > i;
  }
  return count;
}

static int32_t primes_of(offloop_task_ctx *ctx, void *arg) {
  const offloop_value *all, *first;
  offloop_value *result = NULL;
  int64_t n;
  (void)arg;
  offloop_status s = offloop_ctx_params(ctx, &all);
  if (s == OFFLOOP_OK) s = offloop_value_array_get(all, 0, &first);
  if (s == OFFLOOP_OK) s = offloop_value_get_int(first, &n);
  if (s == OFFLOOP_OK) s = offloop_value_new_int(primes(n), &result);
  return s == OFFLOOP_OK ? offloop_ctx_set_result(ctx, &result) : s;
}

static void need(offloop_status status) {
  if (status == OFFLOOP_OK) return;
  fprintf(stderr, "%s\n", offloop_last_error());
  exit(1);
}

/* Calls the function, and goes round an event loop with a 1 ms timer until all results are there: how late it is, at worst. */
static int64_t offloaded(offloop_process_pool *pool, offloop_cq *cq, int calls, int64_t n, double *late) {
  offloop_submit_options options = OFFLOOP_SUBMIT_OPTIONS_INIT;
  struct pollfd fd = {-1, POLLIN, 0};
  int64_t result = -1;
  options.cq = cq;
  need(offloop_cq_fd(cq, &fd.fd));
  for (int i = 0; i < calls; i++) {
    offloop_value *args = NULL, *first = NULL;
    need(offloop_value_new_array(&args));
    need(offloop_value_new_int(n, &first));
    need(offloop_value_array_push(args, &first));
    need(offloop_process_pool_call(pool, "primes", &args, &options, NULL));
  }
  *late = 0;
  while (calls > 0) {
    offloop_event event;
    size_t got;
    double due = now_ms() + 1;
    poll(&fd, 1, 1);
    if (now_ms() - due > *late) *late = now_ms() - due;
    for (need(offloop_cq_drain(cq, &event, 1, &got)); got == 1; need(offloop_cq_drain(cq, &event, 1, &got))) {
      need(event.status);
      need(offloop_value_get_int(event.value, &result));
      offloop_value_free(event.value);
      calls--;
    }
  }
  return result;
}

int main(int argc, char **argv) {
  static const offloop_function functions[] = {{"primes", primes_of, NULL}};
  static const char *const command[] = {"/proc/self/exe", "worker", NULL};
  if (argc == 2 && strcmp(argv[1], "worker") == 0) return offloop_worker_main(functions, 1) != OFFLOOP_OK;
  if (argc != 3) return 2;
  int calls = atoi(argv[1]);
  int64_t n = atoll(argv[2]), result = 0;
  double from = now_ms(), late;
  for (int i = 0; i < calls; i++) result = primes(n);
  printf("way=inline ms=%f late_ms=%f result=%lld\n", now_ms() - from, now_ms() - from - 1, (long long)result);

  offloop_process_pool_options options = OFFLOOP_PROCESS_POOL_OPTIONS_INIT;
  offloop_process_pool *pool = NULL;
  offloop_cq *cq = NULL;
  options.command = command;
  need(offloop_process_pool_new(&options, &pool));
  need(offloop_cq_new(&cq));
  offloaded(pool, cq, calls, 2, &late);
  from = now_ms();
  result = offloaded(pool, cq, calls, n, &late);
  printf("way=ProcessPool ms=%f late_ms=%f result=%lld\n", now_ms() - from, late, (long long)result);
  need(offloop_process_pool_shutdown(pool, -1));
  offloop_process_pool_free(pool);
  offloop_cq_free(cq);
  return 0;
}

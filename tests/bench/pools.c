/* C: submit + complete of functions that do nothing, ours and libuv's in turns, the loop's way: outcomes are drained on the submitting thread.
   Prints `R case who value` in nanoseconds per task. */

#define _GNU_SOURCE
#include <offloop.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#ifdef WITH_LIBUV
#include <uv.h>
#endif

#define TASKS 200000
#define BATCH 256

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void need(offloop_status status) {
  if (status == OFFLOOP_OK) return;
  fprintf(stderr, "%s\n", offloop_last_error());
  exit(1);
}

static int32_t nothing(offloop_task_ctx *ctx, void *arg) {
  (void)ctx;
  (void)arg;
  return OFFLOOP_OK;
}

static size_t drain(offloop_cq *cq, struct pollfd *fd, int block) {
  offloop_event events[BATCH];
  size_t count = 0;
  need(offloop_cq_drain(cq, events, BATCH, &count));
  for (size_t i = 0; i < count; i++) offloop_value_free(events[i].value);
  if (count == 0 && block) poll(fd, 1, -1);
  return count;
}

static double ours(offloop_pool *pool, offloop_cq *cq, int batch) {
  static offloop_call calls[BATCH];
  struct pollfd fd = {.events = POLLIN};
  offloop_submit_options options = OFFLOOP_SUBMIT_OPTIONS_INIT;
  size_t sent = 0, done = 0;
  need(offloop_cq_fd(cq, &fd.fd));
  options.cq = cq;
  for (int i = 0; i < BATCH; i++) calls[i].function = nothing;
  double start = now_ns();
  while (sent < TASKS) {
    if (batch) {
      size_t n = TASKS - sent < BATCH ? TASKS - sent : BATCH;
      need(offloop_pool_submit_many(pool, calls, n, &options, NULL));
      sent += n;
    } else {
      for (int i = 0; i < BATCH && sent < TASKS; i++, sent++) need(offloop_pool_submit(pool, nothing, NULL, NULL, &options, NULL));
    }
    done += drain(cq, &fd, 0);
    while (sent - done > 32768) done += drain(cq, &fd, 1);
  }
  while (done < TASKS) done += drain(cq, &fd, 1);
  return (now_ns() - start) / TASKS;
}

#ifdef WITH_LIBUV
static void uv_nothing(uv_work_t *work) { (void)work; }
static void uv_after(uv_work_t *work, int status) {
  (void)work;
  (void)status;
}

static double libuv(void) {
  uv_work_t *work = calloc(TASKS, sizeof *work);
  double start = now_ns();
  for (size_t i = 0; i < TASKS; i++) uv_queue_work(uv_default_loop(), &work[i], uv_nothing, uv_after);
  uv_run(uv_default_loop(), UV_RUN_DEFAULT);
  double took = (now_ns() - start) / TASKS;
  free(work);
  return took;
}
#endif

int main(void) {
  const char *text = getenv("ROUNDS");
  int rounds = text == NULL ? 5 : atoi(text);
  offloop_pool *pool = NULL;
  offloop_pool_options options = OFFLOOP_POOL_OPTIONS_INIT;
  offloop_cq *cq = NULL;
  need(offloop_pool_new(&options, &pool));
  need(offloop_cq_new(&cq));
  ours(pool, cq, 1);
  for (int i = 0; i < rounds; i++) {
    printf("R c.submit_many offloop %.1f\n", ours(pool, cq, 1));
    printf("R c.submit offloop %.1f\n", ours(pool, cq, 0));
#ifdef WITH_LIBUV
    double uv = libuv();
    printf("R c.submit_many libuv %.1f\nR c.submit libuv %.1f\n", uv, uv);
#endif
    fflush(stdout);
  }
  offloop_cq_free(cq);
  need(offloop_pool_shutdown(pool, -1));
  offloop_pool_free(pool);
  return 0;
}

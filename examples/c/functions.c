/* C functions of your own on a pool: an argument with its free function, progress, cancellation.
 *
 *   cc -std=c99 examples/c/functions.c $(pkg-config --cflags --libs offloop) -o functions && ./functions */
#include <offloop.h>
#include <stdio.h>
#include <stdlib.h>

/* Counts primes below *arg, 100,000 numbers between two looks at the token. */
static int32_t count_primes(offloop_task_ctx *ctx, void *arg) {
  const uint32_t limit = *(const uint32_t *)arg;
  offloop_value *value = NULL;
  int64_t primes = 0;
  uint32_t n, d;
  int32_t status;
  for (n = 2; n < limit; n++) {
    for (d = 2; d * d <= n && n % d != 0; d++) {
    }
    if (d * d > n) primes++;
    if (n % 100000 == 0) {
      if ((status = offloop_ctx_cancelled(ctx)) != OFFLOOP_OK) return status;
      if (!offloop_value_new_float((double)n / limit, &value)) offloop_ctx_progress(ctx, &value);
    }
  }
  if ((status = offloop_value_new_int(primes, &value)) != OFFLOOP_OK) return status;
  return offloop_ctx_set_result(ctx, &value);
}

static offloop_task *start(offloop_pool *pool, uint32_t limit, const offloop_submit_options *options) {
  offloop_task *task = NULL;
  uint32_t *arg = malloc(sizeof *arg);
  if (!arg) return NULL;
  *arg = limit;
  if (offloop_pool_submit(pool, count_primes, arg, free, options, &task)) { /* the pool frees arg, whatever happens */
    fprintf(stderr, "%s\n", offloop_last_error());
    free(arg); /* the call failed, so arg is still ours */
  }
  return task;
}

int main(void) {
  offloop_submit_options options = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_pool *pool = NULL;
  offloop_task *small, *large;
  offloop_value *result = NULL;
  int64_t primes = 0;
  offloop_status status;

  if (offloop_pool_new(NULL, &pool)) return 1;
  small = start(pool, 1000000, NULL);
  options.timeout_ns = 50000000; /* 50 ms: it will not make it */
  large = start(pool, 2000000000, &options);

  status = offloop_task_wait(small, -1, &result);
  if (!status) status = offloop_value_get_int(result, &primes);
  printf("primes below a million: %ld (%s)\n", (long)primes, offloop_status_name(status));
  status = offloop_task_wait(large, -1, NULL);
  printf("primes below two milliards: %s\n", offloop_status_name(status));

  offloop_value_free(result);
  offloop_task_free(small);
  offloop_task_free(large);
  offloop_pool_shutdown(pool, -1);
  offloop_pool_free(pool);
  return 0;
}

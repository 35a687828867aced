/* A program that lets plugins run in processes of their own: `host COMMAND…` starts COMMAND as the worker and calls what it offers. A
 * plugin that crashes, or never returns, costs one call. */
#include <offloop.h>
#include <stdio.h>
#include <string.h>

static offloop_process_pool *pool;

static void call(const char *name, const char *text, int64_t timeout_ns) {
  offloop_submit_options options = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_value *args = NULL, *first = NULL, *result = NULL;
  offloop_task *task = NULL;
  int64_t n = 0;
  offloop_status status;
  options.timeout_ns = timeout_ns;
  offloop_value_new_array(&args);
  offloop_value_new_str(text, OFFLOOP_NUL_TERMINATED, &first);
  offloop_value_array_push(args, &first);
  status = offloop_process_pool_call(pool, name, &args, &options, &task);
  if (status == OFFLOOP_OK) status = offloop_task_wait(task, -1, &result);
  if (status == OFFLOOP_OK) status = offloop_value_get_int(result, &n);
  if (status == OFFLOOP_OK)
    printf("%s: %lld\n", name, (long long)n);
  else
    printf("%s: %s\n", name, offloop_last_error());
  offloop_value_free(args); /* NULL unless the call was refused */
  offloop_value_free(result);
  offloop_task_free(task);
}

int main(int argc, char **argv) {
  offloop_process_pool_options options = OFFLOOP_PROCESS_POOL_OPTIONS_INIT;
  offloop_stats stats;
  if (argc < 2) return fprintf(stderr, "usage: host COMMAND...\n"), 2;
  options.command = (const char *const *)argv + 1;
  options.max_workers = 1;
  options.cancel_grace_ns = 100 * 1000000;
  options.name = "plugins";
  if (offloop_process_pool_new(&options, &pool)) return fprintf(stderr, "%s\n", offloop_last_error()), 1;
  call("words", "so it goes", 0);
  call("crash", "", 0);
  call("words", "it goes on", 0);
  call("spin", "", 50 * 1000000);
  call("words", "and on and on", 0);
  call("letters", "", 0);
  stats.struct_size = sizeof stats;
  if (!offloop_process_pool_stats(pool, &stats))
    printf("%llu completed, %llu failed, %llu lost, %llu timed out\n", (unsigned long long)stats.completed, (unsigned long long)stats.failed,
           (unsigned long long)stats.lost, (unsigned long long)stats.timed_out);
  offloop_process_pool_shutdown(pool, -1);
  offloop_process_pool_free(pool);
  return 0;
}

/* Quick start: hash bytes on a pool's thread and wait for the result.
 *
 *   cc -std=c99 examples/c/ops.c $(pkg-config --cflags --libs offloop) -o ops && ./ops */
#include <offloop.h>
#include <stdio.h>

static int fail(void) {
  fprintf(stderr, "%s\n", offloop_last_error());
  return 1;
}

int main(void) {
  offloop_pool *pool;
  offloop_buffer *input;
  offloop_task *task;
  offloop_value *result;
  const uint8_t *hash;
  size_t len, i;

  if (offloop_pool_new(NULL, &pool)) return fail();
  if (offloop_buffer_from_bytes("hello", 5, &input)) return fail();
  if (offloop_pool_submit_op(pool, "sha256", &input, 1, NULL, NULL, &task)) return fail(); /* moves: input is NULL now */
  if (offloop_task_wait(task, -1, &result)) return fail();

  if (offloop_value_get_bytes(result, &hash, &len)) return fail();
  for (i = 0; i < len; i++) printf("%02x", hash[i]);
  printf("\n");

  offloop_value_free(result);
  offloop_task_free(task);
  if (offloop_pool_shutdown(pool, -1)) return fail();
  offloop_pool_free(pool);
  return 0;
}

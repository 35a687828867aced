/* A plugin as a process: functions in C that a program of any language calls by name. */
#include <offloop.h>
#include <stdio.h>
#include <string.h>

static int32_t words(offloop_task_ctx *ctx, void *arg) {
  const offloop_value *args, *first;
  offloop_value *result = NULL;
  const char *text;
  size_t len, i;
  int64_t n = 0;
  (void)arg;
  if (offloop_ctx_params(ctx, &args) || offloop_value_array_get(args, 0, &first) || offloop_value_get_str(first, &text, &len)) {
    offloop_ctx_set_error(ctx, "words takes a text");
    return OFFLOOP_ERR_INVALID;
  }
  for (i = 0; i < len; i++) n += text[i] != ' ' && (i == 0 || text[i - 1] == ' ');
  if (offloop_value_new_int(n, &result)) return OFFLOOP_ERR_FULL;
  return offloop_ctx_set_result(ctx, &result);
}
static int32_t crash(offloop_task_ctx *ctx, void *arg) {
  (void)ctx, (void)arg;
  return *(volatile int32_t *)8;
}
static int32_t spin(offloop_task_ctx *ctx, void *arg) {
  volatile int goes_on = 1;
  (void)ctx, (void)arg;
  while (goes_on) {}
  return OFFLOOP_OK;
}

int main(void) {
  static const offloop_function functions[] = {{"words", words, NULL}, {"crash", crash, NULL}, {"spin", spin, NULL}};
  if (offloop_worker_main(functions, sizeof functions / sizeof *functions)) return fprintf(stderr, "%s\n", offloop_last_error()), 1;
  return 0;
}

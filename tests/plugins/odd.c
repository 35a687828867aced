/* A plugin of the tests: op "odd" returns a value that some host cannot show, or only just. Its input names which. */
#include <offloop.h>
#include <string.h>

static const offloop_host *offloop;

static int32_t typed(const uint64_t *shape, size_t dimensions, size_t len, offloop_value **out) {
  static const uint8_t bytes[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  return offloop->value_new_typed(OFFLOOP_DTYPE_U16, shape, dimensions, bytes, len, out);
}

static int32_t odd(offloop_task_ctx *ctx, void *arg) {
  static const uint64_t empty[2] = {0, 3}, behind[2] = {0, UINT64_MAX}, before[2] = {UINT64_MAX, 0}, square[2] = {2, 2}, one = 0;
  const struct { const char *name; double unix_ms; } dates[] = {
      {"first of node", -8640000000000e3}, {"last of node", 8640000000000e3}, {"before node", -8640000000001e3}, {"after node", 8640000000001e3},
      {"first of python", -62135596800e3}, {"before python", -62135596801e3}, {"last of python", 253402300799e3}, {"after python", 253402300800e3},
      {"far", 9e18}};
  const uint8_t *name;
  size_t len, i;
  offloop_value *value = NULL;
  int32_t status = offloop->ctx_input(ctx, 0, &name, &len);
  (void)arg;
  if (status) return status;
#define ASKED(text) (len == strlen(text) && !memcmp(name, text, len))
  status = OFFLOOP_ERR_NOT_FOUND;
  for (i = 0; i < sizeof dates / sizeof *dates; i++)
    if (ASKED(dates[i].name)) status = offloop->value_new_date(dates[i].unix_ms, &value);
  if (ASKED("no date")) status = offloop->value_new_date(0.0 / (double)(len - 7), &value); /* NaN */
  if (ASKED("empty")) status = typed(&one, 1, 0, &value);
  if (ASKED("empty rows")) status = typed(empty, 2, 0, &value);
  if (ASKED("square")) status = typed(square, 2, 8, &value);
  if (ASKED("scalar")) status = typed(NULL, 0, 2, &value);
  if (ASKED("far behind nothing")) status = typed(behind, 2, 0, &value);
  if (ASKED("far before nothing")) status = typed(before, 2, 0, &value);
  if (!status) status = offloop->ctx_set_result(ctx, &value);
  offloop->value_free(value);
  return status;
}

int32_t offloop_plugin(const offloop_host *host, offloop_registry *registry) {
  offloop_op_def def = OFFLOOP_OP_DEF_INIT;
  OFFLOOP_PLUGIN_CHECK(host);
  offloop = host;
  def.name = "odd";
  def.function = odd;
  return host->register_op(registry, &def);
}

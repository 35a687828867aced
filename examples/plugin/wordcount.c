/* A plugin: adds the op "wordcount" to a pool of any host.
 *
 *   cc -std=c99 -O2 -shared -fPIC -Iinclude examples/plugin/wordcount.c -o wordcount.so
 *
 * It links to nothing: what it needs comes in the table `host`. Input: UTF-8 text. Options: min_length (int, default 1). Result:
 * a map { words, longest } with the number of words of at least min_length bytes, and the length of the longest one. */
#include <offloop.h>

static const offloop_host *offloop;

enum { SLICE = 1 << 20 }; /* bytes between two looks at the token */

static int is_space(uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static int32_t read_min_length(offloop_task_ctx *ctx, int64_t *min_length) {
  const offloop_value *params, *value;
  uint32_t type;
  int32_t status = offloop->ctx_params(ctx, &params);
  if (!status) status = offloop->value_get_type(params, &type);
  if (status || type == OFFLOOP_TYPE_NIL) return status;
  status = offloop->value_map_get(params, "min_length", &value);
  if (status == OFFLOOP_ERR_NOT_FOUND) return OFFLOOP_OK;
  if (!status) status = offloop->value_get_int(value, min_length);
  if (status || *min_length < 1) {
    offloop->ctx_set_error(ctx, "option min_length is no integer above 0");
    return OFFLOOP_ERR_INVALID;
  }
  return OFFLOOP_OK;
}

static int32_t set(offloop_value *map, const char *key, int64_t number) {
  offloop_value *value = NULL;
  int32_t status = offloop->value_new_int(number, &value);
  if (!status) status = offloop->value_map_set(map, key, &value);
  offloop->value_free(value); /* NULL once it was moved */
  return status;
}

static int32_t wordcount(offloop_task_ctx *ctx, void *arg) {
  const uint8_t *text;
  size_t len, i, word = 0;
  int64_t min_length = 1, words = 0, longest = 0;
  offloop_value *value = NULL;
  int32_t status = read_min_length(ctx, &min_length);
  (void)arg;
  if (!status) status = offloop->ctx_input(ctx, 0, &text, &len);
  if (status) return status;

  for (i = 0; i <= len; i++) {
    if (i < len && !is_space(text[i])) {
      word++;
    } else if (word > 0) {
      if ((int64_t)word >= min_length) words++;
      if ((int64_t)word > longest) longest = (int64_t)word;
      word = 0;
    }
    if (i % SLICE == SLICE - 1) {
      if ((status = offloop->ctx_cancelled(ctx)) != OFFLOOP_OK) return status; /* nobody waits any more */
      if (!offloop->value_new_float((double)i / (double)len, &value)) offloop->ctx_progress(ctx, &value);
    }
  }

  status = offloop->value_new_map(&value);
  if (!status) status = set(value, "words", words);
  if (!status) status = set(value, "longest", longest);
  if (!status) status = offloop->ctx_set_result(ctx, &value);
  offloop->value_free(value);
  return status;
}

int32_t offloop_plugin(const offloop_host *host, offloop_registry *registry) {
  offloop_op_def def = OFFLOOP_OP_DEF_INIT;
  OFFLOOP_PLUGIN_CHECK(host);
  offloop = host;
  def.name = "wordcount";
  def.function = wordcount;
  return host->register_op(registry, &def);
}

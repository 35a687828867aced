/* The verbs of clusters. member.c is the worker. */

#define _GNU_SOURCE
#include "driver.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_WORDS 16

/* An event, or what a worker has said, that nobody has asked for yet: `kind` is the scenarios' name. */
typedef struct item {
  const char *kind;
  char *reply;
  channel_entry from; /* of a request */
  struct item *next;
} item_t;

typedef struct {
  char *name;
  offloop_cluster *cluster;
  item_t *first; /* under the lock */
} cluster_entry;

static cluster_entry clusters[MAX_NAMED];
static int cluster_count;

static cluster_entry *cluster_of(const args_t *args) {
  const char *name = get(args, "cluster");
  for (int i = 0; name != NULL && i < cluster_count; i++) {
    if (strcmp(clusters[i].name, name) == 0) return &clusters[i];
  }
  return NULL;
}

static char *done(offloop_status status) { return status == OFFLOOP_OK ? format("ok") : last_error(status); }

/* ---- what a cluster tells ---- */

static void put(cluster_entry *of, const char *kind, char *reply, channel_entry from) {
  item_t *item = grab(calloc(1, sizeof *item)), **end;
  *item = (item_t){kind, reply, from, NULL};
  pthread_mutex_lock(&lock);
  for (end = &of->first; *end != NULL; end = &(*end)->next) {}
  *end = item;
  pthread_cond_broadcast(&came);
  pthread_mutex_unlock(&lock);
}

static item_t *take(cluster_entry *of, const char *kind) {
  pthread_mutex_lock(&lock);
  for (;;) {
    for (item_t **at = &of->first; *at != NULL; at = &(*at)->next) {
      if (strcmp((*at)->kind, kind) != 0) continue;
      item_t *found = *at;
      *at = found->next;
      pthread_mutex_unlock(&lock);
      return found;
    }
    pthread_cond_wait(&came, &lock);
  }
}

static const char *kind_of_event(int32_t kind) {
  switch (kind) {
    case OFFLOOP_CLUSTER_LISTENING: return "listening";
    case OFFLOOP_CLUSTER_READY:
    case OFFLOOP_CLUSTER_ACTIVATED: return "ready";
    case OFFLOOP_CLUSTER_UNRESPONSIVE: return "unresponsive";
    case OFFLOOP_CLUSTER_DRAINING: return "draining";
    case OFFLOOP_CLUSTER_EXIT: return "exit";
    case OFFLOOP_CLUSTER_RELOADED: return "reload";
    case OFFLOOP_CLUSTER_RELOAD_FAILED: return "reload_failed";
    case OFFLOOP_CLUSTER_DEGRADED: return "degraded";
    case OFFLOOP_CLUSTER_RECOVERED: return "recovered";
    case OFFLOOP_CLUSTER_STOPPED: return "stopped";
    case OFFLOOP_CLUSTER_EXPIRED: return "expired";
    case OFFLOOP_CLUSTER_WARNING: return "warning";
    case OFFLOOP_CLUSTER_SPARE: return "spare";
    default: return NULL;
  }
}

static void shown_or_none(char out[16], int there, int32_t n) {
  if (there) snprintf(out, 16, "%d", n);
  else snprintf(out, 16, "none");
}

static void on_event(const offloop_cluster_event *event, void *user) {
  const char *kind = kind_of_event(event->kind), *said = event->text == NULL ? "" : event->text;
  char *text = hex(said, strlen(said)), *of = format("ok slot=%u generation=%u pid=%d", event->slot, event->generation, event->pid), *reply;
  char code[16], signal[16];
  if (kind == NULL) {
    free(text);
    free(of);
    return;
  }
  switch (event->kind) {
    case OFFLOOP_CLUSTER_EXIT:
      shown_or_none(code, event->exit_code >= 0, event->exit_code);
      shown_or_none(signal, event->signal > 0, event->signal);
      reply = format("%s cause=%s exit_code=%s signal=%s forced=%d text=%s", of, event->cause, code, signal, event->forced, text);
      break;
    case OFFLOOP_CLUSTER_UNRESPONSIVE:
    case OFFLOOP_CLUSTER_DRAINING: reply = format("%s cause=%s", of, event->cause); break;
    case OFFLOOP_CLUSTER_EXPIRED: reply = format("%s reason=%s", of, said); break;
    case OFFLOOP_CLUSTER_LISTENING: reply = format("%s address=%s", of, said); break;
    default: reply = format("%s message=%s", of, text);
  }
  free(text);
  free(of);
  put(user, kind, reply, (channel_entry){0});
}

static void on_line(const offloop_cluster_line *line, void *user) {
  char *text = hex(line->bytes, line->len);
  const char *stream = line->stream == 1 ? "stdout" : "stderr";
  put(user, "log", format("ok slot=%u generation=%u pid=%d stream=%s text=%s", line->slot, line->generation, line->pid, stream, text), (channel_entry){0});
  free(text);
}

static void on_message(uint32_t slot, uint32_t generation, offloop_channel *from, const offloop_incoming *in, void *user) {
  int asked = in->kind == OFFLOOP_INCOMING_REQUEST;
  channel_entry request = {0};
  (void)generation;
  if (in->status != OFFLOOP_OK) return;
  if (asked) request = (channel_entry){NULL, from, NULL, in->id};
  char *shown = show_message(in->value);
  put(user, "message", format("%s slot=%u request=%d", shown, slot, asked), request);
  free(shown);
}

/* ---- making one ---- */

/* The words of a list that commas part, and NULL behind them: into `words`, from `texts`, which is written to. */
static size_t split(char *texts, const char **words) {
  size_t n = 0;
  while (texts != NULL && n < MAX_WORDS - 1) words[n++] = strsep(&texts, ",");
  words[n] = NULL;
  return n;
}

/* What each worker runs: this program, or that of another language, and what it is to do. `self` has room for a path, `texts` is the caller's to free. */
static void command_of(const args_t *args, char self[4096], char **texts, const char **words) {
  size_t n = 0;
  *texts = NULL;
  if (get(args, "command") != NULL) {
    *texts = grab(strdup(get(args, "command")));
    n = split(*texts, words);
  } else {
    ssize_t len = readlink("/proc/self/exe", self, 4095);
    self[len < 0 ? 0 : len] = 0;
    words[n++] = self;
    words[n++] = "member";
  }
  words[n++] = get(args, "mode") == NULL ? "serves" : get(args, "mode");
  words[n++] = get(args, "version") == NULL ? "one" : get(args, "version");
  words[n++] = get(args, "at") == NULL ? "" : get(args, "at");
  words[n] = NULL;
}

static char *cluster_new(const args_t *args) {
  const char *command[MAX_WORDS + 4], *listen[MAX_WORDS] = {NULL};
  char self[4096], *texts, *addresses = get(args, "listen") == NULL ? NULL : grab(strdup(get(args, "listen")));
  offloop_cluster_options o = OFFLOOP_CLUSTER_OPTIONS_INIT;
  if (get(args, "cluster") == NULL || cluster_count == MAX_NAMED) return driver_error("no name, or no room");
  cluster_entry *entry = &clusters[cluster_count];
  command_of(args, self, &texts, command);
  split(addresses, listen);
  o.command = command;
  o.listen = listen;
  o.balance = get(args, "balance");
  o.workers = number(args, "workers", 0);
  o.spares = number(args, "spares", 0);
  o.ready_timeout_ns = ms(args, "ready_timeout");
  o.min_ready_ns = ms(args, "min_ready");
  o.drain_timeout_ns = ms(args, "drain_timeout");
  o.kill_grace_ns = ms(args, "kill_grace");
  o.beat_ns = ms(args, "beat");
  o.hang_timeout_ns = ms(args, "hang_timeout");
  o.max_age_ns = ms(args, "max_age");
  o.max_requests = number(args, "max_requests", 0);
  o.on_event = on_event;
  o.event_user = entry;
  o.on_line = on_line;
  o.line_user = entry;
  o.on_message = on_message;
  o.message_user = entry;
  offloop_status status = offloop_cluster_new(&o, &entry->cluster);
  free(texts);
  free(addresses);
  if (status != OFFLOOP_OK) return last_error(status);
  entry->name = grab(strdup(get(args, "cluster")));
  cluster_count++;
  return format("ok");
}

/* ---- what waits, each on a thread of its own ---- */

static char *reload(const args_t *args, offloop_cluster *cluster) {
  const char *command[MAX_WORDS + 4];
  char self[4096], *texts = NULL;
  offloop_reload_report report = OFFLOOP_RELOAD_REPORT_INIT;
  int other = get(args, "version") != NULL;
  if (other) command_of(args, self, &texts, command);
  offloop_status status = offloop_cluster_reload(cluster, other ? command : NULL, -1, &report);
  free(texts);
  if (status != OFFLOOP_OK) return last_error(status);
  return format("ok generation=%u replaced=%u forced=%llu", report.generation, report.replaced, (unsigned long long)report.forced);
}

static char *scale(const args_t *args, offloop_cluster *cluster) {
  int64_t workers = number(args, "workers", 0);
  offloop_cluster_counts counts = OFFLOOP_CLUSTER_COUNTS_INIT;
  offloop_status status = offloop_cluster_scale(cluster, workers);
  if (status == OFFLOOP_OK) status = offloop_cluster_start(cluster, -1);
  while (status == OFFLOOP_OK && (status = offloop_cluster_stats(cluster, &counts)) == OFFLOOP_OK && counts.live > (uint64_t)workers) usleep(1000);
  return done(status);
}

static char *request(const args_t *args, offloop_cluster *cluster) {
  offloop_channel *to = NULL;
  offloop_incoming in;
  const char *name, *text;
  size_t name_len, len;
  offloop_status status = offloop_cluster_channel(cluster, (uint32_t)number(args, "slot", 0), &to);
  if (status != OFFLOOP_OK) return last_error(status);
  offloop_value *value = param(get(args, "value"));
  status = offloop_channel_request(to, &value, NULL, 0, get(args, "timeout") == NULL ? -1 : ms(args, "timeout"), &in);
  char *reply = NULL;
  if (status != OFFLOOP_OK) reply = last_error(status);
  offloop_value_free(value);
  offloop_channel_free(to); /* ends nothing */
  if (status != OFFLOOP_OK) return reply;
  if (!in.failed) return show_message(in.value);
  if (offloop_value_get_error(in.value, &name, &name_len, &text, &len) != OFFLOOP_OK) text = "", len = 0;
  reply = show_error(OFFLOOP_ERR_TASK_FAILED, text, len);
  offloop_value_free(in.value);
  return reply;
}

static char *hear(const args_t *args, cluster_entry *entry, const char *kind) {
  item_t *item = take(entry, kind);
  char *reply = item->reply;
  if (item->from.channel != NULL) free(keep_channel(get(args, "as"), item->from, OFFLOOP_OK));
  free(item);
  return reply;
}

static char *wait_for(const char *verb, const args_t *args) {
  cluster_entry *entry = cluster_of(args);
  offloop_cluster *cluster = entry->cluster;
  if (strcmp(verb, "cluster.start") == 0) {
    return done(offloop_cluster_start(cluster, get(args, "timeout") == NULL ? -1 : ms(args, "timeout")));
  }
  if (strcmp(verb, "cluster.reload") == 0) return reload(args, cluster);
  if (strcmp(verb, "cluster.scale") == 0) return scale(args, cluster);
  if (strcmp(verb, "cluster.stop") == 0) return done(offloop_cluster_stop(cluster, get(args, "grace") == NULL ? -1 : ms(args, "grace")));
  if (strcmp(verb, "cluster.request") == 0) return request(args, cluster);
  if (strcmp(verb, "cluster.recv") == 0) return hear(args, entry, "message");
  if (strcmp(verb, "cluster.event") == 0) return hear(args, entry, get(args, "of"));
  offloop_value *value = param(get(args, "value"));
  offloop_status status = offloop_cluster_send(cluster, (uint32_t)number(args, "slot", 0), &value, NULL, 0, -1);
  char *reply = done(status);
  offloop_value_free(value);
  return reply;
}

static void *wait_thread(void *arg) {
  args_t *args = arg;
  say(args->number, wait_for(args->verb, args));
  release(args);
  return NULL;
}

/* ---- what does not ---- */

static char *addresses(offloop_cluster *cluster) {
  char *reply = format("ok addresses="), text[256];
  offloop_status status;
  for (size_t i = 0; (status = offloop_cluster_address(cluster, i, text, sizeof text)) == OFFLOOP_OK; i++) {
    char *longer = format("%s%s%s", reply, i == 0 ? "" : ",", text);
    free(reply);
    reply = longer;
  }
  if (status == OFFLOOP_ERR_NOT_FOUND) return reply;
  free(reply);
  return last_error(status);
}

static char *stats(offloop_cluster *cluster) {
  offloop_cluster_counts c = OFFLOOP_CLUSTER_COUNTS_INIT;
  offloop_status status = offloop_cluster_stats(cluster, &c);
  if (status != OFFLOOP_OK) return last_error(status);
#define N(field) (unsigned long long)c.field
  return format("ok generation=%u degraded=%d wanted=%llu live=%llu ready=%llu spares=%llu spawned=%llu crashed=%llu forced=%llu expired=%llu "
                "reloads=%llu reloads_failed=%llu served=%llu",
                c.generation, c.degraded, N(wanted), N(live), N(ready), N(spares), N(spawned), N(crashed), N(forced), N(expired), N(reloads),
                N(reloads_failed), N(served));
#undef N
}

static char *count(const args_t *args, offloop_cluster *cluster) {
  offloop_counter *counter = NULL;
  int64_t value = 0;
  offloop_status status = offloop_counter_new(cluster, get(args, "counter"), &counter);
  if (status == OFFLOOP_OK) status = offloop_counter_add(counter, number(args, "add", 0), &value);
  char *reply = status == OFFLOOP_OK ? format("ok int=%lld", (long long)value) : last_error(status);
  offloop_counter_free(counter);
  return reply;
}

static char *take_token(const args_t *args, offloop_cluster *cluster) {
  offloop_limit limit = OFFLOOP_LIMIT_INIT;
  offloop_limiter *limiter = NULL;
  offloop_taken taken = OFFLOOP_TAKEN_INIT;
  limit.rate = 1e-6;
  limit.burst = (uint32_t)number(args, "burst", 3);
  limit.keys = 64;
  offloop_status status = offloop_limiter_new(cluster, get(args, "limiter"), &limit, &limiter);
  if (status == OFFLOOP_OK) status = offloop_limiter_take(limiter, "", 0, 1, &taken);
  char *reply = status == OFFLOOP_OK ? format("ok allowed=%d", taken.allowed) : last_error(status);
  offloop_limiter_free(limiter);
  return reply;
}

char *cluster_verb(const char *verb, args_t *args) {
  static const char *const waits[] = {"cluster.start",   "cluster.reload", "cluster.scale", "cluster.stop",
                                      "cluster.request", "cluster.recv",   "cluster.event", "cluster.send"};
  if (strcmp(verb, "cluster.new") == 0) return cluster_new(args);
  cluster_entry *entry = cluster_of(args);
  if (entry == NULL) return driver_error("no such cluster");
  for (size_t i = 0; i < sizeof waits / sizeof *waits; i++) {
    if (strcmp(verb, waits[i]) == 0) return later(wait_thread, args);
  }
  if (strcmp(verb, "cluster.addresses") == 0) return addresses(entry->cluster);
  if (strcmp(verb, "cluster.stats") == 0) return stats(entry->cluster);
  if (strcmp(verb, "cluster.kill") == 0) return done(offloop_cluster_kill(entry->cluster, (uint32_t)number(args, "slot", 0)));
  if (strcmp(verb, "cluster.count") == 0) return count(args, entry->cluster);
  if (strcmp(verb, "cluster.take") == 0) return take_token(args, entry->cluster);
  if (strcmp(verb, "cluster.broadcast") == 0) {
    offloop_value *value = param(get(args, "value"));
    size_t missed = 0;
    offloop_status status = offloop_cluster_broadcast(entry->cluster, &value, NULL, 0, NULL, 0, &missed);
    char *reply = status == OFFLOOP_OK ? format("ok missed=%zu", missed) : last_error(status);
    offloop_value_free(value);
    return reply;
  }
  return driver_error("no such verb");
}

/* A poll(2) server that does real work: `server-c inline|offload DIR`. It prints its port and serves until it is killed. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <offloop.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 1024
#define HEAD_ROOM 4096

typedef struct {
  int fd;
  uint32_t generation; /* an outcome for a connection that has gone finds another number here */
  char in[HEAD_ROOM];
  size_t in_len;
  char *out;
  size_t out_len, out_sent;
} connection;

typedef struct {
  char *data;
  size_t len;
} file;

static connection connections[MAX_CONNECTIONS];
static struct pollfd fds[MAX_CONNECTIONS + 2];
static offloop_pool *pool;
static offloop_cq *outcomes;
static file china, flower, table, text, movies;
static file password = {"correct horse battery staple", 28};
static offloop_value *width, *argon2id, *level, *query;
static int offload, turn;
static double *late;
static size_t late_len, late_room;

static void need(offloop_status status, const char *what) {
  if (status == OFFLOOP_OK) return;
  fprintf(stderr, "%s: %s\n", what, offloop_last_error());
  exit(1);
}

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static file load(const char *dir, const char *name) {
  char path[4096];
  file out = {NULL, 0};
  snprintf(path, sizeof path, "%s/%s", dir, name);
  FILE *in = fopen(path, "rb");
  if (in == NULL || fseek(in, 0, SEEK_END) != 0) {
    perror(path);
    exit(1);
  }
  out.len = (size_t)ftell(in);
  out.data = malloc(out.len);
  rewind(in);
  if (out.data == NULL || fread(out.data, 1, out.len, in) != out.len) exit(1);
  fclose(in);
  return out;
}

static offloop_value *option(const char *key, offloop_value *item) {
  offloop_value *map = NULL;
  need(offloop_value_new_map(&map), "map");
  need(offloop_value_map_set(map, key, &item), key);
  return map;
}

static offloop_value *integer(int64_t n) {
  offloop_value *value = NULL;
  need(offloop_value_new_int(n, &value), "int");
  return value;
}

static offloop_value *words(const char *s) {
  offloop_value *value = NULL;
  need(offloop_value_new_str(s, strlen(s), &value), "str");
  return value;
}

/* ---- connections ---- */

static void hang_up(connection *c) {
  close(c->fd);
  free(c->out);
  c->out = NULL;
  c->out_len = c->out_sent = c->in_len = 0;
  c->fd = -1;
  c->generation++;
}

static void flush(connection *c) {
  while (c->out_sent < c->out_len) {
    ssize_t n = send(c->fd, c->out + c->out_sent, c->out_len - c->out_sent, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno != EAGAIN && errno != EINTR) hang_up(c);
      return;
    }
    c->out_sent += (size_t)n;
  }
  free(c->out);
  c->out = NULL;
  c->out_len = c->out_sent = 0;
}

static void respond(connection *c, int status, const void *body, size_t len) {
  char head[128];
  int n = snprintf(head, sizeof head, "HTTP/1.1 %d OK\r\nContent-Length: %zu\r\n\r\n", status, len);
  c->out = malloc((size_t)n + len);
  if (c->out == NULL) {
    hang_up(c);
    return;
  }
  memcpy(c->out, head, (size_t)n);
  memcpy(c->out + n, body, len);
  c->out_len = (size_t)n + len;
  c->out_sent = 0;
  flush(c);
}

/* Frees the value. */
static void respond_value(connection *c, offloop_status status, offloop_value *value) {
  const uint8_t *bytes;
  const char *s = "no text", *name;
  size_t len = 7, name_len;
  if (status != OFFLOOP_OK) {
    if (value != NULL) offloop_value_get_error(value, &name, &name_len, &s, &len);
    respond(c, 500, s, len);
  } else if (offloop_value_get_bytes(value, &bytes, &len) == OFFLOOP_OK) {
    respond(c, 200, bytes, len);
  } else if (offloop_value_get_str(value, &s, &len) == OFFLOOP_OK) {
    respond(c, 200, s, len);
  } else if (offloop_value_array_len(value, &len) == OFFLOOP_OK) {
    char body[64];
    respond(c, 200, body, (size_t)snprintf(body, sizeof body, "%zu matches", len));
  } else {
    respond(c, 200, "done", 4);
  }
  offloop_value_free(value);
}

/* ---- work ---- */

static void keep(void *user) { (void)user; }

static void work(connection *c, const char *op, file data, const offloop_value *params) {
  offloop_buffer *input = NULL;
  offloop_task *task = NULL;
  offloop_submit_options options = OFFLOOP_SUBMIT_OPTIONS_INIT;
  /* The files stay where they are and nobody writes them: no copy. */
  need(offloop_buffer_from_foreign(data.data, data.len, NULL, keep, &input), "buffer");
  if (offload) {
    options.cq = outcomes;
    options.tag = (uint64_t)c->generation % (1u << 31) << 32 | (uint64_t)(c - connections);
  }
  offloop_status status = offloop_pool_submit_op(pool, op, &input, 1, params, &options, &task);
  if (status != OFFLOOP_OK) {
    respond(c, 500, offloop_last_error(), strlen(offloop_last_error()));
    offloop_buffer_free(input);
  } else if (!offload) {
    /* Inline: this thread, the loop's, is blocked until the op is done. */
    offloop_value *result = NULL;
    status = offloop_task_wait(task, -1, &result);
    if (status == OFFLOOP_OK) {
      respond_value(c, status, result);
    } else {
      respond(c, 500, offloop_last_error(), strlen(offloop_last_error()));
    }
  }
  offloop_task_free(task);
}

static void send_late(connection *c) {
  char *body = malloc(late_len * 16 + 1);
  size_t len = 0;
  if (body == NULL) {
    hang_up(c);
    return;
  }
  for (size_t i = 0; i < late_len; i++) len += (size_t)snprintf(body + len, 16, "%.3f\n", late[i]);
  respond(c, 200, body, len);
  free(body);
  late_len = 0;
}

static void request(connection *c) {
  char path[64] = "";
  sscanf(c->in, "GET %63s", path);
  c->in_len = 0;
  if (strcmp(path, "/health") == 0) {
    respond(c, 200, "ok", 2);
  } else if (strcmp(path, "/late") == 0) {
    send_late(c);
  } else if (strcmp(path, "/thumbnail") == 0) {
    work(c, "image.thumbnail", turn++ % 2 ? flower : china, width);
  } else if (strcmp(path, "/password") == 0) {
    work(c, "password.hash", password, argon2id);
  } else if (strcmp(path, "/gzip") == 0) {
    work(c, "gzip", text, level);
  } else if (strcmp(path, "/csv") == 0) {
    work(c, "csv.to_arrow", table, NULL);
  } else if (strcmp(path, "/json") == 0) {
    work(c, "json.query", movies, query);
  } else {
    respond(c, 404, "no such path", 12);
  }
}

static void readable(connection *c) {
  ssize_t n = recv(c->fd, c->in + c->in_len, HEAD_ROOM - 1 - c->in_len, 0);
  if (n <= 0) {
    if (n == 0 || (errno != EAGAIN && errno != EINTR)) hang_up(c);
    return;
  }
  c->in_len += (size_t)n;
  c->in[c->in_len] = 0;
  if (strstr(c->in, "\r\n\r\n") != NULL) {
    request(c);
  } else if (c->in_len == HEAD_ROOM - 1) {
    hang_up(c);
  }
}

static void take_in(int listener) {
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
  if (fd < 0) return;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  for (int i = 0; i < MAX_CONNECTIONS; i++) {
    if (connections[i].fd < 0) {
      connections[i].fd = fd;
      return;
    }
  }
  close(fd);
}

static void drain(void) {
  offloop_event events[64];
  size_t count = 0;
  /* Fewer events than asked for: the queue has armed its descriptor. */
  do {
    need(offloop_cq_drain(outcomes, events, 64, &count), "drain");
    for (size_t i = 0; i < count; i++) {
      connection *c = &connections[events[i].tag & 0xffffffff];
      if (events[i].kind == OFFLOOP_EVENT_DONE && c->fd >= 0 && c->generation % (1u << 31) == events[i].tag >> 32) {
        respond_value(c, events[i].status, events[i].value);
      } else {
        offloop_value_free(events[i].value);
      }
    }
  } while (count == 64);
}

/* Lateness of a 1 ms timer, in milliseconds. */
static void note_late(double ms) {
  if (late_len == late_room) {
    late_room = late_room ? 2 * late_room : 1024;
    late = realloc(late, late_room * sizeof *late);
    if (late == NULL) exit(1);
  }
  late[late_len++] = ms > 0 ? ms : 0;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  offload = strcmp(argv[1], "offload") == 0;
  china = load(argv[2], "china.jpg");
  flower = load(argv[2], "flower.jpg");
  table = load(argv[2], "table.csv");
  text = load(argv[2], "text.csv");
  movies = load(argv[2], "movies.json");
  width = option("width", integer(200));
  argon2id = option("algorithm", words("argon2id"));
  level = option("level", integer(6));
  query = option("path", words("$[?@[\"IMDB Rating\"] > 8.5].Title"));

  offloop_pool_options options = OFFLOOP_POOL_OPTIONS_INIT;
  /* Offloaded: `nice` lets the loop go first when cores are short. Inline: one thread, so that one op never runs on two cores. */
  options.nice = offload ? 10 : 0;
  options.max_workers = offload ? 0 : 1;
  need(offloop_pool_new(&options, &pool), "pool");
  need(offloop_cq_new(&outcomes), "completion queue");
  int done;
  need(offloop_cq_fd(outcomes, &done), "descriptor");

  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t addr_len = sizeof addr;
  if (bind(listener, (struct sockaddr *)&addr, addr_len) != 0 || listen(listener, 1024) != 0 ||
      getsockname(listener, (struct sockaddr *)&addr, &addr_len) != 0) {
    perror("listen");
    return 1;
  }
  for (int i = 0; i < MAX_CONNECTIONS; i++) connections[i].fd = -1;
  printf("%d\n", ntohs(addr.sin_port));
  fflush(stdout);

  double due = now_ms() + 1;
  for (;;) {
    fds[0] = (struct pollfd){.fd = listener, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = done, .events = POLLIN};
    for (int i = 0; i < MAX_CONNECTIONS; i++) {
      fds[i + 2] = (struct pollfd){.fd = connections[i].fd, .events = connections[i].out != NULL ? POLLOUT : POLLIN};
    }
    double left = due - now_ms();
    struct timespec timeout = {0, left > 0 ? (long)(left * 1e6) : 0};
    ppoll(fds, MAX_CONNECTIONS + 2, &timeout, NULL);
    double now = now_ms();
    if (now >= due) {
      note_late(now - due);
      due = now + 1;
    }
    if (fds[0].revents) take_in(listener);
    if (fds[1].revents) drain();
    for (int i = 0; i < MAX_CONNECTIONS; i++) {
      connection *c = &connections[i];
      if (c->fd < 0 || c->fd != fds[i + 2].fd || fds[i + 2].revents == 0) continue;
      if (c->out != NULL) {
        flush(c);
      } else {
        readable(c);
      }
    }
  }
}

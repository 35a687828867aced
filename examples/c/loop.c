/* An event loop that stays free: one poll() over a completion queue and standard input. Each line is hashed on a pool's thread
 * while the loop goes on reading.
 *
 *   cc -std=c99 examples/c/loop.c $(pkg-config --cflags --libs offloop) -o loop && seq 3 | ./loop */
#define _POSIX_C_SOURCE 200809L
#include <offloop.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

static void check(offloop_status status) {
  if (status) fprintf(stderr, "%s: %s\n", offloop_status_name(status), offloop_last_error());
}

/* Submits one line; its number comes back as the tag. */
static int submit(offloop_pool *pool, offloop_cq *cq, const char *line, uint64_t number) {
  offloop_submit_options options = OFFLOOP_SUBMIT_OPTIONS_INIT;
  offloop_buffer *input = NULL;
  offloop_status status;
  options.cq = cq;
  options.tag = number;
  options.timeout_ns = 5000000000; /* 5 s */
  status = offloop_buffer_from_bytes(line, strlen(line), &input);
  if (!status) status = offloop_pool_submit_op(pool, "sha256", &input, 1, NULL, &options, NULL);
  check(status);
  offloop_buffer_free(input); /* NULL if it was moved */
  return status == OFFLOOP_OK;
}

/* Prints what is done; returns how many tasks that were. */
static size_t drain(offloop_cq *cq) {
  offloop_event events[64];
  const uint8_t *data;
  size_t count = 0, len, i;
  check(offloop_cq_drain(cq, events, 64, &count));
  for (i = 0; i < count; i++) {
    if (events[i].status == OFFLOOP_OK && !offloop_value_get_bytes(events[i].value, &data, &len)) {
      printf("line %u: %02x%02x%02x%02x, %u bytes\n", (unsigned)events[i].tag, data[0], data[1], data[2], data[3], (unsigned)len);
    } else {
      printf("line %u: %s\n", (unsigned)events[i].tag, offloop_status_name(events[i].status));
    }
    offloop_value_free(events[i].value);
  }
  return count;
}

int main(void) {
  offloop_pool *pool = NULL;
  offloop_cq *cq = NULL;
  struct pollfd fds[2] = {{0, POLLIN, 0}, {-1, POLLIN, 0}};
  char line[4096];
  size_t in_flight = 0;
  uint64_t number = 0;

  check(offloop_pool_new(NULL, &pool));
  check(offloop_cq_new(&cq));
  check(offloop_cq_fd(cq, &fds[1].fd));
  setvbuf(stdin, NULL, _IONBF, 0);
  while (fds[0].fd >= 0 || in_flight > 0) {
    if (poll(fds, 2, -1) < 0) break;
    if (fds[0].revents) {
      if (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        in_flight += (size_t)submit(pool, cq, line, ++number);
      } else {
        fds[0].fd = -1; /* end of input: poll ignores it */
      }
    }
    if (fds[1].revents) in_flight -= drain(cq);
  }
  check(offloop_pool_shutdown(pool, -1));
  offloop_cq_free(cq);
  offloop_pool_free(pool);
  return 0;
}

/* A process that logs to the collector: writer NAME LINES. Each line is printed where the collector will read it. */
#include <offloop.h>
#include <stdio.h>
#include <stdlib.h>

#define LONGEST 80

static void check(offloop_status status) {
  if (status == OFFLOOP_OK) return;
  fprintf(stderr, "%s: %s\n", offloop_status_name(status), offloop_last_error());
  exit(1);
}

int main(int argc, char **argv) {
  offloop_ring *ring = NULL;
  offloop_producer *log = NULL;
  long n, lines;
  if (argc != 3) return 2;
  lines = atol(argv[2]);
  check(offloop_ring_attach_path(argv[1], &ring));
  check(offloop_producer_new(ring, NULL, &log));
  for (n = 0; n < lines; n++) {
    void *line;
    int len;
    check(offloop_producer_claim(log, LONGEST, -1, &line)); /* waits while the collector is behind */
    len = snprintf(line, LONGEST, "c %ld answered in %ld us\n", n, n * 7919 % 1000);
    check(offloop_producer_commit(log, (size_t)len)); /* killed before this: there is no line, not half of one */
  }
  offloop_producer_free(log);
  offloop_ring_free(ring);
  return 0;
}

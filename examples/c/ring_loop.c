/* An event loop over a ring: a process fills blocks in place, and poll() waits for the next one. The process is killed in the middle of a
 * block; the loop hears of it, starts a successor, and no whole block is lost. */
#define _GNU_SOURCE
#include <offloop.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK 65536
#define EACH 30

static void check(offloop_status status) {
  if (status == OFFLOOP_OK) return;
  fprintf(stderr, "%s: %s\n", offloop_status_name(status), offloop_last_error());
  exit(1);
}

/* ---- the filler: `ring_loop <blocks> <die> <fds…>` ---- */

static int filler(int blocks, int die, const int32_t *fds, size_t count) {
  offloop_ring *ring = NULL;
  offloop_producer *producer = NULL;
  void *block;
  int i;
  check(offloop_ring_attach(fds, count, &ring));
  check(offloop_producer_new(ring, NULL, &producer));
  for (i = 0; i < blocks; i++) {
    check(offloop_producer_claim(producer, BLOCK, -1, &block)); /* waits while the ring is full */
    memset(block, i, BLOCK);
    check(offloop_producer_commit(producer, BLOCK));
  }
  if (die) {
    check(offloop_producer_claim(producer, BLOCK, -1, &block));
    memset(block, 255, BLOCK / 2);
    raise(SIGKILL); /* half a block: nobody will see it */
  }
  check(offloop_ring_close(ring));
  offloop_producer_free(producer);
  offloop_ring_free(ring);
  return 0;
}

/* Starts a filler that inherits the ring. */
static pid_t start(const char *self, offloop_ring *ring, int die) {
  int32_t fds[8];
  char texts[8][16], blocks[16];
  const char *args[12] = {self, blocks, die ? "1" : "0"};
  size_t count, i;
  pid_t pid;
  check(offloop_ring_fds(ring, fds, 8, &count));
  snprintf(blocks, sizeof blocks, "%d", EACH);
  pid = fork();
  if (pid != 0) return pid;
  for (i = 0; i < count; i++) {
    snprintf(texts[i], sizeof texts[i], "%d", dup(fds[i])); /* a duplicate survives exec */
    args[3 + i] = texts[i];
  }
  execvp(self, (char *const *)(uintptr_t)args);
  _exit(127);
}

/* ---- the loop ---- */

/* Looks at everything that is there. OFFLOOP_ERR_EMPTY has armed the fd: poll() wakes for the next block, or the filler's death. */
static offloop_status drain(offloop_consumer *consumer, int *seen, int *torn) {
  offloop_record blocks[16];
  offloop_status status;
  size_t count, i;
  while ((status = offloop_consumer_read(consumer, blocks, 16, &count)) == OFFLOOP_OK) {
    for (i = 0; i < count; i++) { /* in place, until the next call with this consumer */
      const unsigned char *bytes = blocks[i].data;
      *torn += blocks[i].len != BLOCK || bytes[0] != bytes[BLOCK - 1];
      ++*seen;
    }
  }
  return status;
}

int main(int argc, char **argv) {
  offloop_ring_options options = OFFLOOP_RING_OPTIONS_INIT;
  offloop_ring *ring = NULL;
  offloop_consumer *consumer = NULL;
  struct pollfd loop[1] = {{-1, POLLIN, 0}}; /* and whatever else the program waits for */
  int seen = 0, torn = 0, died = 0;
  offloop_status status;

  if (argc > 3) {
    int32_t fds[8];
    int i;
    for (i = 3; i < argc && i < 11; i++) fds[i - 3] = atoi(argv[i]);
    return filler(atoi(argv[1]), atoi(argv[2]), fds, (size_t)argc - 3);
  }
  options.capacity = 8 * BLOCK;
  check(offloop_ring_create(&options, &ring));
  check(offloop_consumer_new(ring, NULL, &consumer));
  check(offloop_consumer_fd(consumer, &loop[0].fd));
  start(argv[0], ring, 1);
  for (;;) {
    /* Readable for a block and for the filler's death; the timeout is for a kernel that does not let one wait for a death (seccomp). */
    if (poll(loop, 1, 100) < 0) continue; /* a signal: look again */
    status = drain(consumer, &seen, &torn);
    if (status == OFFLOOP_ERR_CLOSED) break;
    if (status == OFFLOOP_ERR_PEER_DIED) {
      died++;
      wait(NULL);
      start(argv[0], ring, 0);
      /* Until the successor sits down every call says PEER_DIED: wait for it instead of asking. */
      while ((status = offloop_consumer_wait(consumer, 1000000)) == OFFLOOP_ERR_PEER_DIED) usleep(1000);
    } else if (status != OFFLOOP_ERR_EMPTY) {
      check(status);
    }
  }
  wait(NULL);
  printf("%d blocks, %d filler died, %d blocks torn\n", seen, died, torn);
  offloop_consumer_free(consumer);
  offloop_ring_free(ring);
  return 0;
}

/* Frames from another process, without a copy: a camera writes each frame in place into a ring, and an event loop looks at it where it
 * lies. The first camera is killed in the middle of a frame; its successor goes on, and no whole frame is lost.
 *
 *   cc -std=c99 examples/c/ring_frames.c $(pkg-config --cflags --libs offloop) -o ring_frames && ./ring_frames */
#define _GNU_SOURCE
#include <offloop.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PIXELS (320 * 240)
#define EACH 30

static void check(offloop_status status) {
  if (status == OFFLOOP_OK) return;
  fprintf(stderr, "%s: %s\n", offloop_status_name(status), offloop_last_error());
  exit(1);
}

/* ---- the camera: `ring_frames <frames> <die> <fds…>` ---- */

static int camera(int frames, int die, const int32_t *fds, size_t count) {
  offloop_ring *ring = NULL;
  offloop_producer *producer = NULL;
  void *frame;
  int i;
  check(offloop_ring_attach(fds, count, &ring));
  check(offloop_producer_new(ring, NULL, &producer));
  for (i = 0; i < frames; i++) {
    check(offloop_producer_claim(producer, PIXELS, -1, &frame)); /* waits while the ring is full */
    memset(frame, i, PIXELS);
    check(offloop_producer_commit(producer, PIXELS));
  }
  if (die) {
    check(offloop_producer_claim(producer, PIXELS, -1, &frame));
    memset(frame, 255, PIXELS / 2);
    raise(SIGKILL); /* half a frame: nobody will see it */
  }
  check(offloop_ring_close(ring));
  offloop_producer_free(producer);
  offloop_ring_free(ring);
  return 0;
}

/* Starts a camera that inherits the ring. */
static pid_t start(const char *self, offloop_ring *ring, int die) {
  int32_t fds[8];
  char texts[8][16], frames[16];
  const char *args[12] = {self, frames, die ? "1" : "0"};
  size_t count, i;
  pid_t pid;
  check(offloop_ring_fds(ring, fds, 8, &count));
  snprintf(frames, sizeof frames, "%d", EACH);
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

/* Looks at everything that is there. OFFLOOP_ERR_EMPTY has armed the fd: poll() wakes for the next frame, or the camera's death. */
static offloop_status drain(offloop_consumer *consumer, int *seen, int *torn) {
  offloop_record frames[16];
  offloop_status status;
  size_t count, i;
  while ((status = offloop_consumer_read(consumer, frames, 16, &count)) == OFFLOOP_OK) {
    for (i = 0; i < count; i++) { /* in place, until the next call with this consumer */
      const unsigned char *pixels = frames[i].data;
      *torn += frames[i].len != PIXELS || pixels[0] != pixels[PIXELS - 1];
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
    return camera(atoi(argv[1]), atoi(argv[2]), fds, (size_t)argc - 3);
  }
  options.capacity = 8 * PIXELS;
  check(offloop_ring_create(&options, &ring));
  check(offloop_consumer_new(ring, NULL, &consumer));
  check(offloop_consumer_fd(consumer, &loop[0].fd));
  start(argv[0], ring, 1);
  for (;;) {
    /* Readable for a frame and for the camera's death; the timeout is for a kernel that does not let one wait for a death (seccomp). */
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
  printf("%d frames, %d camera died, %d frames torn\n", seen, died, torn);
  offloop_consumer_free(consumer);
  offloop_ring_free(ring);
  return 0;
}

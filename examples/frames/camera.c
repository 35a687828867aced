/* A camera: draws each frame where its viewers will look at it. camera FRAMES FDS…, the fds of a broadcast ring. */
#define _POSIX_C_SOURCE 199309L
#include <offloop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WIDTH 640
#define HEIGHT 480

/* What viewer.py calls FRAME, and viewer.mjs reads by offsets. */
typedef struct {
  uint32_t number;
  uint32_t reserved;
  uint8_t pixels[HEIGHT][WIDTH][3];
} frame;

static void check(offloop_status status) {
  if (status == OFFLOOP_OK) return;
  fprintf(stderr, "%s: %s\n", offloop_status_name(status), offloop_last_error());
  exit(1);
}

int main(int argc, char **argv) {
  const struct timespec exposure = {0, 1000000};
  offloop_ring *ring = NULL;
  offloop_producer *producer = NULL;
  int32_t fds[64];
  size_t count = 0;
  long n, frames;
  if (argc < 3) return 2;
  frames = atol(argv[1]);
  for (n = 2; n < argc && count < 64; n++) fds[count++] = atoi(argv[n]);
  check(offloop_ring_attach(fds, count, &ring));
  check(offloop_producer_new(ring, NULL, &producer));
  for (n = 0; n < frames; n++) {
    void *place;
    frame *drawn;
    nanosleep(&exposure, NULL);
    /* In a ring that overwrites this never waits for a slow viewer: the oldest frames make room. In one that does not, it does. */
    check(offloop_producer_claim(producer, sizeof(frame), -1, &place));
    drawn = place;
    drawn->number = (uint32_t)n;
    drawn->reserved = 0;
    memset(drawn->pixels, (int)(n % 256), sizeof drawn->pixels);
    check(offloop_producer_commit(producer, sizeof(frame)));
  }
  check(offloop_ring_close(ring)); /* the viewers drain it and end */
  offloop_producer_free(producer);
  offloop_ring_free(ring);
  printf("camera: %ld frames\n", frames);
  return 0;
}

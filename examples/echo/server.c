/* One of several servers on the same socket: sends back what it gets. When it is to leave it accepts no more, serves the connections that it has, and ends with the last. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <offloop.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 1000
#define LISTENER 0
#define DRAIN 1
#define FIRST 2 /* of the connections */

typedef struct {
  char bytes[16384];
  size_t len, sent;
} pending;

static struct pollfd fds[FIRST + MOST];
static pending waiting[FIRST + MOST]; /* of fds[i]: what it has sent, and did not take back yet */
static nfds_t count = FIRST;

/* Sends back what there is; 0 when the connection has ended. */
static int echo(struct pollfd *client, pending *back) {
  ssize_t n;
  if (back->sent == back->len) {
    n = recv(client->fd, back->bytes, sizeof back->bytes, 0);
    if (n <= 0) return n < 0 && (errno == EAGAIN || errno == EINTR);
    back->len = (size_t)n;
    back->sent = 0;
  }
  n = send(client->fd, back->bytes + back->sent, back->len - back->sent, MSG_NOSIGNAL);
  if (n < 0) return errno == EAGAIN || errno == EINTR;
  back->sent += (size_t)n;
  /* A client that does not read is not read from. */
  client->events = back->sent < back->len ? POLLOUT : POLLIN;
  return 1;
}

static void take(int fd) {
  fds[count] = (struct pollfd){fd, POLLIN, 0};
  waiting[count].len = waiting[count].sent = 0;
  count++;
}

static void end(nfds_t i) {
  close(fds[i].fd);
  offloop_worker_closed();
  offloop_worker_served(1);
  count--;
  fds[i] = fds[count];
  waiting[i] = waiting[count];
}

int main(void) {
  int fd, draining = 0;
  nfds_t i;
  if (offloop_worker_fd_count() < 1) return fprintf(stderr, "no cluster has started this program, or one that listens nowhere\n"), 2;
  fds[LISTENER].fd = offloop_worker_fd(0);
  fds[DRAIN] = (struct pollfd){offloop_worker_drain_fd(), POLLIN, 0};
  if (offloop_worker_ready()) return fprintf(stderr, "%s\n", offloop_last_error()), 1;
  while (!draining || count > FIRST) {
    offloop_worker_beat();
    fds[LISTENER].events = count < FIRST + MOST && !draining ? POLLIN : 0;
    /* Twice as often as the cluster looks for a beat. */
    if (poll(fds, count, 500) < 0 && errno != EINTR) return perror("poll"), 1;
    if (fds[DRAIN].revents) {
      draining = 1;
      fds[DRAIN].fd = -1; /* it stays readable */
    }
    /* From the last one on, since one that has ended gives its place to the last. */
    for (i = count; i-- > FIRST;)
      if (fds[i].revents && !echo(&fds[i], &waiting[i])) end(i);
    if (fds[LISTENER].revents && !draining && offloop_worker_accept(fds[LISTENER].fd, 0, &fd) == OFFLOOP_OK) take(fd);
  }
  offloop_worker_drained();
  return 0;
}

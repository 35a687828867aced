/* A cluster of a C server: `host PORT COMMAND…` runs COMMAND on two cores, on one socket. SIGHUP reloads it, SIGTERM and SIGINT end it when its connections have ended, or after 5 s. */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <offloop.h>
#include <signal.h>
#include <stdio.h>

static int failed(const char *what) { return fprintf(stderr, "%s: %s\n", what, offloop_last_error()), 1; }

static void on_event(const offloop_cluster_event *event, void *user) {
  (void)user;
  if (event->kind == OFFLOOP_CLUSTER_EXIT && event->text) fprintf(stderr, "worker %" PRIu32 ": %s\n", event->slot, event->text);
}

int main(int argc, char **argv) {
  offloop_cluster_options options = OFFLOOP_CLUSTER_OPTIONS_INIT;
  offloop_reload_report report = OFFLOOP_RELOAD_REPORT_INIT;
  offloop_cluster *cluster;
  offloop_status status;
  char address[64];
  sigset_t signals;
  int got = 0;
  if (argc < 3) return fprintf(stderr, "usage: host PORT COMMAND...\n"), 2;
  /* Before the library has threads, so that none of them takes these. Workers begin with no signal blocked. */
  sigemptyset(&signals);
  sigaddset(&signals, SIGHUP);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigprocmask(SIG_BLOCK, &signals, NULL);

  options.listen = (const char *const[]){argv[1], NULL};
  options.command = (const char *const *)argv + 2;
  options.workers = 2;
  options.drain_timeout_ns = INT64_C(5000000000);
  options.on_event = on_event;
  if (offloop_cluster_new(&options, &cluster) || offloop_cluster_start(cluster, -1)) return failed("not started");
  if (offloop_cluster_address(cluster, 0, address, sizeof address)) return failed("no address");
  printf("listening on %s\n", address);
  fflush(stdout);
  while (sigwait(&signals, &got) == 0 && got == SIGHUP) {
    if (offloop_cluster_reload(cluster, NULL, -1, &report))
      failed("not reloaded"); /* those of before go on */
    else
      printf("generation %" PRIu32 ": %" PRIu32 " workers replaced\n", report.generation, report.replaced);
    fflush(stdout);
  }
  status = offloop_cluster_stop(cluster, options.drain_timeout_ns);
  offloop_cluster_free(cluster);
  return status ? failed("not stopped") : 0;
}

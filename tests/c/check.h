/* What the parts of the ABI suite have in common. */
#ifndef CHECK_H
#define CHECK_H
#include <offloop.h>
#include <offloop.h> /* twice on purpose */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern long checks;
#define CHECK(cond) \
  do { \
    checks++; \
    if (!(cond)) { \
      fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #cond, offloop_last_error()); \
      exit(1); \
    } \
  } while (0)
#define OK(call) CHECK((call) == OFFLOOP_OK)
#define IS(call, status) CHECK((call) == OFFLOOP_ERR_##status)

#define FORGED ((void *)0x00005555deadbee0)
#define MS 1000000LL

static inline int says(const char *text) { return strstr(offloop_last_error(), text) != NULL; }
static inline offloop_value *int_value(int64_t n) {
  offloop_value *v = NULL;
  OK(offloop_value_new_int(n, &v));
  return v;
}
static inline int64_t int_of(const offloop_value *v) {
  int64_t n = -1;
  OK(offloop_value_get_int(v, &n));
  return n;
}
static inline int64_t take_int(offloop_value *v) {
  int64_t n = int_of(v);
  offloop_value_free(v);
  return n;
}

/* abi.c */
offloop_pool *pool_of(int64_t workers, int64_t queue);
int open_fds(void);
int fds_settle(int most);

/* waits.c */
void reentry(void);
void signals(void);
void frees(void);

/* rings.c */
void rings(void);
int ring_child(int count, char **args);
void ring_panics(void);

/* channels.c */
void channels(void);
int channel_child(const char *fd);
void channel_panics(void);

/* processes.c */
void process_pools(void);
int process_child(const char *how);
void process_panics(void);

/* clusters.c */
void clusters(void);
int member_child(const char *how);
#endif

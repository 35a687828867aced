/* What the parts of the C driver share. */
#ifndef DRIVER_H
#define DRIVER_H

#include <offloop.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_ARGS 32
#define MAX_NAMED 64

/* One line. */
typedef struct {
  char *number, *verb;
  char *keys[MAX_ARGS], *values[MAX_ARGS];
  int count;
  char *line;
} args_t;

/* Channels, listeners, and requests that wait for an answer, which a thread that waited makes. */
typedef struct {
  char *name;
  offloop_channel *channel;
  offloop_listener *listener;
  uint64_t request;
} channel_entry;

extern pthread_mutex_t lock;
extern pthread_cond_t came;

void *grab(void *memory);
char *hex(const void *data, size_t len);
char *format(const char *pattern, ...);
void say(const char *number, char *reply);
char *show_error(offloop_status status, const char *message, size_t len);
char *last_error(offloop_status status);
char *driver_error(const char *what);
const char *get(const args_t *args, const char *key);
int64_t number(const args_t *args, const char *key, int64_t otherwise);
int64_t ms(const args_t *args, const char *key);
offloop_value *param(const char *text);
/* As a reply. Frees the value. */
char *show_message(offloop_value *value);
char *keep_channel(const char *name, channel_entry made, offloop_status status);
/* Answers from a thread of its own, which owns `args`: NULL. */
char *later(void *(*body)(void *), args_t *args);
void release(args_t *args);

/* cluster.c: the verbs of clusters. NULL when the reply comes later. */
char *cluster_verb(const char *verb, args_t *args);
/* member.c: this program as a worker of such a cluster. */
int member(char **words);

#endif

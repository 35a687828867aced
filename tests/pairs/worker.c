/* The C worker of the pairs: README.md through offloop.h and nothing else. */
#define _GNU_SOURCE
#include <offloop.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROGRESS 100
#define HEAD 16
#define MAX_RECORD (HEAD + 1000)
#define MANY 64

static int arg_count;
static char **arg_list;

static const char *arg(const char *key) {
  size_t len = strlen(key);
  for (int i = 1; i < arg_count; i++) {
    if (strncmp(arg_list[i], key, len) == 0 && arg_list[i][len] == '=') return arg_list[i] + len + 1;
  }
  return "0";
}

static uint64_t number_of(const char *key) { return strtoull(arg(key), NULL, 10); }

static void say(const char *pattern, ...) {
  va_list list;
  va_start(list, pattern);
  vprintf(pattern, list);
  va_end(list);
  putchar('\n');
  fflush(stdout);
}

#define FAIL(...) (say("fail " __VA_ARGS__), exit(1))

static void check(offloop_status status) {
  if (status != OFFLOOP_OK) FAIL("%s", offloop_last_error());
}

/* ---- records ---- */

static uint32_t crc_table[256], seed;
static uint8_t block[4096];

static void make_tables(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; bit++) c = (c & 1) != 0 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
    crc_table[i] = c;
  }
  for (uint32_t i = 0; i < sizeof block; i++) block[i] = (uint8_t)(i * 167 + (i >> 8) * 13 + seed);
}

static uint32_t crc32(const uint8_t *bytes, size_t len) {
  uint32_t c = ~0u;
  for (size_t i = 0; i < len; i++) c = crc_table[(c ^ bytes[i]) & 255] ^ (c >> 8);
  return ~c;
}

static const uint8_t *body_of(uint64_t number, size_t *len) {
  uint32_t h = ((uint32_t)number ^ seed) * 0x9E3779B1u;
  h ^= h >> 15;
  h *= 0x85EBCA77u;
  h ^= h >> 13;
  *len = h % 1000;
  return block + (h >> 10) % 3072;
}

static size_t make(uint32_t incarnation, uint64_t number, uint8_t out[MAX_RECORD]) {
  size_t len;
  const uint8_t *body = body_of(number, &len);
  memcpy(out + 4, &incarnation, 4);
  memcpy(out + 8, &number, 8);
  memcpy(out + HEAD, body, len);
  uint32_t crc = crc32(out + 4, HEAD - 4 + len);
  memcpy(out, &crc, 4);
  return HEAD + len;
}

/* ---- roles ---- */

static void produce(offloop_ring *ring) {
  offloop_producer_options options = OFFLOOP_PRODUCER_OPTIONS_INIT;
  offloop_producer *producer = NULL;
  uint32_t incarnation = (uint32_t)number_of("inc");
  uint64_t count = number_of("count"), number = 0;
  int progress = number_of("progress") == 1;
  options.batch = number_of("batch") == 1;
  check(offloop_producer_new(ring, &options, &producer));
  say("ready");
  while (count == 0 || number < count) {
    uint8_t record[MAX_RECORD];
    size_t len = make(incarnation, number, record);
    for (;;) {
      offloop_status status;
      void *room = NULL;
      if (number % 3 == 0) {
        status = offloop_producer_claim(producer, len, -1, &room);
        if (status == OFFLOOP_OK) {
          memcpy(room, record, len);
          status = offloop_producer_commit(producer, len);
        }
      } else {
        status = offloop_producer_push(producer, record, len, -1);
      }
      if (status != OFFLOOP_ERR_PEER_DIED) {
        check(status);
        break;
      }
      usleep(1000);
    }
    number++;
    if (progress && pwrite(PROGRESS, &number, 8, 0) != 8) FAIL("progress cannot be written");
  }
  check(offloop_producer_flush(producer));
  offloop_producer_free(producer);
  say("done %llu", (unsigned long long)number);
}

static uint64_t incarnation, next, again_incarnation, again_number, records;
static int again, fresh;

#define U(n) (unsigned long long)(n)

/* Incarnation and number of a record that is whole. */
static void check_record(const offloop_record *record, uint32_t *inc, uint64_t *number) {
  const uint8_t *bytes = record->data;
  uint32_t crc;
  size_t len;
  if (record->len < HEAD) FAIL("a record of %zu bytes", record->len);
  memcpy(&crc, bytes, 4);
  memcpy(inc, bytes + 4, 4);
  memcpy(number, bytes + 8, 8);
  if (crc32(bytes + 4, record->len - 4) != crc) FAIL("record %u:%llu is torn", *inc, U(*number));
  const uint8_t *body = body_of(*number, &len);
  if (record->len != HEAD + len || memcmp(bytes + HEAD, body, len) != 0) FAIL("record %u:%llu is another one", *inc, U(*number));
}

static void see(const offloop_record *record) {
  uint32_t inc;
  uint64_t number;
  check_record(record, &inc, &number);
  if (inc < incarnation || (inc == incarnation && number < next)) {
    int follows = !again || (again_incarnation == inc && again_number + 1 == number) || (again_incarnation < inc && number == 0);
    if (!record->redelivered || fresh || !follows) {
      FAIL("record %u:%llu again, expected %llu:%llu (marked=%u fresh=%d)", inc, U(number), U(incarnation), U(next), record->redelivered, fresh);
    }
    again = 1;
    again_incarnation = inc;
    again_number = number;
    say("again");
    return;
  }
  if (again && again_incarnation == incarnation && again_number + 1 != next) FAIL("records up to %llu:%llu did not come again", U(incarnation), U(next));
  again = 0;
  if (inc > incarnation && number == 0) {
    say("inc %llu %llu", U(incarnation), U(next));
    incarnation = inc;
  } else if (inc != incarnation || number != next) {
    FAIL("record %u:%llu, expected %llu:%llu", inc, U(number), U(incarnation), U(next));
  }
  next = number + 1;
  fresh |= !record->redelivered;
  records++;
}

/* Single pops and reads of many in turns, so that both are tried. */
static void consume(offloop_ring *ring) {
  offloop_consumer *consumer = NULL;
  offloop_record many[MANY];
  int progress = number_of("progress") == 1;
  incarnation = number_of("inc");
  next = number_of("next");
  check(offloop_consumer_new(ring, NULL, &consumer));
  say("ready");
  for (unsigned turn = 0;; turn++) {
    size_t count = 1;
    offloop_status status;
    if (turn % 2 == 0) {
      status = offloop_consumer_pop(consumer, -1, many);
    } else {
      status = offloop_consumer_wait(consumer, -1);
      if (status == OFFLOOP_OK) status = offloop_consumer_read(consumer, many, MANY, &count);
    }
    if (status == OFFLOOP_ERR_CLOSED) break;
    if (status == OFFLOOP_ERR_PEER_DIED) {
      usleep(1000);
      continue;
    }
    check(status);
    for (size_t i = 0; i < count; i++) {
      see(&many[i]);
      uint64_t words[2] = {incarnation, next};
      if (progress && pwrite(PROGRESS, words, 16, 16) != 16) FAIL("progress cannot be written");
    }
  }
  offloop_consumer_free(consumer);
  say("inc %llu %llu", U(incarnation), U(next));
  say("done %llu", U(records));
}

/* ---- an end of a channel ---- */

static void died(void) {
  say("died %llu", U(next));
  _exit(0); /* the other thread may be in a call */
}

/* Sends all, then asks how many came. */
static void *send_all(void *arg) {
  offloop_channel *channel = arg;
  uint64_t count = number_of("count");
  for (uint64_t n = 0; count == 0 || n < count; n++) {
    uint8_t record[MAX_RECORD];
    size_t len = make(0, n, record);
    offloop_value *list = NULL, *item = NULL;
    check(offloop_value_new_array(&list));
    check(offloop_value_new_int((int64_t)n, &item));
    check(offloop_value_array_push(list, &item));
    if (n % 16 == 5) {
      offloop_buffer *buffer = NULL;
      uint8_t *data;
      size_t room;
      check(n % 32 == 5 ? offloop_buffer_new_shared(len, &buffer) : offloop_buffer_new(len, &buffer));
      check(offloop_buffer_data(buffer, &data, &room));
      memcpy(data, record, len);
      check(offloop_value_new_buffer(&buffer, &item));
    } else {
      check(offloop_value_new_bytes(record, len, &item));
    }
    check(offloop_value_array_push(list, &item));
    offloop_status status = offloop_channel_send(channel, &list, NULL, 0, -1);
    if (status == OFFLOOP_ERR_PEER_DIED) return arg;
    check(status);
  }
  offloop_value *nothing = NULL;
  offloop_incoming reply;
  int64_t came;
  check(offloop_value_new_nil(&nothing));
  offloop_status status = offloop_channel_request(channel, &nothing, NULL, 0, -1, &reply);
  if (status == OFFLOOP_ERR_PEER_DIED) return arg;
  check(status);
  check(offloop_value_get_int(reply.value, &came));
  if ((uint64_t)came != count) FAIL("%llu messages were sent, %lld came", U(count), (long long)came);
  offloop_value_free(reply.value);
  return NULL;
}

static void check_message(offloop_value *list) {
  const offloop_value *item = NULL;
  offloop_record record = {0};
  int64_t n;
  const uint8_t *bytes;
  check(offloop_value_array_get(list, 0, &item));
  check(offloop_value_get_int(item, &n));
  check(offloop_value_array_get(list, 1, &item));
  check(offloop_value_get_bytes(item, &bytes, &record.len));
  record.data = bytes;
  if ((uint64_t)n != next) FAIL("message %lld, expected %llu", (long long)n, U(next));
  see(&record);
  offloop_value_free(list);
}

static void talk(void) {
  offloop_channel *channel = NULL;
  offloop_incoming in;
  pthread_t sending;
  void *gone = NULL;
  check(offloop_channel_attach(PROGRESS + 1, NULL, &channel));
  say("ready");
  if (pthread_create(&sending, NULL, send_all, channel) != 0) FAIL("no thread");
  for (;;) {
    offloop_status status = offloop_channel_recv(channel, -1, &in);
    if (status == OFFLOOP_ERR_PEER_DIED) died();
    check(status);
    if (in.kind == OFFLOOP_INCOMING_REQUEST) break;
    check_message(in.value);
  }
  offloop_value_free(in.value);
  check(offloop_value_new_int((int64_t)next, &in.value));
  offloop_status status = offloop_channel_reply(channel, in.id, 0, &in.value, NULL, 0, -1);
  if (status == OFFLOOP_ERR_PEER_DIED) died();
  check(status);
  pthread_join(sending, &gone);
  if (gone != NULL) died();
  offloop_channel_free(channel);
  say("done %llu", U(next));
}

/* Tasks, until the ring is closed: what came, and what was acknowledged. */
static void work(offloop_ring *ring) {
  offloop_consumer_options options = OFFLOOP_CONSUMER_OPTIONS_INIT;
  offloop_consumer *consumer = NULL;
  offloop_record record;
  offloop_status status;
  options.ack = "manual";
  check(offloop_consumer_new(ring, &options, &consumer));
  say("ready");
  while ((status = offloop_consumer_pop(consumer, -1, &record)) != OFFLOOP_ERR_CLOSED) {
    uint32_t inc;
    uint64_t number;
    check(status);
    check_record(&record, &inc, &number);
    say("got %u %llu %d", inc, U(number), record.redelivered != 0);
    say("acks %u %llu", inc, U(number));
    check(offloop_consumer_ack(consumer, record.delivery));
    say("ack %u %llu", inc, U(number));
    records++;
  }
  offloop_consumer_free(consumer);
  say("done %llu", U(records));
}

int main(int argc, char **argv) {
  offloop_ring *ring = NULL;
  int32_t fds[64];
  arg_count = argc;
  arg_list = argv;
  size_t count = (size_t)number_of("fds");
  if (strcmp(arg("role"), "hello") == 0) {
    say("rings");
    return 0;
  }
  seed = (uint32_t)number_of("seed");
  make_tables();
  if (strcmp(arg("role"), "talk") == 0) {
    talk();
    return 0;
  }
  if (count > 64) FAIL("too many fds");
  for (size_t i = 0; i < count; i++) fds[i] = PROGRESS + 1 + (int32_t)i;
  check(offloop_ring_attach(fds, count, &ring));
  for (size_t i = 0; i < count; i++) close(fds[i]);
  if (strcmp(arg("role"), "produce") == 0) {
    produce(ring);
  } else if (strcmp(arg("role"), "work") == 0) {
    work(ring);
  } else {
    consume(ring);
  }
  offloop_ring_free(ring);
  return 0;
}

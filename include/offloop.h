/* offloop: native pools, transferable buffers and native ops. https://github.com/offloop/offloop
 *
 * Written from the sources in core/src/abi and core/src/capi by `make bless`; edit those.
 *
 * Conventions
 *  - A function that can fail returns offloop_status: 0 (OFFLOOP_OK) or a negative OFFLOOP_ERR_…. Results come last, through
 *    pointers that are written on OK only. offloop_last_error() is this thread's last message, with the values in it.
 *  - offloop_x_new and offloop_x_free come in pairs. offloop_x_free(NULL) does nothing.
 *  - An offloop_x * is a handle, never an address. A freed, moved, forged or mistyped one gives OFFLOOP_ERR_INVALID. A call holds
 *    what it uses, so freeing a handle during a call on another thread is safe. Handles may be used on any thread.
 *  - A parameter `T **x_io` is moved: on OK the library has the object and *x_io is NULL; on error it is untouched, still yours.
 *    While one call moves a handle, another sees OFFLOOP_ERR_IN_USE.
 *  - A `const offloop_value *` that you get is borrowed: it ends when the value it came from is changed, moved or freed, and needs
 *    no free. Pointers to bytes and texts live as long as what they point into.
 *  - A callback runs exactly once or, if the call that took it failed, never. user_free(user) comes after it, once. arg_free(arg) is
 *    called exactly once for an accepted task, whatever its outcome; if the call failed, arg is still yours.
 *  - A function pointer must not unwind: no C++ exception and no longjmp out of it.
 *  - Options structs begin with struct_size; start from OFFLOOP_X_OPTIONS_INIT. 0 and NULL are the defaults. Options that a library
 *    does not know yet must be 0, else OFFLOOP_ERR_VERSION.
 *  - Texts are UTF-8. Durations are nanoseconds; below 0 a wait is for ever.
 *  - Threads of the library block every asynchronous signal, so some thread of the program's must take SIGTERM and the like. A main that
 *    ends by pthread_exit leaves the process without one unless another thread of its own goes on: return, call exit, or wait there.
 *  - After fork, a child that goes on without exec must not use handles of its parent.
 *
 * A plugin includes this header and links to nothing; see offloop_plugin at the end.
 */
#ifndef OFFLOOP_H
#define OFFLOOP_H


#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** 0 or a negative error. The numbers never change; a newer library may return new ones. */
typedef int32_t offloop_status;

/** Statuses. offloop_status_name gives their names. */
enum {
  OFFLOOP_OK = 0,
  OFFLOOP_ERR_INVALID = -1,
  OFFLOOP_ERR_UNSUPPORTED = -2,
  OFFLOOP_ERR_FULL = -3,
  OFFLOOP_ERR_EMPTY = -4,
  OFFLOOP_ERR_CLOSED = -5,
  OFFLOOP_ERR_TIMEOUT = -6,
  OFFLOOP_ERR_CANCELLED = -7,
  OFFLOOP_ERR_DETACHED = -8,
  OFFLOOP_ERR_TOO_LARGE = -9,
  OFFLOOP_ERR_CORRUPT = -10,
  OFFLOOP_ERR_VERSION = -11,
  OFFLOOP_ERR_PEER_DIED = -12,
  OFFLOOP_ERR_WORKER_LOST = -13,
  OFFLOOP_ERR_TASK_FAILED = -14,
  OFFLOOP_ERR_DEGRADED = -15,
  OFFLOOP_ERR_OS = -16,
  OFFLOOP_ERR_PANIC = -17,
  OFFLOOP_ERR_IN_USE = -18,
  OFFLOOP_ERR_FORKED = -19,
  OFFLOOP_ERR_NOT_FOUND = -20,
  OFFLOOP_ERR_UNSERIALIZABLE = -21,
  OFFLOOP_ERR_START_FAILED = -22,
  OFFLOOP_ERR_EXISTS = -23
};

/** Types of values. */
enum {
  OFFLOOP_TYPE_NIL = 0,
  OFFLOOP_TYPE_BOOL = 1,
  OFFLOOP_TYPE_INT = 2,
  OFFLOOP_TYPE_BIG = 3,
  OFFLOOP_TYPE_FLOAT = 4,
  OFFLOOP_TYPE_STR = 5,
  OFFLOOP_TYPE_BYTES = 6,
  OFFLOOP_TYPE_ARRAY = 7,
  OFFLOOP_TYPE_MAP = 8,
  OFFLOOP_TYPE_DATE = 9,
  OFFLOOP_TYPE_TYPED = 10,
  OFFLOOP_TYPE_BUFFER = 11,
  OFFLOOP_TYPE_ERROR = 12
};

/** Element types of typed arrays. */
enum {
  OFFLOOP_DTYPE_U8 = 1,
  OFFLOOP_DTYPE_I8 = 2,
  OFFLOOP_DTYPE_U16 = 3,
  OFFLOOP_DTYPE_I16 = 4,
  OFFLOOP_DTYPE_U32 = 5,
  OFFLOOP_DTYPE_I32 = 6,
  OFFLOOP_DTYPE_U64 = 7,
  OFFLOOP_DTYPE_I64 = 8,
  OFFLOOP_DTYPE_F32 = 9,
  OFFLOOP_DTYPE_F64 = 10
};

/** As a length: the text ends at its NUL byte. */
#define OFFLOOP_NUL_TERMINATED ((size_t)-1)


/**
 * The version of this header's functions and structs. Functions are only ever added, at the end of a table.
 */
#define OFFLOOP_ABI_VERSION 1

/**
 * The version of what two processes say to each other.
 */
#define OFFLOOP_WIRE_VERSION 1

/**
 * Room for the text of a token, its NUL byte included.
 */
#define OFFLOOP_TOKEN_SIZE 80

/**
 * A task has its outcome.
 */
#define OFFLOOP_EVENT_DONE 0

/**
 * A running task said how far it is. Only the latest value between two drains is kept.
 */
#define OFFLOOP_EVENT_PROGRESS 1

/**
 * A full queue refuses the call with OFFLOOP_ERR_FULL.
 */
#define OFFLOOP_ON_FULL_REJECT 0

/**
 * A full queue blocks the calling thread until there is room, at most full_timeout_ns. OFFLOOP_ERR_INVALID inside a function of the pool
 * that would wait for ever.
 */
#define OFFLOOP_ON_FULL_WAIT 1

/**
 * A worker was started.
 */
#define OFFLOOP_CLUSTER_FORK 1

/**
 * It got a socket that it has asked for: `text` says where.
 */
#define OFFLOOP_CLUSTER_LISTENING 2

/**
 * It takes connections.
 */
#define OFFLOOP_CLUSTER_READY 3

/**
 * Its loop shows nothing: it is ended, unless it goes on. `stack` says where it stands, if the worker can tell; `cause`.
 */
#define OFFLOOP_CLUSTER_UNRESPONSIVE 4

/**
 * It is to finish what it has: `cause`.
 */
#define OFFLOOP_CLUSTER_DRAINING 5

/**
 * It has ended: `cause`, `exit_code`, `signal`, `forced`, `oom`; `text` is its own last words.
 */
#define OFFLOOP_CLUSTER_EXIT 6

/**
 * All workers are of `generation` now.
 */
#define OFFLOOP_CLUSTER_RELOADED 7

/**
 * The reload to `generation` failed: `text` says why.
 */
#define OFFLOOP_CLUSTER_RELOAD_FAILED 8

/**
 * Too many workers fail.
 */
#define OFFLOOP_CLUSTER_DEGRADED 9

/**
 * It goes on after having been degraded.
 */
#define OFFLOOP_CLUSTER_RECOVERED 10

/**
 * No process is left. The last event.
 */
#define OFFLOOP_CLUSTER_STOPPED 11

/**
 * It is to be replaced, and goes on until its successor is there: `text` says why ("age", "memory", "requests").
 */
#define OFFLOOP_CLUSTER_EXPIRED 12

/**
 * Something is not as it should be, and the cluster goes on: `text` says what.
 */
#define OFFLOOP_CLUSTER_WARNING 13

/**
 * A spare is loaded, and waits; its slot is 1,024 or higher.
 */
#define OFFLOOP_CLUSTER_SPARE 14

/**
 * A spare, the process `pid`, has the place `slot` of a worker that has ended, and takes connections.
 */
#define OFFLOOP_CLUSTER_ACTIVATED 15

/**
 * Most fds, those of buffers that move included, in one message.
 */
#define OFFLOOP_CHANNEL_MAX_FDS 253

/**
 * A message: `value` and `fds` are the caller's.
 */
#define OFFLOOP_INCOMING_MESSAGE 1

/**
 * A request, to be answered by offloop_channel_reply with its `id`: `value` and `fds` are the caller's.
 */
#define OFFLOOP_INCOMING_REQUEST 2

/**
 * The outcome of the request `id`: where `status` is OFFLOOP_OK, `value` and `fds` are the caller's, and `failed` says whether they are
 * a result or an error of whoever was asked.
 */
#define OFFLOOP_INCOMING_REPLY 3

/**
 * There is room again, after an offloop_channel_try_send or offloop_channel_post_request that found none.
 */
#define OFFLOOP_INCOMING_DRAINED 4

/**
 * The text format that Prometheus reads.
 */
#define OFFLOOP_METRICS_PROMETHEUS 0

/**
 * JSON.
 */
#define OFFLOOP_METRICS_JSON 1

/**
 * Bytes with one owner.
 */
typedef struct offloop_buffer offloop_buffer;

/**
 * One end of a two-way connection between two processes.
 */
typedef struct offloop_channel offloop_channel;

/**
 * N copies of a server on the same sockets.
 */
typedef struct offloop_cluster offloop_cluster;

/**
 * Pops records from a ring.
 */
typedef struct offloop_consumer offloop_consumer;

/**
 * A number that the processes of a cluster count together.
 */
typedef struct offloop_counter offloop_counter;

/**
 * Delivers outcomes to an event loop.
 */
typedef struct offloop_cq offloop_cq;

/**
 * Token buckets from which the processes of a cluster take together.
 */
typedef struct offloop_limiter offloop_limiter;

/**
 * Accepts channels at a path.
 */
typedef struct offloop_listener offloop_listener;

/**
 * A pool of native threads.
 */
typedef struct offloop_pool offloop_pool;

/**
 * A pool of worker processes.
 */
typedef struct offloop_process_pool offloop_process_pool;

/**
 * Pushes records into a ring.
 */
typedef struct offloop_producer offloop_producer;

/**
 * Where a plugin registers its ops, while it loads.
 */
typedef struct offloop_registry offloop_registry;

/**
 * A bounded queue of records that threads and processes share.
 */
typedef struct offloop_ring offloop_ring;

/**
 * The values of one call of a worker process, as they come.
 */
typedef struct offloop_stream offloop_stream;

/**
 * One submitted call.
 */
typedef struct offloop_task offloop_task;

/**
 * The context of a running task.
 */
typedef struct offloop_task_ctx offloop_task_ctx;

/**
 * A value tree, or a borrowed place in one.
 */
typedef struct offloop_value offloop_value;

/**
 * Limits of offloop_value_encode and offloop_value_decode; 0 is the default.
 */
typedef struct {
  /**
   * sizeof(offloop_codec_options).
   */
  size_t struct_size;
  /**
   * Most arrays, maps and errors inside each other: 128, at most 512.
   */
  size_t max_depth;
  /**
   * Most items, keys, values and fields together: 4,194,304.
   */
  size_t max_items;
  /**
   * Longest message: 256 MiB.
   */
  size_t max_bytes;
} offloop_codec_options;

/**
 * A user's free function for a user's pointer.
 */
typedef void (*offloop_free_fn)(void *arg);

/**
 * The one-shot right to take a transferred buffer: NUL-terminated text, which may travel in JSON or a message inside this
 * process. Node.js and Python show the same text.
 */
typedef struct {
  /**
   * The text.
   */
  char text[80];
} offloop_token;

/**
 * What offloop_cq_drain gives.
 */
typedef struct {
  /**
   * The tag given at submit.
   */
  uint64_t tag;
  /**
   * OFFLOOP_EVENT_DONE or OFFLOOP_EVENT_PROGRESS.
   */
  uint32_t kind;
  /**
   * The task's status.
   */
  offloop_status status;
  /**
   * Result, progress, or an error value (offloop_value_get_error); NULL when there is none. The caller frees it.
   */
  offloop_value *value;
} offloop_event;

/**
 * How a pool is made. 0 or NULL means the default everywhere; start from OFFLOOP_POOL_OPTIONS_INIT.
 */
typedef struct {
  /**
   * sizeof(offloop_pool_options).
   */
  size_t struct_size;
  /**
   * Most worker threads, 1 to 1024. Default: usable cores (affinity and cgroup quota).
   */
  int64_t max_workers;
  /**
   * Workers that stay when idle. Default 0.
   */
  int64_t min_workers;
  /**
   * Most queued tasks, 1 to 2^24. Default 65,536.
   */
  int64_t max_queue;
  /**
   * Most replacement threads for tasks that ignore their deadline; below 0: none. Default: max_workers.
   */
  int64_t max_overdue;
  /**
   * How long an idle worker above min_workers stays, in nanoseconds. Default 30 s.
   */
  int64_t idle_timeout_ns;
  /**
   * Niceness of the workers, -20 to 19. Below 0 needs privileges: without them no worker starts, and every task ends with
   * OFFLOOP_ERR_OS (EACCES of setpriority). Default 0.
   */
  int32_t nice;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * Name in metrics and of threads. Default "pool".
   */
  const char *name;
} offloop_pool_options;

/**
 * Times in nanoseconds.
 */
typedef struct {
  /**
   * Number of samples.
   */
  uint64_t count;
  /**
   * Mean.
   */
  double mean_ns;
  /**
   * Half of the samples are not above this.
   */
  uint64_t p50_ns;
  /**
   * 90 % of the samples are not above this.
   */
  uint64_t p90_ns;
  /**
   * 99 % of the samples are not above this.
   */
  uint64_t p99_ns;
  /**
   * The largest sample.
   */
  uint64_t max_ns;
} offloop_histogram;

/**
 * What a pool has done since it was made.
 */
typedef struct {
  /**
   * sizeof(offloop_stats), set by the caller.
   */
  size_t struct_size;
  /**
   * Tasks that wait.
   */
  uint64_t queued;
  /**
   * Tasks that run and have no outcome yet.
   */
  uint64_t running;
  /**
   * Live worker threads.
   */
  uint64_t workers;
  /**
   * Functions that run although their task has its outcome (timeout, cancel).
   */
  uint64_t overdue;
  /**
   * Tasks taken in.
   */
  uint64_t submitted;
  /**
   * Outcomes that are results.
   */
  uint64_t completed;
  /**
   * Outcomes that are errors of the function.
   */
  uint64_t failed;
  /**
   * Outcomes OFFLOOP_ERR_TIMEOUT.
   */
  uint64_t timed_out;
  /**
   * Outcomes OFFLOOP_ERR_CANCELLED.
   */
  uint64_t cancelled;
  /**
   * Outcomes OFFLOOP_ERR_WORKER_LOST.
   */
  uint64_t lost;
  /**
   * Calls that were refused as OFFLOOP_ERR_FULL.
   */
  uint64_t rejected;
  /**
   * Of a process pool: runs that were lost with their worker and done again.
   */
  uint64_t retried;
  /**
   * Of a process pool: workers that were replaced because of their tasks or their age.
   */
  uint64_t recycled;
  /**
   * Share of max_workers that was busy, 0 to 1.
   */
  double utilization;
  /**
   * From submit to start.
   */
  offloop_histogram wait;
  /**
   * From start to return.
   */
  offloop_histogram run;
} offloop_stats;

/**
 * A function that runs on a pool's thread. It returns OFFLOOP_OK with its result set (nil if it set none), an
 * OFFLOOP_ERR_… status, or any other number, which becomes OFFLOOP_ERR_TASK_FAILED. Result, error text, input, options,
 * progress and cancellation go through `ctx`, which is valid until the function returns, on any thread. The function must
 * not unwind (no C++ exception, no longjmp out of it).
 *
 * The thread has a stack of 2 MiB and blocks every signal but those that a fault raises, so that the host's handlers run on
 * the host's threads. A child process inherits that mask: unblock (pthread_sigmask) before exec.
 */
typedef int32_t (*offloop_fn)(offloop_task_ctx *ctx, void *arg);

/**
 * Gets the outcome of a task: its status, and its result (NULL when it has none), or an error value (offloop_value_get_error) with
 * the text; that of a function in a worker process as it was there, with stack, cause and properties. The callee owns the value and
 * frees it.
 */
typedef void (*offloop_done_fn)(void *user, offloop_status status, offloop_value *value);

/**
 * How a task is run and where its outcome goes. 0 or NULL means the default everywhere; start from
 * OFFLOOP_SUBMIT_OPTIONS_INIT. With neither cq nor on_done the outcome waits for offloop_task_wait.
 */
typedef struct {
  /**
   * sizeof(offloop_submit_options).
   */
  size_t struct_size;
  /**
   * -128 to 127, higher first. A waiting task gains one class per 100 ms.
   */
  int32_t priority;
  /**
   * OFFLOOP_ON_FULL_REJECT or OFFLOOP_ON_FULL_WAIT.
   */
  uint32_t on_full;
  /**
   * With OFFLOOP_ON_FULL_WAIT: the longest wait in nanoseconds. 0: for ever.
   */
  int64_t full_timeout_ns;
  /**
   * Longest time from start to outcome, in nanoseconds. 0: none.
   */
  int64_t timeout_ns;
  /**
   * Longest wait from submit to start, in nanoseconds. 0: none.
   */
  int64_t queue_timeout_ns;
  /**
   * Tasks with one key run on one worker, in order. NULL: none.
   */
  const char *key;
  /**
   * The outcome becomes an event of this queue, or is passed to on_done inside offloop_cq_drain.
   */
  offloop_cq *cq;
  /**
   * Comes back in the event, below 2^63. offloop_pool_submit_many counts up from it.
   */
  uint64_t tag;
  /**
   * Called with the outcome: in offloop_cq_drain if cq is set, else on a thread of offloop that belongs to no pool and holds no lock, so
   * that it may wait for other tasks. Callbacks without a cq run one after another, unless one takes longer than 10 ms: then others run
   * beside it, up to 64 at once. By then the submit has written `inputs_io` and `out` and touches neither again.
   */
  offloop_done_fn on_done;
  /**
   * Passed to on_done.
   */
  void *user;
  /**
   * Called with user after on_done. May be NULL.
   */
  offloop_free_fn user_free;
  /**
   * Of a process pool: how often the call runs again after the loss of its worker, which says that a second run does no harm. Each run
   * has all of timeout_ns. 0: never.
   */
  uint32_t retries;
  /**
   * 0.
   */
  uint32_t reserved;
} offloop_submit_options;

/**
 * One call of a batch: a C function (`function`), or an op by name (`op`).
 */
typedef struct {
  /**
   * The function, or NULL for an op.
   */
  offloop_fn function;
  /**
   * Passed to the function.
   */
  void *arg;
  /**
   * Called once with arg when the function will not be called (again). May be NULL.
   */
  offloop_free_fn arg_free;
  /**
   * Name of the op, or NULL for a function.
   */
  const char *op;
  /**
   * The op's inputs, moved: each becomes NULL on OK.
   */
  offloop_buffer **inputs_io;
  /**
   * Number of inputs.
   */
  size_t input_count;
  /**
   * The op's options: a map, nil or NULL. Copied.
   */
  const offloop_value *params;
} offloop_call;

/**
 * How a process pool is made. 0 or NULL means the default everywhere but in command; start from OFFLOOP_PROCESS_POOL_OPTIONS_INIT. Texts
 * are copied.
 */
typedef struct {
  /**
   * sizeof(offloop_process_pool_options).
   */
  size_t struct_size;
  /**
   * What to start for each worker: a program (a path, or a name to look for in PATH), its arguments, NULL. It has to become a worker, by
   * offloop_worker_main or another language's means.
   */
  const char *const *command;
  /**
   * Texts "NAME=VALUE", NULL: added to the environment that this process has when the pool is made. Default: none.
   */
  const char *const *env;
  /**
   * Working directory of the workers; a relative program is resolved in it. Default: this process's.
   */
  const char *cwd;
  /**
   * Most worker processes, 1 to 1024. Default: usable cores (affinity and cgroup quota).
   */
  int64_t max_workers;
  /**
   * Workers that stay when idle. Default 0.
   */
  int64_t min_workers;
  /**
   * How long an idle worker above min_workers stays, in nanoseconds. Default 30 s.
   */
  int64_t idle_timeout_ns;
  /**
   * Most queued calls, 1 to 2^24. Default 65,536.
   */
  int64_t max_queue;
  /**
   * Calls that one worker has at once, 1 to 4096. Default 1, and what offloop_worker_main needs, which runs one after the other; more is for
   * workers with an event loop.
   */
  int64_t concurrency;
  /**
   * How long a call that nobody waits for any more (timeout, cancel) may go on before its worker is ended, in nanoseconds. Default 1 s.
   */
  int64_t cancel_grace_ns;
  /**
   * Calls that a worker begins before another takes its place; the other is asked for up to 10 % earlier. Default: no limit.
   */
  int64_t max_tasks_per_worker;
  /**
   * How long a worker lives before another takes its place, in nanoseconds, up to 10 % less. Default: no limit.
   */
  int64_t max_worker_age_ns;
  /**
   * Bytes of memory of one worker (its proportional set size) beyond which another takes its place; looked at each second. Default: no limit.
   */
  int64_t max_worker_memory;
  /**
   * Added to the niceness of the workers, -20 to 19. Below 0 needs privileges. Default 0.
   */
  int32_t nice;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * Name in metrics and messages. Default "pool".
   */
  const char *name;
  /**
   * How long a worker may take until it is ready, in nanoseconds. Default 30 s.
   */
  int64_t ready_timeout_ns;
  /**
   * What every worker can ask for when it starts: offloop_worker_context in C, `init(context)` in Node.js and Python. Copied, at most
   * 256 MiB in its encoded form. NULL: nothing.
   */
  const offloop_value *context;
} offloop_process_pool_options;

/**
 * A function that a worker process offers by its name.
 */
typedef struct {
  /**
   * NUL-terminated UTF-8, not empty.
   */
  const char *name;
  /**
   * The function; its arguments are offloop_ctx_params, an array.
   */
  offloop_fn function;
  /**
   * Passed to it. May be NULL.
   */
  void *arg;
} offloop_function;

/**
 * What happened in a cluster. It and its texts are gone when the callback returns.
 */
typedef struct {
  /**
   * sizeof(offloop_cluster_event) of the library.
   */
  size_t struct_size;
  /**
   * OFFLOOP_CLUSTER_...; one that this program does not know is to be ignored.
   */
  int32_t kind;
  /**
   * The worker's place, from 0 on, where the event is about one.
   */
  uint32_t slot;
  /**
   * The (re)load that it belongs to, from 1 on.
   */
  uint32_t generation;
  /**
   * Its process id, or 0.
   */
  int32_t pid;
  /**
   * Its exit code, or -1.
   */
  int32_t exit_code;
  /**
   * The signal that ended it, or 0.
   */
  int32_t signal;
  /**
   * 1: it did not finish in time when it was to, and was signalled.
   */
  int32_t forced;
  /**
   * 1: the kernel killed it for want of memory.
   */
  int32_t oom;
  /**
   * NUL-terminated, or NULL.
   */
  const char *text;
  /**
   * Where the loop of OFFLOOP_CLUSTER_UNRESPONSIVE stands: lines of text, NUL-terminated; NULL where the worker does not say (workers in C do not).
   */
  const char *stack;
  /**
   * Why: "crash", "boot", "bootTimeout", "blocked", "frozen", "corrupt", "killed", "scale", "retire" (a reload, or its age, memory or requests), "stop"; NULL where the event has none.
   */
  const char *cause;
} offloop_cluster_event;

/**
 * Hears of events.
 */
typedef void (*offloop_cluster_event_fn)(const offloop_cluster_event *event, void *user);

/**
 * What came over a channel. The caller frees the value and closes the fds.
 */
typedef struct {
  /**
   * One of OFFLOOP_INCOMING_….
   */
  uint32_t kind;
  /**
   * Not 0: whoever was asked failed, and the value is its error.
   */
  uint32_t failed;
  /**
   * Of a reply: OFFLOOP_OK, or why there is none.
   */
  offloop_status status;
  /**
   * Fds that came along, close-on-exec.
   */
  uint32_t fd_count;
  /**
   * Of a request or reply.
   */
  uint64_t id;
  /**
   * The value; NULL where there is none.
   */
  offloop_value *value;
  /**
   * The fds.
   */
  int32_t fds[OFFLOOP_CHANNEL_MAX_FDS];
  /**
   * 0.
   */
  uint32_t reserved;
} offloop_incoming;

/**
 * Hears of what workers say. The value and the fds of `message` are the callee's to free and to close, where it is OFFLOOP_OK that `message->status` has. A request is answered by
 * offloop_channel_reply on `from`, which is the library's: a handle of the channel to that worker, and none any more once OFFLOOP_CLUSTER_EXIT was told of it.
 */
typedef void (*offloop_cluster_message_fn)(uint32_t slot,
                                           uint32_t generation,
                                           offloop_channel *from,
                                           const offloop_incoming *message,
                                           void *user);

/**
 * A line that a worker has printed. It and its bytes are gone when the callback returns.
 */
typedef struct {
  /**
   * sizeof(offloop_cluster_line) of the library.
   */
  size_t struct_size;
  /**
   * The worker's place.
   */
  uint32_t slot;
  /**
   * The (re)load that it belongs to, from 1 on.
   */
  uint32_t generation;
  /**
   * Its process id.
   */
  int32_t pid;
  /**
   * 1: on its standard output, 2: on its standard error output.
   */
  int32_t stream;
  /**
   * What, without the newline and without a NUL behind it.
   */
  const uint8_t *bytes;
  /**
   * How many.
   */
  size_t len;
  /**
   * 1: the line is longer than 64 KiB, and the next one of this worker and stream is more of it.
   */
  int32_t more;
  /**
   * 0.
   */
  uint32_t reserved;
} offloop_cluster_line;

/**
 * Hears of what workers print.
 */
typedef void (*offloop_cluster_line_fn)(const offloop_cluster_line *line, void *user);

/**
 * How a cluster is made. 0 or NULL means the default everywhere but in command; start from OFFLOOP_CLUSTER_OPTIONS_INIT. Texts are copied.
 */
typedef struct {
  /**
   * sizeof(offloop_cluster_options).
   */
  size_t struct_size;
  /**
   * What each worker runs: a program (a path, or a name to look for in PATH), its arguments, NULL. "{fd}" in an argument is replaced by the number
   * of the first listening socket, "{fd1}" by that of the second.
   */
  const char *const *command;
  /**
   * Texts "NAME=VALUE", NULL: added to this process's environment. Default: none.
   */
  const char *const *env;
  /**
   * Working directory of the workers. Default: this process's.
   */
  const char *cwd;
  /**
   * Where to listen: texts "PORT", "HOST:PORT", "unix:PATH", "fd:NUMBER", NULL. Bound before the first worker starts, and inherited from fd 3 on (LISTEN_FDS). "fd:NUMBER" is a socket of this
   * process that listens: offloop_cluster_start makes a copy and makes it non-blocking, and the fd stays the caller's; one that is none is OFFLOOP_ERR_INVALID there.
   */
  const char *const *listen;
  /**
   * How connections come to workers: "shared" (the default), "round-robin", "least-connections", "ip-hash", "reuseport".
   */
  const char *balance;
  /**
   * Workers, 1 to 1024. Default: usable cores.
   */
  int64_t workers;
  /**
   * From the start of a worker until it is ready, in nanoseconds. Default 30 s.
   */
  int64_t ready_timeout_ns;
  /**
   * How long a new worker has to be ready before the old one is asked to finish, in nanoseconds. Default 1 s.
   */
  int64_t min_ready_ns;
  /**
   * What a worker that leaves has to finish, in nanoseconds. Default 30 s.
   */
  int64_t drain_timeout_ns;
  /**
   * From SIGTERM to SIGKILL, in nanoseconds. Default 2 s.
   */
  int64_t kill_grace_ns;
  /**
   * How often a worker's loop is to call offloop_worker_beat, in nanoseconds, from 10 ms. Default 1 s.
   */
  int64_t beat_ns;
  /**
   * How long it may call it not before it is ended, in nanoseconds, at least four times beat_ns; below 0: for ever. Default 10 s.
   */
  int64_t hang_timeout_ns;
  /**
   * A worker that was ready for so long, ±10 %, is replaced, its successor first: in nanoseconds, from 1 s. Default: none is.
   */
  int64_t max_age_ns;
  /**
   * So is one that has more memory, bytes of PSS, at three looks in a row, one a second: from 1 MiB. Default: none is.
   */
  int64_t max_memory;
  /**
   * So is one that has told of so many requests (offloop_worker_served), ±10 %. Default: none is.
   */
  int64_t max_requests;
  /**
   * Workers beside those that load and wait: when one has ended, a spare takes its place at once, and another is started. With the workers no more than 1024; not with
   * "reuseport". Their program takes connections by offloop_worker_accept, or heeds offloop_worker_active_fd. Default: none.
   */
  int64_t spares;
  /**
   * Added to the niceness of the workers. Default 0.
   */
  int32_t nice;
  /**
   * Not 0: each worker runs on one core, by its slot, the usable cores counted round.
   */
  uint32_t pin_cpus;
  /**
   * Called with each event on threads of the library, one call at a time. offloop_cluster_start, _reload and _stop, which wait for workers, are OFFLOOP_ERR_INVALID in it and do
   * nothing. Default: none.
   */
  offloop_cluster_event_fn on_event;
  /**
   * Passed to it.
   */
  void *event_user;
  /**
   * Called with event_user when no event can come any more. May be NULL.
   */
  void (*event_user_free)(void*);
  /**
   * Called with each message and request of the workers on a thread of the library, one call at a time. It holds up what other workers say, and who sends more than there is room
   * for waits. It may call what on_event may. Default: none; they wait for offloop_channel_recv on offloop_cluster_channel.
   */
  offloop_cluster_message_fn on_message;
  /**
   * Passed to it.
   */
  void *message_user;
  /**
   * Called with message_user when no message can come any more. May be NULL.
   */
  void (*message_user_free)(void*);
  /**
   * Whose workers are: "USER" or "USER:GROUP", by name or number, without supplementary groups. Another than this process's takes privileges. Default: this process's.
   */
  const char *user;
  /**
   * Soft and hard limits of the workers: texts "NAME=NUMBER" or "NAME=unlimited", NULL; names as for prlimit(1): "nofile", "core", "as" ... Default: this process's.
   */
  const char *const *limits;
  /**
   * oom_score_adj of the workers, -1000 to 1000: how much rather than others they are killed when memory runs out. 0: this process's.
   */
  int32_t oom_score;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * Where a thread of the library answers HTTP requests: /metrics for Prometheus, /status as JSON, / a page that shows them as they change. "HOST:PORT" or "unix:PATH", as listen has it;
   * port 0 is one that the system chooses. Whoever can connect reads them: name 127.0.0.1. Default: nowhere.
   */
  const char *metrics;
  /**
   * Where what workers print goes, as whole lines in the order of their streams: "prefixed" (to this process's outputs, each line as "[slot:pid] line"), "raw" (without the prefix),
   * "none", or the path of a file, which gets the prefix, too. Lines that cannot be written are lost. Default: with on_line nowhere, else workers have this process's outputs.
   */
  const char *log;
  /**
   * A file of log that would grow beyond so many bytes becomes FILE.1, that FILE.2 and so on, 1 to 2^50. Default 10 MiB.
   */
  int64_t log_size;
  /**
   * So many of those are kept, up to 1000; below 0: none. Default 5.
   */
  int32_t log_keep;
  /**
   * 0.
   */
  uint32_t reserved2;
  /**
   * Called with each line that workers print on a thread of the library, one call at a time, before the line goes where log says. Who prints faster than it returns waits in its own write, so
   * it must not wait for what a thread holds that waits in a call of this cluster. The last lines of a worker come before OFFLOOP_CLUSTER_EXIT, unless it holds them up for more
   * than 100 ms; what processes that it has left behind print comes after that, until the end of the cluster. Default: none.
   */
  offloop_cluster_line_fn on_line;
  /**
   * Passed to it.
   */
  void *line_user;
  /**
   * Called with line_user when no line can come any more. May be NULL.
   */
  void (*line_user_free)(void*);
} offloop_cluster_options;

/**
 * What a reload has done.
 */
typedef struct {
  /**
   * sizeof(offloop_reload_report), set by the caller.
   */
  size_t struct_size;
  /**
   * The new generation.
   */
  uint32_t generation;
  /**
   * Workers that were replaced.
   */
  uint32_t replaced;
  /**
   * Old workers that did not finish within drain_timeout_ns.
   */
  uint64_t forced;
  /**
   * From its beginning to the end of the last old worker, in nanoseconds.
   */
  int64_t took_ns;
} offloop_reload_report;

/**
 * Counts of a cluster.
 */
typedef struct {
  /**
   * sizeof(offloop_cluster_counts), set by the caller.
   */
  size_t struct_size;
  /**
   * Of the last (re)load that succeeded.
   */
  uint32_t generation;
  /**
   * 1: too many workers fail.
   */
  int32_t degraded;
  /**
   * Workers wanted.
   */
  uint64_t wanted;
  /**
   * Workers' processes.
   */
  uint64_t live;
  /**
   * Workers that take connections.
   */
  uint64_t ready;
  /**
   * Spares that wait.
   */
  uint64_t spares;
  /**
   * Processes started.
   */
  uint64_t spawned;
  /**
   * Ends that nobody has asked for.
   */
  uint64_t crashed;
  /**
   * Workers that did not finish in time.
   */
  uint64_t forced;
  /**
   * Workers that were to be replaced for their age, memory or requests.
   */
  uint64_t expired;
  /**
   * Times that a loop was found to show nothing.
   */
  uint64_t unresponsive;
  /**
   * Reloads that succeeded.
   */
  uint64_t reloads;
  /**
   * Reloads that failed.
   */
  uint64_t reloads_failed;
  /**
   * What workers have told of by offloop_worker_served, those that have ended too.
   */
  uint64_t served;
} offloop_cluster_counts;

/**
 * What a worker does.
 */
typedef struct {
  /**
   * sizeof(offloop_cluster_load), set by the caller.
   */
  size_t struct_size;
  /**
   * The (re)load that the worker belongs to, from 1 on.
   */
  uint32_t generation;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * What it has told of by offloop_worker_served since its start.
   */
  uint64_t served;
  /**
   * By how much its loop is late, in nanoseconds: what its next beat is overdue by now, or the greatest lateness of one before, of which half is left after each second. -1 before its
   * first beat.
   */
  int64_t loop_delay_ns;
} offloop_cluster_load;

/**
 * Hears of what the process of the cluster says. The value and the fds of `message` are the callee's to free and to close. A request is answered by offloop_channel_reply on `from`, which
 * is the library's.
 */
typedef void (*offloop_worker_message_fn)(offloop_channel *from, const offloop_incoming *message, void *user);

/**
 * What a rate limiter lets through. 0 means the default; start from OFFLOOP_LIMIT_INIT.
 */
typedef struct {
  /**
   * sizeof(offloop_limit).
   */
  size_t struct_size;
  /**
   * Tokens per second that come back: 0.000001 to 1,000,000. To be given.
   */
  double rate;
  /**
   * Tokens of a full bucket: 1 to 1,048,576. Default: those of one second, rounded up.
   */
  uint32_t burst;
  /**
   * Keys whose buckets are known at a time: 8 to 16,777,216, of 8 bytes each, rounded up to a power of two. Default 16,384. A key's bucket is among 8; where all 8 are in use, the one that is
   * nearest to full is forgotten, and its key begins with a full one.
   */
  uint32_t keys;
} offloop_limit;

/**
 * What became of offloop_limiter_take.
 */
typedef struct {
  /**
   * sizeof(offloop_taken), set by the caller.
   */
  size_t struct_size;
  /**
   * 1: the tokens were there.
   */
  uint32_t allowed;
  /**
   * Whole tokens that are there now.
   */
  uint32_t remaining;
  /**
   * When not allowed: until as many are there, if nobody else takes some. Else 0.
   */
  int64_t retry_after_ns;
} offloop_taken;

/**
 * How a ring is made. 0 or NULL means the default everywhere; start from OFFLOOP_RING_OPTIONS_INIT.
 */
typedef struct {
  /**
   * sizeof(offloop_ring_options).
   */
  size_t struct_size;
  /**
   * Who writes and who reads: "spsc", "mpsc", "mpmc", "broadcast". Default "spsc".
   */
  const char *kind;
  /**
   * What a push does when there is no room: "wait", "reject", "overwrite" (broadcast only). Default "wait".
   */
  const char *on_full;
  /**
   * Bytes of a lane, or of all slots of "mpmc", rounded up to a power of two from 4 KiB to 1 GiB. A record may take half of a lane.
   * Default 4 MiB.
   */
  size_t capacity;
  /**
   * Producers and consumers at most, together. Default 2 for "spsc", else 16.
   */
  size_t max_participants;
  /**
   * Gives the ring a name to attach to (offloop_ring_attach_path): a file on tmpfs; without a slash below $XDG_RUNTIME_DIR/offloop. It
   * stays until offloop_ring_remove. NULL: no name.
   */
  const char *path;
  /**
   * Bytes of a slot of "mpmc", rounded up to a power of two from 64 to half of the capacity: a record and 16 bytes. Default 256. The
   * other kinds have no slots.
   */
  size_t slot_size;
} offloop_ring_options;

/**
 * What a ring is.
 */
typedef struct {
  /**
   * sizeof(offloop_ring_state), set by the caller.
   */
  size_t struct_size;
  /**
   * "spsc", "mpsc", "mpmc" or "broadcast".
   */
  char kind[16];
  /**
   * Bytes of a lane, or of all slots.
   */
  size_t capacity;
  /**
   * The longest record.
   */
  size_t max_record_len;
  /**
   * Bytes of a slot of "mpmc", else 0.
   */
  size_t slot_size;
  /**
   * Not 0: some participant has closed the ring.
   */
  uint32_t closed;
  /**
   * 0.
   */
  uint32_t reserved;
} offloop_ring_state;

/**
 * How a producer publishes. Start from OFFLOOP_PRODUCER_OPTIONS_INIT.
 */
typedef struct {
  /**
   * sizeof(offloop_producer_options).
   */
  size_t struct_size;
  /**
   * Not 0: committed records become visible by offloop_producer_flush, after 4 KiB of them, when there is no room, and when the
   * consumer has nothing else to do. 0: each record is published when it is committed.
   */
  uint32_t batch;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * What a push of this producer does when there is no room; NULL: what the ring's maker chose.
   */
  const char *on_full;
} offloop_producer_options;

/**
 * The bytes of one record.
 */
typedef struct {
  /**
   * The first byte. What a consumer gives lies in the ring, 8-aligned: read only, and a peer that breaks the protocol can
   * change it meanwhile, so copy it before you check it if you do not trust the peer.
   */
  const void *data;
  /**
   * Bytes.
   */
  size_t len;
  /**
   * Not 0: a consumer that died, or gave it back, may have seen this record. Ignored when pushing.
   */
  uint32_t redelivered;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * What offloop_consumer_ack wants, with `ack` "manual"; else 0.
   */
  uint64_t delivery;
} offloop_record;

/**
 * How a consumer reads. Start from OFFLOOP_CONSUMER_OPTIONS_INIT.
 */
typedef struct {
  /**
   * sizeof(offloop_consumer_options).
   */
  size_t struct_size;
  /**
   * When a record of an "mpmc" ring is dealt with: "auto", when it is let go of, or "manual", when offloop_consumer_ack is told so.
   * Default "auto"; the other kinds know no other.
   */
  const char *ack;
} offloop_consumer_options;

/**
 * Sizes of a channel. 0 means the default everywhere; start from OFFLOOP_CHANNEL_OPTIONS_INIT.
 */
typedef struct {
  /**
   * sizeof(offloop_channel_options).
   */
  size_t struct_size;
  /**
   * Bytes of the ring of each direction, for whoever makes the channel (pair, listen): 256 KiB. A message of more than half of them
   * goes beside the ring.
   */
  size_t capacity;
  /**
   * Longest message without the buffers that move: 256 MiB.
   */
  size_t max_message;
  /**
   * Bytes that wait in this process, each way: what offloop_channel_post_request queues when there is no room, and what a request reads
   * ahead for offloop_channel_recv. Whole messages count, with the buffers that move; one alone may be longer: 16 MiB.
   */
  size_t max_queued;
} offloop_channel_options;

/**
 * One op of a plugin. Fill `abi_version` with OFFLOOP_ABI_VERSION (OFFLOOP_OP_DEF_INIT does).
 */
typedef struct {
  /**
   * sizeof(offloop_op_def).
   */
  size_t struct_size;
  /**
   * OFFLOOP_ABI_VERSION of the header that the plugin was compiled with.
   */
  uint32_t abi_version;
  /**
   * 0.
   */
  uint32_t reserved;
  /**
   * Name of the op, NUL-terminated, copied: 1 to 64 of a-z 0-9 _ and at most one dot, "image.blur". It may not be taken.
   */
  const char *name;
  /**
   * The function. It may be called on several threads at once.
   */
  offloop_fn function;
  /**
   * Passed to every call. May be NULL.
   */
  void *arg;
  /**
   * Called once with `arg` when no call can come any more. May be NULL.
   */
  offloop_free_fn arg_free;
} offloop_op_def;

/**
 * What a plugin may call: the functions of this header, in a table, because a plugin links to nothing. A field has the
 * meaning of the function of the same name with `offloop_` before it; register_op is described at offloop_op_def.
 */
typedef struct {
  /**
   * sizeof(offloop_host) of the host.
   */
  size_t struct_size;
  /**
   * ABI version of the host: refuse to load below the one that the plugin needs (OFFLOOP_PLUGIN_CHECK does).
   */
  uint32_t abi_version;
  /**
   * 0.
   */
  uint32_t reserved;
  offloop_status (*register_op)(offloop_registry *registry, const offloop_op_def *def);
  const char *(*last_error)(void);
  const char *(*status_name)(offloop_status status);
  uint32_t (*wire_version)(void);
  offloop_status (*ctx_cancelled)(offloop_task_ctx *ctx);
  offloop_status (*ctx_progress)(offloop_task_ctx *ctx, offloop_value **value_io);
  offloop_status (*ctx_params)(offloop_task_ctx *ctx, const offloop_value **out);
  offloop_status (*ctx_input_count)(offloop_task_ctx *ctx, size_t *out);
  offloop_status (*ctx_input)(offloop_task_ctx *ctx, size_t index, const uint8_t **data, size_t *len);
  offloop_status (*ctx_take_input)(offloop_task_ctx *ctx, size_t index, offloop_buffer **out);
  offloop_status (*ctx_set_result)(offloop_task_ctx *ctx, offloop_value **value_io);
  offloop_status (*ctx_set_error)(offloop_task_ctx *ctx, const char *text);
  offloop_status (*value_new_nil)(offloop_value **out);
  offloop_status (*value_new_bool)(bool value, offloop_value **out);
  offloop_status (*value_new_int)(int64_t value, offloop_value **out);
  offloop_status (*value_new_big)(bool negative, const uint8_t *magnitude, size_t len, offloop_value **out);
  offloop_status (*value_new_float)(double value, offloop_value **out);
  offloop_status (*value_new_str)(const char *text, size_t len, offloop_value **out);
  offloop_status (*value_new_bytes)(const void *data, size_t len, offloop_value **out);
  offloop_status (*value_new_buffer)(offloop_buffer **buffer_io, offloop_value **out);
  offloop_status (*value_new_array)(offloop_value **out);
  offloop_status (*value_new_map)(offloop_value **out);
  offloop_status (*value_new_date)(double unix_ms, offloop_value **out);
  offloop_status (*value_new_typed)(uint32_t dtype,
                                    const uint64_t *shape,
                                    size_t dimensions,
                                    const void *data,
                                    size_t len,
                                    offloop_value **out);
  offloop_status (*value_new_error)(const char *name, const char *message, offloop_value **out);
  offloop_status (*value_copy)(const offloop_value *value, offloop_value **out);
  void (*value_free)(offloop_value *value);
  offloop_status (*value_get_type)(const offloop_value *value, uint32_t *out);
  offloop_status (*value_get_bool)(const offloop_value *value, bool *out);
  offloop_status (*value_get_int)(const offloop_value *value, int64_t *out);
  offloop_status (*value_get_float)(const offloop_value *value, double *out);
  offloop_status (*value_get_date)(const offloop_value *value, double *out);
  offloop_status (*value_get_big)(const offloop_value *value, bool *negative, const uint8_t **magnitude, size_t *len);
  offloop_status (*value_get_str)(const offloop_value *value, const char **text, size_t *len);
  offloop_status (*value_get_bytes)(const offloop_value *value, const uint8_t **data, size_t *len);
  offloop_status (*value_get_typed)(const offloop_value *value,
                                    uint32_t *dtype,
                                    const uint64_t **shape,
                                    size_t *dimensions);
  offloop_status (*value_get_error)(const offloop_value *value,
                                    const char **name,
                                    size_t *name_len,
                                    const char **message,
                                    size_t *message_len);
  offloop_status (*value_take_buffer)(offloop_value **value_io, offloop_buffer **out);
  offloop_status (*value_array_push)(offloop_value *array, offloop_value **item_io);
  offloop_status (*value_array_len)(const offloop_value *array, size_t *out);
  offloop_status (*value_array_get)(const offloop_value *array, size_t index, const offloop_value **out);
  offloop_status (*value_map_set)(offloop_value *map, const char *key, offloop_value **item_io);
  offloop_status (*value_map_len)(const offloop_value *map, size_t *out);
  offloop_status (*value_map_get)(const offloop_value *map, const char *key, const offloop_value **out);
  offloop_status (*value_map_at)(const offloop_value *map,
                                 size_t index,
                                 const offloop_value **key,
                                 const offloop_value **item);
  offloop_status (*buffer_new)(size_t len, offloop_buffer **out);
  offloop_status (*buffer_new_shared)(size_t len, offloop_buffer **out);
  offloop_status (*buffer_from_bytes)(const void *data, size_t len, offloop_buffer **out);
  offloop_status (*buffer_from_foreign)(void *data,
                                        size_t len,
                                        void *user,
                                        offloop_free_fn user_free,
                                        offloop_buffer **out);
  offloop_status (*buffer_data)(offloop_buffer *buffer, uint8_t **data, size_t *len);
  offloop_status (*buffer_fd)(offloop_buffer *buffer, int32_t *out);
  offloop_status (*buffer_attach)(int32_t fd, offloop_buffer **out);
  offloop_status (*buffer_transfer)(offloop_buffer **buffer_io, offloop_token *out);
  offloop_status (*buffer_receive)(const offloop_token *from, offloop_buffer **out);
  offloop_status (*token_revoke)(const offloop_token *which);
  void (*buffer_free)(offloop_buffer *buffer);
} offloop_host;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * This thread's last error message, with the values that explain it; "" before the first error. Borrowed until the next
 * call of an offloop function on this thread.
 */
const char *offloop_last_error(void);

/**
 * The name of a status: "OFFLOOP_OK", "ERR_OFFLOOP_FULL" …; "ERR_OFFLOOP_UNKNOWN" for one of a newer library. Static.
 */
const char *offloop_status_name(offloop_status status);

/**
 * The ABI version of the library; compare it with OFFLOOP_ABI_VERSION of the header.
 */
uint32_t offloop_abi_version(void);

/**
 * The wire version of the library.
 */
uint32_t offloop_wire_version(void);

/**
 * Makes a nil.
 */
offloop_status offloop_value_new_nil(offloop_value **out);

/**
 * Makes a boolean.
 */
offloop_status offloop_value_new_bool(bool value, offloop_value **out);

/**
 * Makes an integer.
 */
offloop_status offloop_value_new_int(int64_t value, offloop_value **out);

/**
 * Makes an integer of any size from its magnitude, least significant byte first: OFFLOOP_TYPE_INT where 64 bits hold it,
 * OFFLOOP_TYPE_BIG beyond.
 */
offloop_status offloop_value_new_big(bool negative,
                                     const uint8_t *magnitude,
                                     size_t len,
                                     offloop_value **out);

/**
 * Makes a float.
 */
offloop_status offloop_value_new_float(double value, offloop_value **out);

/**
 * Makes a text of `len` bytes of UTF-8, or up to its NUL byte when `len` is OFFLOOP_NUL_TERMINATED. Copied.
 */
offloop_status offloop_value_new_str(const char *text, size_t len, offloop_value **out);

/**
 * Makes bytes. Copied; offloop_value_new_buffer does not copy.
 */
offloop_status offloop_value_new_bytes(const void *data, size_t len, offloop_value **out);

/**
 * Makes a value of a buffer, which is moved, not copied.
 */
offloop_status offloop_value_new_buffer(offloop_buffer **buffer_io, offloop_value **out);

/**
 * Makes an empty array.
 */
offloop_status offloop_value_new_array(offloop_value **out);

/**
 * Makes an empty map.
 */
offloop_status offloop_value_new_map(offloop_value **out);

/**
 * Makes a date: milliseconds since 1970-01-01 UTC. A host that cannot show a date (Python: years 1 to 9999, Node.js: 100 million days
 * around 1970) gives its user OFFLOOP_ERR_UNSUPPORTED in place of the result.
 */
offloop_status offloop_value_new_date(double unix_ms,
                                      offloop_value **out);

/**
 * Makes a date to the nanosecond: seconds since 1970-01-01 UTC, rounded down, and nanoseconds after them, as in struct timespec.
 * Hosts show it as offloop_value_new_date says.
 */
offloop_status offloop_value_new_time(int64_t seconds,
                                      uint32_t nanos,
                                      offloop_value **out);

/**
 * Makes an array of elements of one type (OFFLOOP_DTYPE_…) in C order; `shape` has `dimensions` lengths, at most 64. Copied.
 */
offloop_status offloop_value_new_typed(uint32_t dtype,
                                       const uint64_t *shape,
                                       size_t dimensions,
                                       const void *data,
                                       size_t len,
                                       offloop_value **out);

/**
 * Makes an error: a class name and a message, both NUL-terminated. offloop_value_error_set adds what else it has.
 */
offloop_status offloop_value_new_error(const char *name, const char *message, offloop_value **out);

/**
 * Copies a value with all it holds; buffers become plain bytes. The way to own what is borrowed.
 */
offloop_status offloop_value_copy(const offloop_value *value, offloop_value **out);

/**
 * Frees an owned value and ends its views. NULL is allowed. A borrowed value needs no free and is left alone. A value that
 * another thread's call is moving or changing ends with that call.
 */
void offloop_value_free(offloop_value *value);

/**
 * Gives the type of a value: one of OFFLOOP_TYPE_….
 */
offloop_status offloop_value_get_type(const offloop_value *value, uint32_t *out);

/**
 * Reads a boolean; OFFLOOP_ERR_INVALID for another type.
 */
offloop_status offloop_value_get_bool(const offloop_value *value, bool *out);

/**
 * Reads an integer, or a float without a fraction; OFFLOOP_ERR_INVALID for another type.
 */
offloop_status offloop_value_get_int(const offloop_value *value, int64_t *out);

/**
 * Reads a number as a float; OFFLOOP_ERR_INVALID for another type.
 */
offloop_status offloop_value_get_float(const offloop_value *value, double *out);

/**
 * Reads a date: milliseconds since 1970-01-01 UTC.
 */
offloop_status offloop_value_get_date(const offloop_value *value, double *out);

/**
 * Reads a date to the nanosecond: seconds since 1970-01-01 UTC, rounded down, and nanoseconds after them.
 */
offloop_status offloop_value_get_time(const offloop_value *value, int64_t *seconds, uint32_t *nanos);

/**
 * Reads an integer beyond 64 bits: sign, and magnitude least significant byte first. The pointer lives as long as the value.
 */
offloop_status offloop_value_get_big(const offloop_value *value,
                                     bool *negative,
                                     const uint8_t **magnitude,
                                     size_t *len);

/**
 * Reads a text: UTF-8, `len` bytes, *not* NUL-terminated. The pointer lives until the value is changed, moved or freed.
 */
offloop_status offloop_value_get_str(const offloop_value *value, const char **text, size_t *len);

/**
 * Reads the bytes of bytes, a typed array or a buffer. The pointer lives until the value is changed, moved or freed.
 */
offloop_status offloop_value_get_bytes(const offloop_value *value, const uint8_t **data, size_t *len);

/**
 * Reads element type and shape of a typed array; its bytes come from offloop_value_get_bytes.
 */
offloop_status offloop_value_get_typed(const offloop_value *value,
                                       uint32_t *dtype,
                                       const uint64_t **shape,
                                       size_t *dimensions);

/**
 * Reads an error: class name and message as borrowed texts.
 */
offloop_status offloop_value_get_error(const offloop_value *value,
                                       const char **name,
                                       size_t *name_len,
                                       const char **message,
                                       size_t *message_len);

/**
 * Reads the stack or traceback of an error as a borrowed text; empty when it has none.
 */
offloop_status offloop_value_get_stack(const offloop_value *value, const char **text, size_t *len);

/**
 * Sets a part of an error (NUL-terminated UTF-8), replacing its old value: "stack" (a text), "cause" (any value, usually an error),
 * or a property of its own, "code" among them. The item is moved; the error's views end. OFFLOOP_ERR_TOO_LARGE beyond 512 levels
 * of arrays, maps and errors.
 */
offloop_status offloop_value_error_set(offloop_value *error,
                                       const char *name,
                                       offloop_value **item_io);

/**
 * Borrows the "cause" of an error or a property of its own; OFFLOOP_ERR_NOT_FOUND when it has none of that name.
 */
offloop_status offloop_value_error_get(const offloop_value *error, const char *name, const offloop_value **out);

/**
 * Takes the bytes out of a value as a buffer, without a copy where the memory allows it. The value is moved.
 */
offloop_status offloop_value_take_buffer(offloop_value **value_io, offloop_buffer **out);

/**
 * Appends to an array. The item is moved; the array's views end. OFFLOOP_ERR_TOO_LARGE beyond 512 levels of arrays, maps and errors.
 */
offloop_status offloop_value_array_push(offloop_value *array,
                                        offloop_value **item_io);

/**
 * Gives the number of items of an array.
 */
offloop_status offloop_value_array_len(const offloop_value *array, size_t *out);

/**
 * Borrows an item of an array; OFFLOOP_ERR_NOT_FOUND beyond its end.
 */
offloop_status offloop_value_array_get(const offloop_value *array, size_t index, const offloop_value **out);

/**
 * Sets a key (NUL-terminated UTF-8) of a map, replacing its old value. The item is moved; the map's views end.
 * OFFLOOP_ERR_TOO_LARGE beyond 512 levels of arrays, maps and errors.
 */
offloop_status offloop_value_map_set(offloop_value *map, const char *key, offloop_value **item_io);

/**
 * Gives the number of pairs of a map.
 */
offloop_status offloop_value_map_len(const offloop_value *map, size_t *out);

/**
 * Borrows the value of a key of a map; OFFLOOP_ERR_NOT_FOUND when it has no such key.
 */
offloop_status offloop_value_map_get(const offloop_value *map, const char *key, const offloop_value **out);

/**
 * Borrows the pair at a place of a map, in the order of insertion; OFFLOOP_ERR_NOT_FOUND beyond its end.
 */
offloop_status offloop_value_map_at(const offloop_value *map,
                                    size_t index,
                                    const offloop_value **key,
                                    const offloop_value **item);

/**
 * Writes a value as a message that every language reads: MessagePack with the extension types of docs/values.md. Buffers inside
 * are copied and become bytes. `options` may be NULL. OFFLOOP_ERR_TOO_LARGE beyond a limit.
 */
offloop_status offloop_value_encode(const offloop_value *value,
                                    const offloop_codec_options *options,
                                    offloop_buffer **out);

/**
 * Reads a message of offloop_value_encode or of any MessagePack library. `options` may be NULL. OFFLOOP_ERR_CORRUPT, with the offset in
 * the text, when it is malformed; OFFLOOP_ERR_TOO_LARGE beyond a limit.
 */
offloop_status offloop_value_decode(const void *data,
                                    size_t len,
                                    const offloop_codec_options *options,
                                    offloop_value **out);

/**
 * Makes a buffer of `len` zeroed bytes on the heap. OFFLOOP_ERR_TOO_LARGE above 2^50, OFFLOOP_ERR_OS without memory.
 */
offloop_status offloop_buffer_new(size_t len, offloop_buffer **out);

/**
 * Makes a buffer of `len` zeroed bytes in a sealed memfd, which another process can map (offloop_buffer_fd).
 */
offloop_status offloop_buffer_new_shared(size_t len, offloop_buffer **out);

/**
 * Makes a buffer on the heap with a copy of `data`.
 */
offloop_status offloop_buffer_from_bytes(const void *data, size_t len, offloop_buffer **out);

/**
 * Makes a buffer of the caller's memory, without a copy. On OK the memory belongs to the buffer: nobody else touches it, and
 * `user_free(user)` is called once when the bytes are needed no more, on any thread. On error `user_free` is not called.
 */
offloop_status offloop_buffer_from_foreign(void *data,
                                           size_t len,
                                           void *user,
                                           offloop_free_fn user_free,
                                           offloop_buffer **out);

/**
 * Gives first byte and length. The pointer lives until the buffer is moved or freed.
 */
offloop_status offloop_buffer_data(offloop_buffer *buffer, uint8_t **data, size_t *len);

/**
 * Gives the memfd of a shared buffer, to be passed to another process. It is the buffer's: duplicate it to keep it longer.
 * From now on ops copy the bytes first, because the other process may write them. OFFLOOP_ERR_INVALID for a heap buffer.
 */
offloop_status offloop_buffer_fd(offloop_buffer *buffer,
                                 int32_t *out);

/**
 * Maps the memfd of another process's shared buffer. The fd is duplicated and stays the caller's. OFFLOOP_ERR_INVALID for
 * an fd that is no memfd sealed against shrinking and growing; OFFLOOP_ERR_TOO_LARGE when it is longer than the machine's memory and
 * swap, or than the process may map.
 */
offloop_status offloop_buffer_attach(int32_t fd,
                                     offloop_buffer **out);

/**
 * Moves the bytes out of a buffer: the handle ends and `*out` holds the one-shot right to take them, in this process. What
 * nobody takes is freed by offloop_token_revoke.
 */
offloop_status offloop_buffer_transfer(offloop_buffer **buffer_io,
                                       offloop_token *out);

/**
 * Takes the bytes behind a token. OFFLOOP_ERR_DETACHED for a used one, OFFLOOP_ERR_INVALID for one of another process.
 */
offloop_status offloop_buffer_receive(const offloop_token *from, offloop_buffer **out);

/**
 * Frees the bytes behind a token that nobody will take. OFFLOOP_ERR_DETACHED for a used one.
 */
offloop_status offloop_token_revoke(const offloop_token *which);

/**
 * Frees a buffer. NULL is allowed. A buffer that another thread's call is moving ends with that call, or goes where it moves it.
 */
void offloop_buffer_free(offloop_buffer *buffer);

/**
 * Asks whether the result is still wanted: OFFLOOP_OK, or OFFLOOP_ERR_CANCELLED or OFFLOOP_ERR_TIMEOUT, which the function may
 * return as its own status. Ask at least every 5 ms of work.
 */
offloop_status offloop_ctx_cancelled(offloop_task_ctx *ctx);

/**
 * Tells the caller how far the task is. The value is moved. Only the latest is kept until it is read.
 */
offloop_status offloop_ctx_progress(offloop_task_ctx *ctx, offloop_value **value_io);

/**
 * Gives the caller a value while the task runs; the value is moved. The call waits while the caller is behind, and others with this context
 * wait for it. OFFLOOP_ERR_CLOSED when nobody takes any more, also where the call is no offloop_process_pool_stream: the function
 * is to return. OFFLOOP_ERR_UNSERIALIZABLE, OFFLOOP_ERR_TOO_LARGE for a value that cannot travel, which is the caller's as before.
 */
offloop_status offloop_ctx_give(offloop_task_ctx *ctx,
                                offloop_value **value_io);

/**
 * Borrows the options of an op's call: a map, or nil. It lives until the function returns. A C function that was submitted
 * by itself has nil; its `arg` holds what it needs.
 */
offloop_status offloop_ctx_params(offloop_task_ctx *ctx,
                                  const offloop_value **out);

/**
 * Gives the number of inputs.
 */
offloop_status offloop_ctx_input_count(offloop_task_ctx *ctx, size_t *out);

/**
 * Gives the bytes of an input, without a copy. Read only; they live until the function returns or takes the input.
 * OFFLOOP_ERR_NOT_FOUND beyond the last one.
 */
offloop_status offloop_ctx_input(offloop_task_ctx *ctx, size_t index, const uint8_t **data, size_t *len);

/**
 * Takes an input as a buffer of the function's own, to change it in place: without a copy if it came as a buffer, copied if
 * the host only lent it. The input is empty from then on.
 */
offloop_status offloop_ctx_take_input(offloop_task_ctx *ctx,
                                      size_t index,
                                      offloop_buffer **out);

/**
 * Sets the result; the last one counts. The value is moved. A buffer (offloop_value_new_buffer) reaches the caller as bytes,
 * without a copy.
 */
offloop_status offloop_ctx_set_result(offloop_task_ctx *ctx,
                                      offloop_value **value_io);

/**
 * Sets the text of the error that the function is about to return: NUL-terminated, lower case, no full stop, without the
 * kind (the status says it). The last one counts.
 */
offloop_status offloop_ctx_set_error(offloop_task_ctx *ctx,
                                     const char *text);

/**
 * Makes a completion queue. A process may have several, one per event loop.
 */
offloop_status offloop_cq_new(offloop_cq **out);

/**
 * Gives an fd to poll for reading, level-triggered: readable while anything may be left to drain. It is the queue's: never read
 * it, never close it.
 */
offloop_status offloop_cq_fd(offloop_cq *cq,
                             int32_t *out);

/**
 * Waits until something can be drained, at most `timeout_ns` (below 0: for ever). OFFLOOP_ERR_TIMEOUT otherwise. For a thread
 * without an event loop.
 */
offloop_status offloop_cq_wait(offloop_cq *cq,
                               int64_t timeout_ns);

/**
 * Takes at most `max` outcomes without waiting: writes `*count` events and calls the callbacks of tasks that were submitted with
 * one (those are no events). While anything is left the fd stays readable. One thread at a time.
 */
offloop_status offloop_cq_drain(offloop_cq *cq,
                                offloop_event *events,
                                size_t max,
                                size_t *count);

/**
 * Frees a queue. Events that nobody drained are dropped; callbacks that it still owes are called with OFFLOOP_ERR_CLOSED before this
 * returns, or when the last call that uses the queue does. NULL is allowed.
 */
void offloop_cq_free(offloop_cq *cq);

/**
 * Makes a pool. No thread starts before the first task. `options` may be NULL: all defaults. OFFLOOP_ERR_INVALID names the
 * option, its value and its limits.
 */
offloop_status offloop_pool_new(const offloop_pool_options *options,
                                offloop_pool **out);

/**
 * Gives the pool that the ops of every face of this process share: OFFLOOP_THREADS workers, made at first use. Free the handle
 * with offloop_pool_free; the pool stays.
 */
offloop_status offloop_pool_default(offloop_pool **out);

/**
 * Frees the handle and closes the pool without waiting: accepted tasks still run to their end. NULL is allowed.
 */
void offloop_pool_free(offloop_pool *pool);

/**
 * Closes the pool, waits until every accepted task has its outcome, at most `grace_ns` (below 0: for ever), then cancels
 * the rest. Later calls get OFFLOOP_ERR_CLOSED. Inside a function of this pool, OFFLOOP_ERR_INVALID with a grace below 0: it would wait for
 * itself.
 */
offloop_status offloop_pool_shutdown(offloop_pool *pool,
                                     int64_t grace_ns);

/**
 * Changes the bounds of the number of workers; below 0 leaves one as it is.
 */
offloop_status offloop_pool_resize(offloop_pool *pool, int64_t min_workers, int64_t max_workers);

/**
 * Reads counters and times. The caller sets `stats_io->struct_size`; an older, shorter struct gets what it has room for.
 */
offloop_status offloop_pool_stats(offloop_pool *pool,
                                  offloop_stats *stats_io);

/**
 * Loads a C plugin: a shared library that exports offloop_plugin. `*names`, unless NULL, is an array of the names of its ops.
 * OFFLOOP_ERR_NOT_FOUND without the file or its symbol, OFFLOOP_ERR_VERSION for another ABI, OFFLOOP_ERR_EXISTS for a
 * name that is taken, OFFLOOP_ERR_OS for a file that cannot be opened (EMFILE, EACCES), OFFLOOP_ERR_INVALID for what cannot be loaded. A plugin is native code of this process: one that crashes
 * takes the process with it.
 */
offloop_status offloop_pool_load(offloop_pool *pool,
                                 const char *path,
                                 offloop_value **names);

/**
 * Gives the names of all ops that the pool can run, built-in ones and plugins', as an array of texts.
 */
offloop_status offloop_pool_ops(offloop_pool *pool, offloop_value **out);

/**
 * Submits a C function. `out` may be NULL when nobody waits for the task.
 *
 * The function runs on a thread of the pool and keeps it until it returns. One that waits for another task of its own pool (or for
 * that task's callback, by a lock of its own) needs a second thread there; offloop_task_wait without a limit, OFFLOOP_ON_FULL_WAIT
 * without one and offloop_pool_shutdown are OFFLOOP_ERR_INVALID in it when they would wait for ever.
 *
 * OFFLOOP_ERR_OS (EAGAIN of pthread_create) when the process cannot start the one thread that deadlines and callbacks count on.
 *
 * `arg_free(arg)`, unless NULL, is called exactly once for an accepted task, whatever its outcome: after the function returned, or
 * when it will never run (cancelled, timed out in the queue, pool ended). If this call fails nothing was taken: `arg` is still
 * the caller's, and neither arg_free nor on_done nor user_free is called.
 */
offloop_status offloop_pool_submit(offloop_pool *pool,
                                   offloop_fn function,
                                   void *arg,
                                   offloop_free_fn arg_free,
                                   const offloop_submit_options *options,
                                   offloop_task **out);

/**
 * Submits an op by name. On OK the buffers `inputs_io[0]` to `inputs_io[input_count - 1]` are moved and become NULL; on error they
 * are untouched. `params` is a map, nil or NULL, and is copied. `out` may be NULL when nobody waits for the task.
 */
offloop_status offloop_pool_submit_op(offloop_pool *pool,
                                      const char *op,
                                      offloop_buffer **inputs_io,
                                      size_t input_count,
                                      const offloop_value *params,
                                      const offloop_submit_options *options,
                                      offloop_task **out);

/**
 * Submits a batch in one crossing: all of it or, on error, nothing. `tasks_out` is NULL or has room for `call_count` handles. The
 * options hold for every call, with tags that count up; on_done is not for batches. A batch that is longer than max_queue is
 * OFFLOOP_ERR_FULL at once, also with OFFLOOP_ON_FULL_WAIT.
 */
offloop_status offloop_pool_submit_many(offloop_pool *pool,
                                        const offloop_call *calls,
                                        size_t call_count,
                                        const offloop_submit_options *options,
                                        offloop_task **tasks_out);

/**
 * Waits for the outcome and takes it, at most `timeout_ns` (below 0: for ever; 0: looks). Returns the task's own status: OFFLOOP_OK
 * with its result in `*out` (NULL when it has none), or its error, with the text in offloop_last_error. OFFLOOP_ERR_TIMEOUT
 * when it is not done in time; the task goes on. OFFLOOP_ERR_INVALID, without a limit, inside a function of the task's pool when no other
 * thread is left there to run the task. An outcome can be taken once. `out` may be NULL.
 *
 * A task that passed a limit of its own (timeout_ns, queue_timeout_ns) ends with OFFLOOP_ERR_TIMEOUT as well. A further call with 0
 * tells: OFFLOOP_ERR_INVALID when that was the outcome, which has been taken by then, else OFFLOOP_ERR_TIMEOUT again or the outcome.
 */
offloop_status offloop_task_wait(offloop_task *task,
                                 int64_t timeout_ns,
                                 offloop_value **out);

/**
 * Calls `on_done` once with the outcome, as a submit with on_done and without cq does; soon, if the task is done. It takes the outcome,
 * so that a later wait gets OFFLOOP_ERR_INVALID. `user_free(user)` is called after it. If this call fails, neither is called.
 */
offloop_status offloop_task_on_done(offloop_task *task,
                                    offloop_done_fn on_done,
                                    void *user,
                                    offloop_free_fn user_free);

/**
 * Cancels. A queued task never starts; a running one has its token set, and its outcome is OFFLOOP_ERR_CANCELLED at once, while its
 * thread stays with the function until that returns. Nothing happens to a task that is done. OFFLOOP_OK in all cases.
 */
offloop_status offloop_task_cancel(offloop_task *task);

/**
 * Frees the handle; the task goes on. NULL is allowed.
 */
void offloop_task_free(offloop_task *task);

/**
 * Makes a process pool. No process and no thread starts before the first call. OFFLOOP_ERR_INVALID names the option, its value and its
 * limits; OFFLOOP_ERR_OS when there is no fd or memory for the pool.
 */
offloop_status offloop_process_pool_new(const offloop_process_pool_options *options,
                                        offloop_process_pool **out);

/**
 * Calls a function of the workers by its name. `args_io`: an array of its arguments, which is moved; NULL (not a pointer to NULL): none.
 * Arguments and result are written as messages (docs/values.md), so buffers are copied and become bytes. `out` may be NULL when nobody
 * waits for the task.
 *
 * The outcome comes as that of offloop_pool_submit: by offloop_task_wait, cq or on_done, progress by cq. A function's own error is
 * OFFLOOP_ERR_TASK_FAILED with its class and message as text (the status that the function returned, where it is one of offloop's); cq and
 * on_done give the whole of it. OFFLOOP_ERR_NOT_FOUND, with the names that there are, for an unknown one. OFFLOOP_ERR_WORKER_LOST when the
 * process ended before the call did, with its exit_code or signal in the text; OFFLOOP_ERR_START_FAILED and OFFLOOP_ERR_DEGRADED when no
 * worker comes up. A call that passes timeout_ns, or is cancelled while it runs, has its outcome at once; a worker whose function has not
 * returned cancel_grace_ns later is ended.
 *
 * The call itself fails with OFFLOOP_ERR_FULL when the queue is full, and, also with OFFLOOP_ON_FULL_WAIT, when the pool's memory for
 * long arguments is in use; with OFFLOOP_ERR_TOO_LARGE for arguments that are longer than that. Then nothing was taken.
 */
offloop_status offloop_process_pool_call(offloop_process_pool *pool,
                                         const char *name,
                                         offloop_value **args_io,
                                         const offloop_submit_options *options,
                                         offloop_task **out);

/**
 * As offloop_process_pool_call, with arguments by name, which functions in Python take: a map of texts, or nil, moved with `args_io`. NULL (not a
 * pointer to NULL): none. A function in another language fails with OFFLOOP_ERR_INVALID or OFFLOOP_ERR_UNSUPPORTED for them.
 */
offloop_status offloop_process_pool_call_named(offloop_process_pool *pool,
                                               const char *name,
                                               offloop_value **args_io,
                                               offloop_value **named_io,
                                               const offloop_submit_options *options,
                                               offloop_task **out);

/**
 * Changes the bounds of the number of workers; below 0 leaves one as it is. A worker that is one too many finishes what it has begun.
 */
offloop_status offloop_process_pool_resize(offloop_process_pool *pool,
                                           int64_t min_workers,
                                           int64_t max_workers);

/**
 * Closes the pool, waits until every accepted call has its outcome, at most `grace_ns` (below 0: for ever), then cancels the rest, and ends
 * the processes: none is left when it returns, but one in an uninterruptible call of the kernel. Later calls get OFFLOOP_ERR_CLOSED.
 */
offloop_status offloop_process_pool_shutdown(offloop_process_pool *pool,
                                             int64_t grace_ns);

/**
 * Cancels every call that has no outcome yet, refuses new ones, and kills the processes, without waiting for their end.
 */
offloop_status offloop_process_pool_terminate(offloop_process_pool *pool);

/**
 * Reads counters and times, as offloop_pool_stats does; a worker is a process here.
 */
offloop_status offloop_process_pool_stats(offloop_process_pool *pool, offloop_stats *stats_io);

/**
 * Frees the handle and closes the pool without waiting: accepted calls still run to their end, then the processes end. NULL is allowed.
 */
void offloop_process_pool_free(offloop_process_pool *pool);

/**
 * Makes this process the worker of the process pool that has started it, and runs the calls that come, one after the other on this
 * thread, until the pool lets it go: then OFFLOOP_OK, and main is to return. OFFLOOP_ERR_UNSUPPORTED, at once, when no pool has started this
 * process, so that a program can be both. `functions` are what callers may name, `function_count` of them; they live until this returns.
 *
 * A function has its arguments as offloop_ctx_params (an array), and no inputs. What it sets and returns is what the caller gets.
 * Progress beyond 2,032 bytes is not told. Signals are the program's own business here, and the thread is the caller's.
 *
 * OFFLOOP_ERR_INVALID and OFFLOOP_ERR_EXISTS for a table that is none: the pool's callers get the text. OFFLOOP_ERR_IN_USE at a second call.
 */
offloop_status offloop_worker_main(const offloop_function *functions,
                                   size_t function_count);

/**
 * Gives what the pool that has started this process was made with as its context: a value of the caller's, or NULL when there is none. It may be
 * asked before offloop_worker_main, on the thread of main, to load what the functions need, and inside of them. OFFLOOP_ERR_UNSUPPORTED when no pool has started this
 * process, or its context is in another language's own form.
 */
offloop_status offloop_worker_context(offloop_value **out);

/**
 * Calls a function that gives values while it runs (offloop_ctx_give, a generator in Node.js or Python): offloop_stream_next takes
 * them. Otherwise as offloop_process_pool_call; OFFLOOP_ERR_INVALID for options with cq or on_done.
 */
offloop_status offloop_process_pool_stream(offloop_process_pool *pool,
                                           const char *name,
                                           offloop_value **args_io,
                                           const offloop_submit_options *options,
                                           offloop_stream **out);

/**
 * Waits for the next value of a stream and takes it, at most `timeout_ns` (below 0: for ever; 0: looks). NULL in `*out` at the end. When
 * the call ends with an error, the next call has it, after the values that came before it, and then NULL. OFFLOOP_ERR_TIMEOUT when there
 * is no value in time: the next call waits for the same one.
 */
offloop_status offloop_stream_next(offloop_stream *stream,
                                   int64_t timeout_ns,
                                   offloop_value **out);

/**
 * Frees the handle. A call that has not ended is cancelled, and a wait for its next value with it. NULL is allowed.
 */
void offloop_stream_free(offloop_stream *stream);

/**
 * Makes a cluster. Nothing is bound and no process starts before offloop_cluster_start. OFFLOOP_ERR_INVALID names the option, its value and its limits.
 */
offloop_status offloop_cluster_new(const offloop_cluster_options *options,
                                   offloop_cluster **out);

/**
 * Binds the sockets, starts the workers, and waits until all are ready, at most `timeout_ns` (below 0: for ever). Called again, it waits only. OFFLOOP_ERR_OS with the
 * address for a socket that cannot be bound: then the handle is only good to be freed. OFFLOOP_ERR_START_FAILED with the worker's own words when none comes up, OFFLOOP_ERR_DEGRADED,
 * OFFLOOP_ERR_TIMEOUT: the cluster goes on trying until offloop_cluster_stop.
 */
offloop_status offloop_cluster_start(offloop_cluster *cluster,
                                     int64_t timeout_ns);

/**
 * Replaces all workers by a new generation, one after the other, and waits for the end of it, at most `timeout_ns` (below 0: for ever). `command`: what the new ones run, with
 * the environment of before; NULL: the same. The first new worker is tried before any old one is asked to finish: if it fails, that is OFFLOOP_ERR_START_FAILED with its
 * own words, and nothing has changed. OFFLOOP_ERR_IN_USE while a reload is under way, OFFLOOP_ERR_TIMEOUT while it goes on. `report_io` may be NULL.
 */
offloop_status offloop_cluster_reload(offloop_cluster *cluster,
                                      const char *const *command,
                                      int64_t timeout_ns,
                                      offloop_reload_report *report_io);

/**
 * So many workers from now on, 1 to 1024; offloop_cluster_start waits for them. Who is one too many finishes what it has.
 */
offloop_status offloop_cluster_scale(offloop_cluster *cluster,
                                     int64_t workers);

/**
 * Ends the worker that offloop_cluster_send means by `slot` with SIGKILL; another takes its place. OFFLOOP_ERR_NOT_FOUND for a slot without a worker.
 */
offloop_status offloop_cluster_kill(offloop_cluster *cluster,
                                    uint32_t slot);

/**
 * Ends all workers, which have `grace_ns` to finish what they have (0: none, they are killed; below 0: drain_timeout's default, 30 s), and waits until no
 * process is left. Later calls get OFFLOOP_ERR_CLOSED.
 */
offloop_status offloop_cluster_stop(offloop_cluster *cluster,
                                    int64_t grace_ns);

/**
 * Sends a value, whose buffers move, and fds, which are duplicated, to the worker of `slot`: the ready one that was started last, else one that starts, else one that finishes. Waits
 * for room at most `timeout_ns` (0: not at all; below 0: for ever). OFFLOOP_ERR_NOT_FOUND for a slot without a worker; OFFLOOP_ERR_FULL or OFFLOOP_ERR_TIMEOUT when the worker has not received the
 * 64 KiB that were sent before; the errors of offloop_channel_send. Each names the slot.
 */
offloop_status offloop_cluster_send(offloop_cluster *cluster,
                                    uint32_t slot,
                                    offloop_value **value_io,
                                    const int32_t *fds,
                                    size_t fd_count,
                                    int64_t timeout_ns);

/**
 * Sends a copy of a value, and fds, to every worker that lives; the value is moved if the call succeeds. Does not wait: `*missed_count` is how many did not get it, because they have
 * not received what was sent before or are about to end; their slots are in `missed`, as far as it has `missed_room`. The others did. OFFLOOP_ERR_INVALID for a value with a buffer, which
 * moves to one worker only. `missed` may be NULL with no room, `missed_count` may be NULL.
 */
offloop_status offloop_cluster_broadcast(offloop_cluster *cluster,
                                         offloop_value **value_io,
                                         const int32_t *fds,
                                         size_t fd_count,
                                         uint32_t *missed,
                                         size_t missed_room,
                                         size_t *missed_count);

/**
 * The channel to the worker that offloop_cluster_send means by `slot`, as a handle of the caller's to free, which ends nothing: for requests (offloop_channel_request), and for who
 * receives without on_message. It ends with that worker, after the last message that it has sent. OFFLOOP_ERR_NOT_FOUND for a slot without a worker.
 */
offloop_status offloop_cluster_channel(offloop_cluster *cluster,
                                       uint32_t slot,
                                       offloop_channel **out);

/**
 * Writes where the socket `index` listens, as a NUL-terminated text, into `text`, which has room for `len` bytes: those of the option first, then those that workers have asked
 * for. OFFLOOP_ERR_NOT_FOUND behind the last, OFFLOOP_ERR_TOO_LARGE where there is no room.
 */
offloop_status offloop_cluster_address(offloop_cluster *cluster,
                                       size_t index,
                                       char *text,
                                       size_t len);

/**
 * Writes where the option metrics is to be had, as offloop_cluster_address does. OFFLOOP_ERR_NOT_FOUND without that option.
 */
offloop_status offloop_cluster_metrics_address(offloop_cluster *cluster,
                                               char *text,
                                               size_t len);

/**
 * Reads counts.
 */
offloop_status offloop_cluster_stats(offloop_cluster *cluster, offloop_cluster_counts *counts_io);

/**
 * Reads what the worker does that offloop_cluster_send means by `slot`. OFFLOOP_ERR_NOT_FOUND for a slot without a worker.
 */
offloop_status offloop_cluster_worker_load(offloop_cluster *cluster,
                                           uint32_t slot,
                                           offloop_cluster_load *load_io);

/**
 * Frees the handle; workers that still run are killed. NULL is allowed.
 */
void offloop_cluster_free(offloop_cluster *cluster);

/**
 * This worker's place in its cluster, from 0 on; that of a spare is 1,024 or higher until it takes a worker's place. OFFLOOP_ERR_UNSUPPORTED when no cluster has started this process, so that a program can be both. The first
 * call of any offloop_worker_ function of a cluster starts a thread that shows the cluster that this process lives; call it on the first thread.
 */
offloop_status offloop_worker_slot(uint32_t *out);

/**
 * The (re)load that this worker belongs to, from 1 on. OFFLOOP_ERR_UNSUPPORTED as for offloop_worker_slot.
 */
offloop_status offloop_worker_generation(uint32_t *out);

/**
 * How many listening sockets the cluster's option listen has; 0 also where no cluster has started this process.
 */
size_t offloop_worker_fd_count(void);

/**
 * The listening socket `index` of the cluster's option listen, -1 where there is none. Non-blocking, close-on-exec, and this process's own: closing it keeps no other worker
 * from it. With a balance by which the cluster accepts it is no socket that listens, but what connections come over, from the first call on: poll it for reading, and take
 * them by offloop_worker_accept, which goes with either.
 */
int offloop_worker_fd(size_t index);

/**
 * An fd that is readable from when this worker takes connections, and for good: that of a spare from when it takes a worker's place, that of any other from the start. Poll it, do not
 * read or close it; a program that polls listeners itself begins then. -1 where no cluster has started this process.
 */
int offloop_worker_active_fd(void);

/**
 * Takes a connection that waits at `listener`, an fd of offloop_worker_fd or offloop_worker_listen, at most after `timeout_ns` (0: one that is there; below 0: for ever). It is the
 * caller's to close, non-blocking and close-on-exec. OFFLOOP_ERR_TIMEOUT when none came, and while this worker is a spare. OFFLOOP_ERR_OS with EMFILE when this process has no room for it: it waits, or another worker gets
 * it. OFFLOOP_ERR_PEER_DIED when the cluster is gone. With balance "least-connections" call offloop_worker_closed for each that has ended.
 */
offloop_status offloop_worker_accept(int listener,
                                     int64_t timeout_ns,
                                     int *out);

/**
 * Says that a connection of offloop_worker_accept has ended, for the balance "least-connections", which counts those that have not. Does nothing with any other.
 */
offloop_status offloop_worker_closed(void);

/**
 * A socket that listens at `address` ("PORT", "HOST:PORT", "unix:PATH"), which all workers that ask for it share; the first that asks has it bound. The caller's to close; with a
 * balance by which the cluster accepts, shut it down before, and take connections by offloop_worker_accept.
 * OFFLOOP_ERR_OS with what the bind failed with, OFFLOOP_ERR_INVALID for an address that is none, OFFLOOP_ERR_PEER_DIED when the cluster is gone.
 */
offloop_status offloop_worker_listen(const char *address,
                                     int *out);

/**
 * Says that this worker takes connections. It is ready with this and the first offloop_worker_beat.
 */
offloop_status offloop_worker_ready(void);

/**
 * Shows that the event loop turns: call it from a timer of the loop that does the work, as often as the cluster's beat_ns says, and from no other thread. By how much it comes later
 * than that is the loop's delay (offloop_cluster_worker_load).
 */
offloop_status offloop_worker_beat(void);

/**
 * Counts requests that this worker has served, for the cluster's max_requests. Any thread may.
 */
offloop_status offloop_worker_served(uint64_t requests);

/**
 * An fd that is readable from when this worker is to accept nothing more and to finish what it has, and for good: poll it, do not read or close it. -1 where no cluster has
 * started this process.
 */
int offloop_worker_drain_fd(void);

/**
 * Calls `on_drain` once, on a thread of the library, when this worker is to finish what it has. `user_free` is called with `user` afterwards, or never if the call failed.
 */
offloop_status offloop_worker_on_drain(void (*on_drain)(void *user),
                                       void *user,
                                       void (*user_free)(void *user));

/**
 * The channel to the process of the cluster, as a handle of the caller's to free, which does not end it: for requests (offloop_channel_request), and for who receives by a loop of its
 * own (offloop_channel_fd). OFFLOOP_ERR_UNSUPPORTED where no cluster has started this process. When that of the cluster is gone it ends with OFFLOOP_ERR_PEER_DIED.
 */
offloop_status offloop_worker_channel(offloop_channel **out);

/**
 * Sends a value, whose buffers move, and fds, which are duplicated, to the process of the cluster. Waits for room at most `timeout_ns` (0: not at all; below 0: for ever).
 * OFFLOOP_ERR_FULL or OFFLOOP_ERR_TIMEOUT when it has not received what was sent before; the errors of offloop_channel_send.
 */
offloop_status offloop_worker_send(offloop_value **value_io,
                                   const int32_t *fds,
                                   size_t fd_count,
                                   int64_t timeout_ns);

/**
 * Calls `on_message` with each message and request of the cluster, one at a time, on a thread of the library, until the channel ends; then `user_free` with `user`, or never if the
 * call failed. OFFLOOP_ERR_IN_USE the second time.
 */
offloop_status offloop_worker_on_message(offloop_worker_message_fn on_message,
                                         void *user,
                                         void (*user_free)(void *user));

/**
 * Says that everything is finished: the process is to end now.
 */
offloop_status offloop_worker_drained(void);

/**
 * Leaves the reason of a failure for the cluster, at most 3,072 bytes; the process is to end afterwards.
 */
offloop_status offloop_worker_fail(const char *text);

/**
 * The counter of this name, 1 to 128 bytes: a new one at 0 the first time. With `cluster` that which its workers have by this name, until the cluster ends; with NULL that of the cluster whose
 * worker this process is, else one of this process alone. Ask once: a worker waits for its cluster's answer. OFFLOOP_ERR_CLOSED for a cluster that was not started, OFFLOOP_ERR_INVALID for a
 * name that is none, and with more than 256 names.
 */
offloop_status offloop_counter_new(offloop_cluster *cluster,
                                   const char *name,
                                   offloop_counter **out);

/**
 * Adds `n`, which may be negative; what it is then goes to `value`, which may be NULL. It wraps at 64 bits.
 */
offloop_status offloop_counter_add(offloop_counter *counter, int64_t n, int64_t *value);

/**
 * Makes it `n`; what it was goes to `before`, which may be NULL.
 */
offloop_status offloop_counter_set(offloop_counter *counter, int64_t n, int64_t *before);

/**
 * Frees the handle; the counter stays. NULL is allowed.
 */
void offloop_counter_free(offloop_counter *counter);

/**
 * The rate limiter of this name, as offloop_counter_new: token buckets, one per key, which are full at first. OFFLOOP_ERR_INVALID for a limit that is none, and for a name that stands for
 * another limit.
 */
offloop_status offloop_limiter_new(offloop_cluster *cluster,
                                   const char *name,
                                   const offloop_limit *limit,
                                   offloop_limiter **out);

/**
 * Takes `cost` tokens from the bucket of a key of `len` bytes, all or none; 0 looks only. `taken_io` says whether they were there. OFFLOOP_ERR_INVALID for a cost above the burst.
 */
offloop_status offloop_limiter_take(offloop_limiter *limiter,
                                    const void *key,
                                    size_t len,
                                    uint32_t cost,
                                    offloop_taken *taken_io);

/**
 * Frees the handle; the limiter stays. NULL is allowed.
 */
void offloop_limiter_free(offloop_limiter *limiter);

/**
 * Makes a ring in shared memory that is reserved in full: a bounded queue of records between threads and processes, which survives
 * the death of either side. `options` may be NULL: all defaults.
 */
offloop_status offloop_ring_create(const offloop_ring_options *options,
                                   offloop_ring **out);

/**
 * Attaches to a ring that another process made, by what its offloop_ring_fds gave. The fds are duplicated and stay the caller's.
 * OFFLOOP_ERR_INVALID when they are not a ring's, OFFLOOP_ERR_CORRUPT and OFFLOOP_ERR_VERSION when the memory is not a ring of this version.
 */
offloop_status offloop_ring_attach(const int32_t *fds,
                                   size_t count,
                                   offloop_ring **out);

/**
 * Attaches to a ring that was made with a name. OFFLOOP_ERR_NOT_FOUND without one; OFFLOOP_ERR_INVALID when the file is another user's, open
 * to others, or not a plain file; OFFLOOP_ERR_CORRUPT and OFFLOOP_ERR_VERSION when it is not a ring of this version; OFFLOOP_ERR_IN_USE
 * when another process has been removing it for a second (it was stopped meanwhile).
 */
offloop_status offloop_ring_attach_path(const char *name,
                                        offloop_ring **out);

/**
 * Takes a ring's name away; who is attached stays so. OFFLOOP_ERR_UNSUPPORTED for a ring without a name.
 */
offloop_status offloop_ring_remove(offloop_ring *ring);

/**
 * Looks at a named ring without attaching to it, and only reads: a map of kind, capacity, slot_size, max_participants, on_full,
 * creator_pid, created_unix_ns, closed, poisoned, returned, participants (maps of seat, role, pid, alive, asleep, in_flight) and lanes
 * (maps of tail, pushed, head, popped: bytes and records, which wrap at 2^32; used, records: what lies between). The caller frees it.
 */
offloop_status offloop_ring_inspect(const char *name,
                                    offloop_value **out);

/**
 * Gives what another process needs to attach, to be inherited or sent by SCM_RIGHTS: the memory, then one doorbell per participant.
 * `*count` is how many there are; at most `max` are written, so ask with 0 first. They are the ring's: valid while it or one
 * of its producers and consumers is.
 */
offloop_status offloop_ring_fds(offloop_ring *ring,
                                int32_t *fds,
                                size_t max,
                                size_t *count);

/**
 * Tells kind, sizes and whether the ring is closed. The caller sets `state_io->struct_size`.
 */
offloop_status offloop_ring_info(offloop_ring *ring, offloop_ring_state *state_io);

/**
 * Ends the ring for everybody: nothing more is pushed, consumers get what is there, and OFFLOOP_ERR_CLOSED after it. Wakes all who wait.
 */
offloop_status offloop_ring_close(offloop_ring *ring);

/**
 * Frees the handle; the ring stays open, and its producers and consumers go on. NULL is allowed.
 */
void offloop_ring_free(offloop_ring *ring);

/**
 * Makes a producer, for one thread at a time. OFFLOOP_ERR_IN_USE while others take every place of one; a dead process takes none.
 * `options` may be NULL: all defaults.
 */
offloop_status offloop_producer_new(offloop_ring *ring,
                                    const offloop_producer_options *options,
                                    offloop_producer **out);

/**
 * Pushes a copy of `len` bytes; waits for room at most `timeout_ns` (below 0: for ever), unless the policy is "reject", which gives
 * OFFLOOP_ERR_FULL. OFFLOOP_ERR_PEER_DIED when the ring is full and its consumer dead.
 */
offloop_status offloop_producer_push(offloop_producer *producer,
                                     const void *data,
                                     size_t len,
                                     int64_t timeout_ns);

/**
 * Pushes a copy of `len` bytes, or nothing: OFFLOOP_ERR_FULL while there is no room.
 */
offloop_status offloop_producer_try_push(offloop_producer *producer, const void *data, size_t len);

/**
 * Pushes copies of at most `count` records in one call: waits for room for the first like offloop_producer_push, then pushes as many
 * more as fit. `*pushed` is how many, at least 1; what stops a later one is told by the call that begins with it.
 */
offloop_status offloop_producer_push_many(offloop_producer *producer,
                                          const offloop_record *records,
                                          size_t count,
                                          int64_t timeout_ns,
                                          size_t *pushed);

/**
 * Claims room for `len` bytes, to be written in place: `*data` is valid until offloop_producer_commit or _abort, and what is there are
 * old bytes of the ring. Waits like offloop_producer_push. A producer has one claim at a time: OFFLOOP_ERR_IN_USE.
 */
offloop_status offloop_producer_claim(offloop_producer *producer,
                                      size_t len,
                                      int64_t timeout_ns,
                                      void **data);

/**
 * Claims room as offloop_producer_claim does, without waiting: OFFLOOP_ERR_FULL while there is none.
 */
offloop_status offloop_producer_try_claim(offloop_producer *producer, size_t len, void **data);

/**
 * Makes the first `len` bytes of the claim a record. OFFLOOP_ERR_INVALID without a claim, or when `len` is more than was claimed,
 * and then it stays open. OFFLOOP_ERR_CLOSED when the ring was closed meanwhile: the record is published for a consumer that is still
 * draining, which may have ended without it.
 */
offloop_status offloop_producer_commit(offloop_producer *producer,
                                       size_t len);

/**
 * Gives the claim up, if there is one: no record was made.
 */
offloop_status offloop_producer_abort(offloop_producer *producer);

/**
 * Publishes what was committed at once, and wakes the consumer if it sleeps; only the option `batch` holds records back.
 * OFFLOOP_ERR_CLOSED when the ring was closed meanwhile, as from offloop_producer_commit.
 */
offloop_status offloop_producer_flush(offloop_producer *producer);

/**
 * Gives an fd to poll for reading, level-triggered: readable when a full ring may have room again. A call that says OFFLOOP_ERR_FULL
 * has armed it. It is the producer's: never read it, never close it.
 */
offloop_status offloop_producer_fd(offloop_producer *producer,
                                   int32_t *out);

/**
 * Frees a producer: publishes what was committed, gives an open claim up and leaves its place to a successor. NULL is allowed.
 */
void offloop_producer_free(offloop_producer *producer);

/**
 * Makes a consumer, for one thread at a time. It goes on where its predecessor let go: what a dead one may have seen comes again,
 * marked. OFFLOOP_ERR_IN_USE while others take every place of one; OFFLOOP_ERR_UNSUPPORTED for `ack` "manual" where the ring is not "mpmc".
 * `options` may be NULL.
 */
offloop_status offloop_consumer_new(offloop_ring *ring,
                                    const offloop_consumer_options *options,
                                    offloop_consumer **out);

/**
 * Takes the oldest record; waits for one at most `timeout_ns` (below 0: for ever). It stays in the ring, where `record` points, until
 * the next call with this consumer (or offloop_consumer_release), which lets go of it; a successor of a consumer that dies before that gets it
 * again, marked. With `ack` "manual" it stays, and comes again, until it is acknowledged; a consumer has 128 such records at most, and
 * then waits. When the ring is drained: OFFLOOP_ERR_CLOSED, OFFLOOP_ERR_PEER_DIED. An "mpmc" ring is drained when no other consumer
 * has a record that could come back; one that has to acknowledge some itself is not kept waiting for others.
 */
offloop_status offloop_consumer_pop(offloop_consumer *consumer,
                                    int64_t timeout_ns,
                                    offloop_record *record);

/**
 * Takes the oldest record as offloop_consumer_pop does, without waiting: OFFLOOP_ERR_EMPTY while there is none.
 */
offloop_status offloop_consumer_try_pop(offloop_consumer *consumer, offloop_record *record);

/**
 * Takes at most `max` records in one call, without waiting: `*count` is how many, at least 1, else OFFLOOP_ERR_EMPTY. All of them stay
 * where they are until the next call with this consumer, and no other consumer gets one of them.
 */
offloop_status offloop_consumer_read(offloop_consumer *consumer,
                                     offloop_record *records,
                                     size_t max,
                                     size_t *count);

/**
 * Waits until there is a record to take, at most `timeout_ns` (below 0: for ever). Lets go of what was taken before.
 */
offloop_status offloop_consumer_wait(offloop_consumer *consumer, int64_t timeout_ns);

/**
 * Lets go of what was taken, before the next call does: the producer may have the room again.
 */
offloop_status offloop_consumer_release(offloop_consumer *consumer);

/**
 * Tells that a record is dealt with (`ack` "manual"): it is not delivered again. From any thread, also while another one waits with this
 * consumer. OFFLOOP_ERR_INVALID for a delivery that was acknowledged or given back before, or came from another consumer.
 */
offloop_status offloop_consumer_ack(offloop_consumer *consumer,
                                    uint64_t delivery);

/**
 * Gives a record back (`ack` "manual"): some consumer, this one perhaps, gets it at once, marked. Otherwise as offloop_consumer_ack.
 */
offloop_status offloop_consumer_nack(offloop_consumer *consumer,
                                     uint64_t delivery);

/**
 * Gives an fd to poll for reading, level-triggered: readable when there may be a record, the ring was closed, or a peer has died. A
 * call that says OFFLOOP_ERR_EMPTY (or CLOSED, PEER_DIED) has armed it: it looked once more after that, so nothing is missed. Until such a call the fd stays
 * readable. It is the consumer's: never read it, never close it.
 */
offloop_status offloop_consumer_fd(offloop_consumer *consumer,
                                   int32_t *out);

/**
 * Gives how many records of an overwriting ring were overwritten before this consumer came to them.
 */
offloop_status offloop_consumer_lost(offloop_consumer *consumer, uint64_t *count);

/**
 * Frees a consumer: lets go of what was taken and leaves its place to a successor. NULL is allowed.
 */
void offloop_consumer_free(offloop_consumer *consumer);

/**
 * Makes two ends that are connected. Either may be used here, or opened by a child process instead that inherits its socket
 * (offloop_channel_socket) and calls offloop_channel_attach. `options` may be NULL.
 */
offloop_status offloop_channel_pair(const offloop_channel_options *options,
                                    offloop_channel **out_a,
                                    offloop_channel **out_b);

/**
 * Opens the end of a pair whose socket this process inherited. The fd belongs to the channel from now on; after an error it is the
 * caller's still. OFFLOOP_ERR_INVALID when it is no such socket or another user's; OFFLOOP_ERR_CORRUPT, OFFLOOP_ERR_VERSION when nothing
 * of this version waits in it; OFFLOOP_ERR_PEER_DIED when the other end is gone; OFFLOOP_ERR_IN_USE when another end in this process has
 * that fd. `options` may be NULL.
 */
offloop_status offloop_channel_attach(int32_t fd,
                                      const offloop_channel_options *options,
                                      offloop_channel **out);

/**
 * Connects to who listens at `name`; waits at most `timeout_ns` (below 0: for ever) until the connection was accepted.
 * OFFLOOP_ERR_NOT_FOUND when nobody listens there. `options` may be NULL.
 */
offloop_status offloop_channel_connect(const char *name,
                                       int64_t timeout_ns,
                                       const offloop_channel_options *options,
                                       offloop_channel **out);

/**
 * Listens for channels at `name`: a path, or a name without a slash, which lies below $XDG_RUNTIME_DIR/offloop. Only this user's
 * processes can connect. OFFLOOP_ERR_EXISTS while somebody listens there. `options` may be NULL.
 */
offloop_status offloop_channel_listen(const char *name,
                                      const offloop_channel_options *options,
                                      offloop_listener **out);

/**
 * Takes the next channel; waits for one at most `timeout_ns` (0: not at all; below 0: for ever).
 */
offloop_status offloop_listener_accept(offloop_listener *listener, int64_t timeout_ns, offloop_channel **out);

/**
 * An fd that is readable while somebody waits to be accepted. It is the listener's.
 */
offloop_status offloop_listener_fd(offloop_listener *listener, int32_t *out);

/**
 * Ends the listener; channels that were accepted go on. NULL is allowed.
 */
void offloop_listener_free(offloop_listener *listener);

/**
 * The socket of an end that was not used yet, for a child process to inherit. It is the channel's: free this end once the child is
 * started. OFFLOOP_ERR_IN_USE once this end was used here.
 */
offloop_status offloop_channel_socket(offloop_channel *c,
                                      int32_t *out);

/**
 * Sends a value, whose buffers move, and fds, which are duplicated. Waits for room at most `timeout_ns` (below 0: for ever).
 * OFFLOOP_ERR_TIMEOUT; OFFLOOP_ERR_TOO_LARGE for a message or a number of fds over its limit; OFFLOOP_ERR_CLOSED and
 * OFFLOOP_ERR_PEER_DIED when the channel has ended.
 */
offloop_status offloop_channel_send(offloop_channel *c,
                                    offloop_value **value_io,
                                    const int32_t *fds,
                                    size_t fd_count,
                                    int64_t timeout_ns);

/**
 * As offloop_channel_send without waiting: OFFLOOP_ERR_FULL while there is no room. OFFLOOP_INCOMING_DRAINED tells when there is.
 */
offloop_status offloop_channel_try_send(offloop_channel *c,
                                        offloop_value **value_io,
                                        const int32_t *fds,
                                        size_t fd_count);

/**
 * Gives what came next; waits for it at most `timeout_ns` (below 0: for ever). After the last message OFFLOOP_ERR_CLOSED or
 * OFFLOOP_ERR_PEER_DIED, or OFFLOOP_ERR_CORRUPT when the other end broke the protocol. OFFLOOP_ERR_OS when fds or memory for a message are
 * missing: the next call finds it again.
 */
offloop_status offloop_channel_recv(offloop_channel *c,
                                    int64_t timeout_ns,
                                    offloop_incoming *out);

/**
 * As offloop_channel_recv without waiting: OFFLOOP_ERR_EMPTY when there is nothing now, which arms offloop_channel_fd.
 */
offloop_status offloop_channel_try_recv(offloop_channel *c, offloop_incoming *out);

/**
 * Sends a request and waits for its reply, at most `timeout_ns` in all (below 0: for ever). What comes meanwhile is kept for
 * offloop_channel_recv. OFFLOOP_ERR_TIMEOUT: a later reply is dropped. OFFLOOP_ERR_FULL when too many requests wait for a reply, or when
 * the reply lies behind more messages than are kept while no thread but this one has received any.
 */
offloop_status offloop_channel_request(offloop_channel *c,
                                       offloop_value **value_io,
                                       const int32_t *fds,
                                       size_t fd_count,
                                       int64_t timeout_ns,
                                       offloop_incoming *out);

/**
 * As offloop_channel_request for an event loop: returns at once, and the outcome comes as OFFLOOP_INCOMING_REPLY with `*id`. Where there is
 * no room it is queued. OFFLOOP_ERR_FULL when too much is queued or not answered.
 */
offloop_status offloop_channel_post_request(offloop_channel *c,
                                            offloop_value **value_io,
                                            const int32_t *fds,
                                            size_t fd_count,
                                            int64_t timeout_ns,
                                            uint64_t *id);

/**
 * Answers the request `id`; waits for room like offloop_channel_send. Where `failed` is not 0 the value is an error.
 */
offloop_status offloop_channel_reply(offloop_channel *c,
                                     uint64_t id,
                                     int32_t failed,
                                     offloop_value **value_io,
                                     const int32_t *fds,
                                     size_t fd_count,
                                     int64_t timeout_ns);

/**
 * An fd that is readable when offloop_channel_try_recv may have something to give. Level-triggered: a call that gives OFFLOOP_ERR_EMPTY has
 * armed it. It is the channel's.
 */
offloop_status offloop_channel_fd(offloop_channel *c,
                                  int32_t *out);

/**
 * Ends the channel for both ends: the other one gets what was sent, and OFFLOOP_ERR_CLOSED after it. Wakes all who wait here. What
 * offloop_channel_post_request queued is sent first, by offloop_channel_try_recv, which gives OFFLOOP_ERR_CLOSED when that is done;
 * offloop_channel_shutdown bounds it. Of an end of a pair that was never used only the socket is closed, for a child may have it; if none
 * has, the other end gets OFFLOOP_ERR_PEER_DIED.
 */
offloop_status offloop_channel_close(offloop_channel *c);

/**
 * Ends the channel as offloop_channel_close does, and waits at most `grace_ns` (0: not at all; below 0: for ever) until what was queued is
 * sent. What is not by then is dropped: an end that does not read keeps nobody.
 */
offloop_status offloop_channel_shutdown(offloop_channel *c,
                                        int64_t grace_ns);

/**
 * Closes the channel, unless another call uses it, and frees the handle. On an end that was never used only its socket is closed: a
 * child that inherited it goes on. NULL is allowed.
 */
void offloop_channel_free(offloop_channel *c);

/**
 * Gives the metrics of all pools of this process as a text value; per pool see offloop_pool_stats.
 */
offloop_status offloop_metrics(uint32_t format, offloop_value **out);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

/** All defaults. */
#define OFFLOOP_POOL_OPTIONS_INIT \
  { sizeof(offloop_pool_options), 0, 0, 0, 0, 0, 0, 0, NULL }
/** All defaults. */
#define OFFLOOP_SUBMIT_OPTIONS_INIT \
  { sizeof(offloop_submit_options), 0, 0, 0, 0, 0, NULL, NULL, 0, NULL, NULL, NULL, 0, 0 }
/** All defaults. */
#define OFFLOOP_CODEC_OPTIONS_INIT \
  { sizeof(offloop_codec_options), 0, 0, 0 }
/** All defaults. */
#define OFFLOOP_RING_OPTIONS_INIT \
  { sizeof(offloop_ring_options), NULL, NULL, 0, 0, NULL, 0 }
/** All defaults. */
#define OFFLOOP_PRODUCER_OPTIONS_INIT \
  { sizeof(offloop_producer_options), 0, 0, NULL }
/** All defaults. */
#define OFFLOOP_CONSUMER_OPTIONS_INIT \
  { sizeof(offloop_consumer_options), NULL }
/** All defaults. */
#define OFFLOOP_CHANNEL_OPTIONS_INIT \
  { sizeof(offloop_channel_options), 0, 0, 0 }
/** All defaults. */
#define OFFLOOP_PROCESS_POOL_OPTIONS_INIT \
  { sizeof(offloop_process_pool_options), NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, 0, NULL }
/** All defaults. */
#define OFFLOOP_CLUSTER_OPTIONS_INIT \
  { sizeof(offloop_cluster_options), NULL, NULL, NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL, 0, NULL, NULL, 0, NULL, NULL, 0, 0, NULL, NULL, 0, 0, 0, NULL, NULL, 0 }
/** All defaults. */
#define OFFLOOP_CLUSTER_COUNTS_INIT \
  { sizeof(offloop_cluster_counts), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
/** All defaults. */
#define OFFLOOP_CLUSTER_LOAD_INIT \
  { sizeof(offloop_cluster_load), 0, 0, 0, 0 }
/** All defaults. */
#define OFFLOOP_RELOAD_REPORT_INIT \
  { sizeof(offloop_reload_report), 0, 0, 0, 0 }
/** All defaults. */
#define OFFLOOP_LIMIT_INIT \
  { sizeof(offloop_limit), 0, 0, 0 }
/** All defaults. */
#define OFFLOOP_TAKEN_INIT \
  { sizeof(offloop_taken), 0, 0, 0 }
/** All defaults. */
#define OFFLOOP_OP_DEF_INIT \
  { sizeof(offloop_op_def), OFFLOOP_ABI_VERSION, 0, NULL, NULL, NULL, NULL }

#if defined(__GNUC__)
#define OFFLOOP_PLUGIN_EXPORT __attribute__((visibility("default")))
#else
#define OFFLOOP_PLUGIN_EXPORT
#endif

/** The first line of offloop_plugin: refuses a host that is older than this header. */
#define OFFLOOP_PLUGIN_CHECK(host) \
  do { \
    if ((host)->abi_version < OFFLOOP_ABI_VERSION) \
      return OFFLOOP_ERR_VERSION; \
  } while (0)

#ifdef __cplusplus
extern "C" {
#endif

/**
 * What a plugin exports: called once per offloop_pool_load, with the table of functions that it may use. It registers its ops
 * (host->register_op) and returns OFFLOOP_OK, or an error, and then none of its ops is added. The table lives as long as the
 * process. A plugin is compiled with `cc -shared -fPIC` and links to nothing.
 */
OFFLOOP_PLUGIN_EXPORT int32_t offloop_plugin(const offloop_host *host, offloop_registry *registry);

#ifdef __cplusplus
}
#endif

#endif

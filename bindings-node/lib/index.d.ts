import { EventEmitter } from 'node:events'
import type { Readable } from 'node:stream'
import type { ResourceLimits, TransferListItem, WorkerOptions } from 'node:worker_threads'
import type { Encoded, OpParams, OpResults, Ops } from './ops.js'

export type * from './ops.js'

/**
 * Bytes that an op takes. A TransferBuffer is moved (detached); everything else is copied: up to 1 MiB before the call
 * returns, more of it 1 MiB per turn of the event loop. Do not write a larger input until its promise has settled.
 */
export type Bytes = Uint8Array | ArrayBuffer | SharedArrayBuffer | DataView | TransferBuffer

/** How one task is run. Durations are milliseconds; `Infinity` is no limit, 30 days are the longest one, and 0 is no time at all: `ERR_OFFLOOP_TIMEOUT` at once. */
export interface RunOptions {
  /** Cancels: a queued task at once, a running one when its op looks. Rejects with `name: 'AbortError'`. */
  signal?: AbortSignal | undefined
  /** Longest time from start to outcome. Default: none. */
  timeout?: number | undefined
  /** Longest wait from the call to start, with the copy of a large input. Default: none. */
  queueTimeout?: number | undefined
  /** −128 to 127, higher first. Default 0. */
  priority?: number | undefined
  /** Tasks with one key run on one worker, in order. */
  key?: string | undefined
  /** Re-runs after the loss of a worker. Native threads are never lost, so a ThreadPool has no use for it. */
  retries?: number | undefined
  /** What a running task says of how far it is. Only the latest value is kept until the loop reads it. */
  onProgress?: ((progress: unknown) => void) | undefined
}

/** What op `K` returns when it is given options `P`. */
export type OpResult<K extends keyof OpResults, P> = K extends unknown
  ? Encoded extends OpResults[K]
    ? EncodedAs<EncodingOf<P>>
    : OpResults[K]
  : never

/** The words that option `encoding` may have in `P`, and undefined where it may be absent. */
type EncodingOf<P> = P extends { encoding: infer E }
  ? E
  : P extends { encoding?: infer E }
    ? unknown extends E
      ? undefined
      : E | undefined
    : undefined

type EncodedAs<E> = E extends 'bytes' | undefined ? Uint8Array : string

/** `P` without names that op `K` has no option for. */
type Known<K extends keyof OpParams, P> = P & { [Name in Exclude<keyof P, keyof OpParams[K]>]: never }

/** An op that a plugin adds: a native op with options that it does not have is none. */
type OtherOp<Name extends string> = Name extends keyof OpResults ? never : Name

/** Times in milliseconds. */
export interface Histogram {
  readonly count: number
  readonly mean: number
  readonly p50: number
  readonly p90: number
  readonly p99: number
  readonly max: number
}

/** Counts and times of one pool since it was made. */
export interface PoolStats {
  /** Tasks that wait. */
  readonly queued: number
  /** Tasks that run and have no outcome yet. */
  readonly running: number
  /** Live workers. */
  readonly workers: number
  /** Functions that run on although their task has its outcome. */
  readonly overdue: number
  readonly submitted: number
  readonly completed: number
  readonly failed: number
  readonly timedOut: number
  readonly cancelled: number
  readonly lost: number
  /** Submits that were refused as full. */
  readonly rejected: number
  /** Runs that were lost with their worker and done again. */
  readonly retried: number
  /** Workers that were replaced because of `maxTasksPerWorker` or `maxWorkerAge`. */
  readonly recycled: number
  /** Share of `maxWorkers` that was busy, 0 to 1. */
  readonly utilization: number
  /** From submit to start. */
  readonly wait: Histogram
  /** From start to return. */
  readonly run: Histogram
}

/** What became of one task. Times are milliseconds. */
export interface TaskTrace {
  /** Counts up with the calls of this pool in this thread, from 1; calls that were refused leave gaps. */
  readonly id: number
  /** The pool's `name`. */
  readonly pool: string
  /** The op, the export, or what a function that is sent as its source is called. */
  readonly name: string
  /**
   * When it was submitted, since the Unix epoch, with a fraction: what the wall clock says at its end less the time that has passed on the monotonic
   * one, so `submitted + queueTime + runTime` is its end.
   */
  readonly submitted: number
  /** From submit to outcome without `runTime`: in the queue, with a worker that was busy, on its way, in runs that were lost. */
  readonly queueTime: number
  /** How long its function ran, as its worker has measured; 0 when it never did. Of a task that was stopped or lost: since it was given to a worker. */
  readonly runTime: number
  readonly outcome: 'completed' | 'failed' | 'timeout' | 'cancelled' | 'lost'
  /** The place of the worker that ran it, from 0; null when none did. */
  readonly worker: number | null
  /** What the call was rejected with, unless it is `completed`. */
  readonly error?: unknown
}

/**
 * Called once for each task after its outcome, on the thread that made the call and in its async context (`AsyncLocalStorage`). What it throws, or
 * rejects with, is a process warning with code `OFFLOOP_TRACE` and nothing else. A call that was refused is no task.
 */
export type TraceHook = (task: TaskTrace) => unknown

/** What every pool has. */
export interface PoolBase extends AsyncDisposable {
  readonly stats: PoolStats
  /** A view of the same pool with other defaults. */
  options(options: RunOptions): this
  /** Changes the limits. More workers start when work waits; surplus ones leave after what they hold. */
  resize(options: { minWorkers?: number | undefined; maxWorkers?: number | undefined }): void
  /** Refuses new tasks, lets what is queued run, and after `grace` ms (default: never) cancels the rest. A later call may shorten the grace. */
  close(options?: { grace?: number | undefined }): Promise<void>
}

/** How a ThreadPool is made; `RunOptions` among them become the defaults of its tasks. */
export interface ThreadPoolOptions extends RunOptions {
  /** Most threads, 1 to 1024. Default: usable cores (affinity and cgroup quota). */
  maxWorkers?: number | undefined
  /** Threads that stay when idle. Default 0. */
  minWorkers?: number | undefined
  /** How long a thread above `minWorkers` stays idle, in ms. Default 30 000. */
  idleTimeout?: number | undefined
  /** Most queued tasks. Default 65 536. */
  maxQueue?: number | undefined
  /** `reject` (default): `ERR_OFFLOOP_FULL`. `wait`: the promise waits. */
  onFull?: 'reject' | 'wait' | undefined
  /** Most replacement threads for tasks that ignore their deadline. Default: `maxWorkers`. */
  maxOverdue?: number | undefined
  /** Niceness of the threads, −20 to 19. Default 0. */
  nice?: number | undefined
  /** Name in metrics and of the threads. Default `pool`. */
  name?: string | undefined
  /** Told of each task. Default: none, which costs nothing. */
  trace?: TraceHook | undefined
}

/**
 * Native threads that run ops by name.
 *
 * Inputs that together have up to 1 MiB are copied before `run` returns. Larger ones are copied 1 MiB per turn of the event
 * loop: leave them alone until the promise has settled. Bytes overwritten meanwhile may be read as either; an input that is
 * detached or changes its length meanwhile fails the task (`ERR_OFFLOOP_DETACHED`, `ERR_OFFLOOP_INVALID`). A TransferBuffer
 * is moved instead of copied, at any size.
 */
export class ThreadPool implements PoolBase {
  constructor(options?: ThreadPoolOptions)
  /**
   * Runs an op. Rejects with an OffloopError; nothing is thrown. A task is submitted before `run` returns; while 64 and more are
   * in flight, small ones without options go together, up to 32 at a time and at the latest when the running callback ends.
   */
  run<K extends keyof OpResults, const P extends OpParams[K] | null | undefined = undefined>(op: K, input?: Bytes | Bytes[], params?: Known<K, P> | null, options?: RunOptions | null): Promise<OpResult<K, P>>
  run<Name extends string>(op: OtherOp<Name>, input?: Bytes | Bytes[], params?: object | null, options?: RunOptions | null): Promise<any>
  /**
   * Runs an op on each input: one crossing, one promise. The first error rejects it (with `index`) and cancels the rest.
   */
  runMany<K extends keyof OpResults, const P extends OpParams[K] | null | undefined = undefined>(op: K, inputs: (Bytes | Bytes[])[], params?: Known<K, P> | null, options?: RunOptions | null): Promise<OpResult<K, P>[]>
  runMany<Name extends string>(op: OtherOp<Name>, inputs: (Bytes | Bytes[])[], params?: object | null, options?: RunOptions | null): Promise<any[]>
  /** Loads a C plugin; returns the names of its ops. A plugin is native code: a faulty one takes the process down. */
  load(plugin: string): string[]
  options(options: RunOptions): this
  resize(options: { minWorkers?: number | undefined; maxWorkers?: number | undefined }): void
  readonly stats: PoolStats
  close(options?: { grace?: number | undefined }): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/** How one call of a WorkerPool is run. Durations are milliseconds; `Infinity` is no limit, 30 days are the longest one, and 0 is no time at all: `ERR_OFFLOOP_TIMEOUT` at once. */
export interface WorkerRunOptions {
  /** Cancels: a task that waits at once; one that runs sees it in `currentTask().signal`, and its thread is ended after `cancelGrace`. Rejects with `name: 'AbortError'`. */
  signal?: AbortSignal | undefined
  /** Longest time from start to outcome; then as with `signal`. Default: none. */
  timeout?: number | undefined
  /** Longest wait from the call to start. Default: none. */
  queueTimeout?: number | undefined
  /** −128 to 127, higher first; a task that waits gains one class per 100 ms. Default 0. */
  priority?: number | undefined
  /** Tasks with one key start on one worker, in order. */
  key?: string | undefined
  /**
   * How often a call runs again whose worker was lost; setting it says that a second run does no harm. Each run has all of `timeout`. Used up, it
   * rejects with `ERR_OFFLOOP_WORKER_LOST` and `poison: true`. With something to move (`transferList`, `move`) it is `ERR_OFFLOOP_INVALID`. Default 0.
   */
  retries?: number | undefined
  /** What a running task says by `currentTask().progress()`. Only the latest value is kept until the loop reads it. */
  onProgress?: ((progress: any) => void) | undefined
}

/**
 * Marks `value` to be moved, not copied, by the next call of a WorkerPool that has it among its arguments, or the result that has it: `list`
 * names what goes along (ArrayBuffers, MessagePorts, …), by default `value` itself, or the buffer of a view. It may lie anywhere inside. Between processes
 * ArrayBuffers are copied, and detached where they were.
 */
export function move<T extends object>(value: T, list?: readonly TransferListItem[]): T

/** What `run` of a WorkerPool calls. */
export interface WorkerTarget {
  /** The export to call; default: the default export. */
  name?: string | undefined
  /**
   * Another worker file, as the pool's is named: a worker loads it with the first call that names it, and runs its `init`, and its `teardown` at the end.
   * What it throws then is the error of the call. Not of a worker in another language (`ERR_OFFLOOP_UNSUPPORTED`).
   */
  filename?: string | URL | undefined
}

/** How `map` of a WorkerPool runs its calls. */
export interface WorkerMapOptions extends WorkerRunOptions {
  /** The export to call; default: the default export. */
  name?: string | undefined
  /** Most items that are taken from the iterable beyond the results that were taken. Default 256. */
  concurrency?: number | undefined
  /** Results in the order of the items (default), or as they come. */
  ordered?: boolean | undefined
}

/** How `stream` of a WorkerPool runs its call. */
export interface WorkerStreamOptions extends Omit<WorkerRunOptions, 'retries'> {
  /** The export to call; default: the default export. */
  name?: string | undefined
  /** Most values that are made before they are taken, from 1. Default 16. */
  window?: number | undefined
}

/** How a WorkerPool is made; `WorkerRunOptions` among them become the defaults of its calls. */
export interface WorkerPoolOptions extends WorkerRunOptions {
  /** Most workers, 1 to 1024. Default: usable cores (affinity and cgroup quota). */
  maxWorkers?: number | undefined
  /** Workers that stay when idle. Default 0. None starts before the first call. */
  minWorkers?: number | undefined
  /** How long a worker above `minWorkers` stays idle, in ms. Default 30 000. */
  idleTimeout?: number | undefined
  /** Tasks that one worker begins before another takes its place, from 1. The other starts up to 10 % earlier. Default: no limit. */
  maxTasksPerWorker?: number | undefined
  /** How long a worker lives before another takes its place, in ms above 0; up to 10 % less. It works until the other is ready. Default: no limit. */
  maxWorkerAge?: number | undefined
  /** Async functions that one worker runs at once, 1 to 4096. Default 1. */
  concurrency?: number | undefined
  /** Most queued tasks. Default 65 536. */
  maxQueue?: number | undefined
  /** `reject` (default): `ERR_OFFLOOP_FULL`. `wait`: the promise waits. */
  onFull?: 'reject' | 'wait' | undefined
  /** How long a task that nobody waits for may go on before its thread is ended, in ms. Default 1000. */
  cancelGrace?: number | undefined
  /** How long a worker may take to load its file and run its `init`, in ms from 1. Default 30 000. */
  readyTimeout?: number | undefined
  /** Given to `init` and `teardown` of the file, and in `currentTask()`; cloned once per worker. */
  context?: unknown
  /** Name in metrics. Default `pool`. */
  name?: string | undefined
  /** Told of each task. Default: none, which costs nothing. */
  trace?: TraceHook | undefined
  /** As of `worker_threads`. */
  workerData?: unknown
  argv?: unknown[] | undefined
  execArgv?: string[] | undefined
  env?: WorkerOptions['env'] | undefined
  resourceLimits?: ResourceLimits | undefined
  trackUnmanagedFds?: boolean | undefined
  /** Output of the threads does not go to that of this process, but to streams that `workerReady` has; it is dropped if nobody listens to that. Default false. */
  stdout?: boolean | undefined
  stderr?: boolean | undefined
}

/** The functions of a worker file `M` as they are called from outside. */
export type WorkerExports<M> = 0 extends 1 & M
  ? { readonly [name: string]: (...args: any[]) => Promise<any> }
  : {
      readonly [K in keyof M as M[K] extends (...args: any) => any ? K : never]: M[K] extends (...args: infer A) => infer R
        ? (...args: A) => Promise<Awaited<R>>
        : never
    }

export interface WorkerPoolEvents {
  /** The queue is full: a call was refused, or waits beyond `maxQueue`. Once until `drain`. */
  backpressure: []
  /** After `backpressure`: no more calls have no outcome than half of `maxQueue`. */
  drain: []
  /** `stdout` and `stderr` are there with the options of these names. */
  workerReady: [worker: { threadId: number; stdout?: Readable; stderr?: Readable }]
  workerExit: [worker: { threadId: number; exitCode: number }]
  /** An exception that nobody caught has ended a worker. */
  workerError: [error: unknown]
  /** Five workers in a row and more did not start; once until one does. */
  degraded: [why: { failures: number; error: unknown }]
}

/**
 * Functions of a JavaScript file on `worker_threads`. Values arrive as `structuredClone` gives them, Errors whole; a byte array brings an
 * ArrayBuffer of its own; a TransferBuffer in plain data moves. A worker keeps its event loop: timers run in an idle one, and functions may be async.
 */
export class WorkerPool<M = any> extends EventEmitter<WorkerPoolEvents> implements PoolBase {
  /** `filename` is a path, from the working directory, or a URL (`file:`, `data:`, `node:`); ESM or CommonJS. A file that is not there is `ERR_OFFLOOP_NOT_FOUND`. */
  constructor(filename: string | URL, options?: WorkerPoolOptions)
  /**
   * Calls the default export (`module.exports` of CommonJS), or the export `name`, with `task`. An element of `transferList` that cannot be transferred, or is
   * in it twice, is `ERR_OFFLOOP_UNSERIALIZABLE` with its place, and nothing moves.
   */
  run(
    task?: any,
    options?:
      | (WorkerRunOptions & WorkerTarget & { transferList?: readonly TransferListItem[] | undefined })
      | null,
  ): Promise<any>
  /** Calls the default export, or `name`, with each task. The first error rejects it (with `index`) and cancels the rest. */
  runMany(tasks: readonly any[], options?: (WorkerRunOptions & { name?: string | undefined }) | null): Promise<any[]>
  /**
   * Calls the default export, or `name`, with each item as results are taken. The first error ends it; that, and leaving the loop, cancels what is
   * under way and closes the iterator of `items`. It waits beyond a full queue instead of being refused.
   */
  map(items: Iterable<any> | AsyncIterable<any>, options?: WorkerMapOptions | null): AsyncGenerator<any, void, void>
  /**
   * Values of a generator, async or not, that the default export, or `name`, gives for `task`. It begins with the first value that is asked for; leaving the
   * loop runs the generator's `finally`. `timeout` counts from start to the end of the generator, with the time that the values wait.
   * `return()` while a `next()` is pending ends both at once and cancels the task, as a `signal` does; a generator that has not ended `cancelGrace` after
   * its loop was left is cancelled, too.
   */
  stream(task?: any, options?: WorkerStreamOptions | null): AsyncGenerator<any, void, void>
  /**
   * Calls the default export, or `name`, once on each worker that there is now, those that start among them; results in the order of their places.
   * No worker, no results; a closed pool is `ERR_OFFLOOP_CLOSED`. The first error rejects it, and the other calls go on; nothing can be moved, and there is no `key`.
   */
  broadcast(task?: any, options?: (WorkerRunOptions & { key?: undefined; name?: string | undefined }) | null): Promise<any[]>
  /**
   * Calls a function that is sent as its source, once per worker and source: what it uses it gets as arguments or imports by `await import()`; a
   * variable from outside is a ReferenceError over there. A method, a class, a bound or native function is `ERR_OFFLOOP_UNSERIALIZABLE`.
   */
  call<A extends any[], R>(fn: (...args: A) => R, ...args: A): Promise<Awaited<R>>
  /** The file's functions: `await pool.exports.resize(image, 200)`, typed by `WorkerPool<typeof import('./worker.js')>`. */
  readonly exports: WorkerExports<M>
  options(options: WorkerRunOptions): this
  resize(options: { minWorkers?: number | undefined; maxWorkers?: number | undefined }): void
  readonly stats: PoolStats
  /** As of every pool; resolves once the threads have ended, after the `teardown` of their file. */
  close(options?: { grace?: number | undefined }): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/** What runs in the processes of a ProcessPool: a worker file of JavaScript, one of Python, or a program that attaches to its pool itself. */
export type ProcessWorker = string | URL | { node: string | URL } | { python: string } | { command: readonly string[] }

/** How a ProcessPool is made; `WorkerRunOptions` among them become the defaults of its calls. */
export interface ProcessPoolOptions extends WorkerRunOptions {
  /** Most workers, 1 to 1024. Default: usable cores (affinity and cgroup quota). */
  maxWorkers?: number | undefined
  /** Workers that stay when idle. Default 0. None starts before the first call. */
  minWorkers?: number | undefined
  /** How long a worker above `minWorkers` stays idle, in ms. Default 30 000. */
  idleTimeout?: number | undefined
  /** Tasks that one worker begins before another takes its place, from 1. The other starts up to 10 % earlier. Default: no limit. */
  maxTasksPerWorker?: number | undefined
  /** How long a worker lives before another takes its place, in ms above 0; up to 10 % less. It works until the other is ready. Default: no limit. */
  maxWorkerAge?: number | undefined
  /** Memory of one process (its proportional set size, bytes) beyond which another takes its place; looked at each second. Default: no limit. */
  maxWorkerMemory?: number | undefined
  /** Async functions that one worker runs at once, 1 to 4096. Default 1. */
  concurrency?: number | undefined
  /** Most queued tasks. Default 65 536. */
  maxQueue?: number | undefined
  /** `reject` (default): `ERR_OFFLOOP_FULL`. `wait`: the promise waits. */
  onFull?: 'reject' | 'wait' | undefined
  /** How long a task that nobody waits for may go on before its process is ended, in ms. Default 1000. */
  cancelGrace?: number | undefined
  /** How long a worker may take to load its file and run its `init`, in ms from 1. Default 30 000. */
  readyTimeout?: number | undefined
  /** Given to `init` and `teardown` of the file, and in `currentTask()`. */
  context?: unknown
  /** Added to the niceness of the workers, −20 to 19. Default 0. */
  nice?: number | undefined
  /** Name in metrics and errors. Default `pool`. */
  name?: string | undefined
  /** Told of each task. Default: none, which costs nothing. */
  trace?: TraceHook | undefined
  /** `workerData` of `node:worker_threads` in a worker in JavaScript. */
  workerData?: unknown
  /** Arguments of the worker, after its file. */
  argv?: readonly string[] | undefined
  /** Flags of Node.js. Default: those of this process that are not about its program, its debugger or its tests. */
  execArgv?: readonly string[] | undefined
  /** The whole environment of the workers. Default: that of this process, when the pool is made. */
  env?: Readonly<Record<string, string | undefined>> | undefined
  /** The interpreter of `{ python }`, as path or name. Default: that of `VIRTUAL_ENV`, else the first `python3` of `PATH`. */
  python?: string | undefined
}

export interface ProcessPoolEvents {
  /** The queue is full: a call was refused, or waits beyond `maxQueue`. Once until `drain`. */
  backpressure: []
  /** After `backpressure`: no more calls have no outcome than half of `maxQueue`. */
  drain: []
  workerReady: [worker: { pid: number }]
  /** One of `exitCode` and `signal` is null, or both where the system cannot tell. */
  workerExit: [worker: { pid: number; exitCode: number | null; signal: string | null }]
  /** A worker that was ready has ended and nobody had asked it to; the message has its last words. */
  workerError: [error: OffloopError]
  /** Too many workers fail: only one is tried from time to time, and calls end with `ERR_OFFLOOP_DEGRADED`. */
  degraded: [why: { failures: number }]
}

/**
 * Runs functions in worker processes: a crash, a leak or a hang of one costs its own task and nothing else. No process starts before the first
 * call, and an idle pool does not keep this process alive. Values travel as in a WorkerPool; what cannot leave a process is
 * `ERR_OFFLOOP_UNSERIALIZABLE`.
 */
export class ProcessPool<M = any> extends EventEmitter<ProcessPoolEvents> implements PoolBase {
  /** `worker` is a file for Node.js, as of a WorkerPool, or says what else is started. What is not there is `ERR_OFFLOOP_NOT_FOUND`. */
  constructor(worker: ProcessWorker, options?: ProcessPoolOptions)
  /**
   * Calls the default export (`module.exports` of CommonJS), or the export `name`, with `task`. What is in `transferList`, or marked by `move`, is copied, and
   * detached here once the call was taken; anything but ArrayBuffers and TransferBuffers, or one twice, is `ERR_OFFLOOP_UNSERIALIZABLE`, and nothing is detached.
   */
  run(
    task?: any,
    options?:
      | (WorkerRunOptions & WorkerTarget & { transferList?: readonly (ArrayBuffer | TransferBuffer)[] | undefined })
      | null,
  ): Promise<any>
  /** Calls the default export, or `name`, with each task. The first error rejects it (with `index`) and cancels the rest. */
  runMany(tasks: readonly any[], options?: (WorkerRunOptions & { name?: string | undefined }) | null): Promise<any[]>
  /** As of a WorkerPool. */
  map(items: Iterable<any> | AsyncIterable<any>, options?: WorkerMapOptions | null): AsyncGenerator<any, void, void>
  /** As of a WorkerPool. A worker in another language makes some 64 values ahead, whatever `window` says. */
  stream(task?: any, options?: WorkerStreamOptions | null): AsyncGenerator<any, void, void>
  /** As of a WorkerPool: once in each process that there is now. */
  broadcast(task?: any, options?: (WorkerRunOptions & { key?: undefined; name?: string | undefined }) | null): Promise<any[]>
  /** As of a WorkerPool; the source goes with each call. For workers in other languages `ERR_OFFLOOP_UNSUPPORTED`. */
  call<A extends any[], R>(fn: (...args: A) => R, ...args: A): Promise<Awaited<R>>
  /**
   * A TransferBuffer of zeros in memory that this process and the workers share. It moves to a worker in JavaScript, and back with the result of that
   * call, without a copy; in any other way it is like any TransferBuffer. `ERR_OFFLOOP_TOO_LARGE` or `ERR_OFFLOOP_FULL` beyond the pool's memory (32 GiB).
   */
  alloc(byteLength: number): TransferBuffer
  /** The worker's functions: `await pool.exports.predict(features)`. */
  readonly exports: WorkerExports<M>
  options(options: WorkerRunOptions): this
  resize(options: { minWorkers?: number | undefined; maxWorkers?: number | undefined }): void
  readonly stats: PoolStats
  /** As of every pool; resolves once the processes have ended, after the `teardown` of their file. Open files and memory of the pool are let go of then. */
  close(options?: { grace?: number | undefined }): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * Where a cluster listens: a port of every address, `'host:port'`, `'unix:/path'`, or the same as an object. Port 0 is one that the system chooses. `{ fd }`: a socket that this process has
 * (inherited from a service manager, for example) and that listens: `start` makes a copy and makes it non-blocking, and the fd stays its owner's, to be closed by him; one that is none is
 * `ERR_OFFLOOP_INVALID` of `start`.
 */
export type ClusterListen = number | string | { port: number; host?: string | undefined } | { path: string } | { fd: number }

/** How connections come to workers. `shared`: whoever accepts first; `round-robin`, `least-connections`, `ip-hash`: the cluster accepts, and chooses; `reuseport`: the kernel chooses. */
export type ClusterBalance = 'shared' | 'round-robin' | 'least-connections' | 'ip-hash' | 'reuseport'

/** What workers run. */
export interface ClusterCommand {
  /** A script for this Node.js, which need not know of the cluster, or a command as it is: `{fd}` in it is replaced by the number of the first listening socket. */
  exec: string | URL | readonly string[]
  /** Arguments of the script. */
  args?: readonly string[] | undefined
  /** Flags of Node.js beside those of this process. */
  execArgv?: readonly string[] | undefined
  /** Variables beside those of this process; undefined removes one. */
  env?: Record<string, string | number | undefined> | undefined
  cwd?: string | undefined
}

/** Times in ms. */
export interface ClusterOptions extends ClusterCommand {
  /** 1 to 1,024. Default `'auto'`: as many as there are usable cores. */
  workers?: number | 'auto' | undefined
  /**
   * Workers beside those that load, listen and wait, without a connection: when a worker has ended, a spare takes its place at once, and another is started. With the workers no more than
   * 1,024; not with `'reuseport'`. Default 0.
   */
  spares?: number | undefined
  /** Sockets that are bound before the first worker starts, and inherited from fd 3 on. Servers of a script need none: they listen where they ask to. */
  listen?: readonly ClusterListen[] | undefined
  /** How connections come to workers, of these sockets and of those that they ask for. Default `'shared'`. A reload with `'reuseport'` may lose connections. */
  balance?: ClusterBalance | undefined
  /** From the start of a worker until it is ready: 30,000. */
  readyTimeout?: number | undefined
  /** How long a new worker has to be ready before, in a reload, the old one is asked to finish: 1,000. */
  minReady?: number | undefined
  /** What a worker that leaves has to finish: 30,000. */
  drainTimeout?: number | undefined
  /** From SIGTERM to SIGKILL: 2,000. */
  killGrace?: number | undefined
  /**
   * How often a worker's event loop shows that it turns (1,000, from 10), and how long it may show nothing (10,000, at least four times as long) before the worker is ended and
   * replaced. `false`: it may block for as long as it likes.
   */
  heartbeat?: { interval?: number | undefined; timeout?: number | undefined } | false | undefined
  /** A worker that was ready for so long, ±10 %, is replaced, its successor first: at least 1,000. Default: none is. */
  maxAge?: number | undefined
  /** So is one that has more memory (bytes, PSS) at three looks in a row, one a second: at least 1 MiB. */
  maxMemory?: number | undefined
  /** So is one that has answered so many requests, ±10 %: those of HTTP, and what it says by `served`. */
  maxRequests?: number | undefined
  /** Added to the niceness of the workers. A lower niceness than this process's takes privileges, as do the next ones where they say so: without them `start` is `ERR_OFFLOOP_START_FAILED`. */
  nice?: number | undefined
  /** Each worker runs on one core, by its slot, the usable cores counted round. Default false. */
  pinCpus?: boolean | undefined
  /** Whose workers are, without supplementary groups. Another than this process's takes privileges. Without `gid` the group stays. */
  uid?: number | undefined
  gid?: number | undefined
  /** Soft and hard limits of the workers, in the kernel's units: `{ nofile: 1024, core: 0 }`; `Infinity`: none. To raise a hard one takes privileges. */
  limits?: Partial<Record<'as' | 'core' | 'cpu' | 'data' | 'fsize' | 'memlock' | 'nofile' | 'nproc' | 'rss' | 'stack', number>> | undefined
  /** `oom_score_adj`, −1,000 to 1,000: how much rather than others workers are killed when memory runs out. A lower one than this process's takes privileges. */
  oomScore?: number | undefined
  /** A pool that all workers submit to: `currentWorker().pool` there. It is this process's own still: the cluster does not close it. */
  pool?: WorkerPool | ProcessPool | undefined
  /**
   * Where a thread of this process answers HTTP requests: `/metrics` for Prometheus, `/status` as JSON, `/` a page that shows them as they change. Whoever can connect reads them:
   * `'127.0.0.1:9464'`. Default: nowhere.
   */
  metrics?: ClusterListen | undefined
  /**
   * Where what workers print goes, as whole lines in the order of their streams: `'prefixed'` (to this process's outputs, each line as `[slot:pid] line`), `'raw'` (without the prefix),
   * `'none'`, or the path of a file, with the prefix. A file that would grow beyond `size` bytes (default 10 MiB) becomes `FILE.1`, that `FILE.2` and so on; `keep` (default 5, up to 1,000) of
   * those are kept. Default: workers have this process's outputs; where somebody listens for `log` when the cluster starts, lines go to that listener alone.
   */
  log?: 'prefixed' | 'raw' | 'none' | (string & {}) | { file: string; size?: number | undefined; keep?: number | undefined } | undefined
}

/** What a worker has printed. */
export interface ClusterLine {
  stream: 'stdout' | 'stderr'
  /** Without the newline; what is no UTF-8 is U+FFFD. */
  text: string
  /** The line is longer than 64 KiB: the next one of this worker and stream is more of it. */
  more: boolean
}

/** A worker of a cluster, as its cluster sees it. */
export interface ClusterWorker {
  /** Its place, from 0 on; whoever replaces it has the same. That of a spare is 1,024 or higher until it takes a worker's. */
  readonly slot: number
  /** The (re)load that it belongs to, from 1 on. */
  readonly generation: number
  readonly pid: number
  readonly state: 'starting' | 'ready' | 'spare' | 'unresponsive' | 'draining' | 'exited'
  /** Requests that it has answered since its start, read now: those that `maxRequests` counts. Null once it has ended. */
  readonly served: number | null
  /**
   * ms by which its event loop is late, read now: by how much a beat is overdue, or the greatest lateness of one before, of which half is left after each second. Null before its first beat,
   * and once it has ended.
   */
  readonly loopDelay: number | null
  /** Sends to this process, as `Channel.send` does. `ERR_OFFLOOP_CLOSED` or `ERR_OFFLOOP_PEER_DIED` once it has ended. */
  send(message: unknown, options?: SendOptions | TransferBuffer[] | null): boolean
  /** The reply of this process, or its error. */
  request(message: unknown, options?: (SendOptions & WaitOptions & { withFds?: false }) | null): Promise<any>
  request(message: unknown, options: SendOptions & WaitOptions & { withFds: true }): Promise<{ value: any; fds: number[] }>
}

/** How a worker ended. */
export interface ClusterExit {
  exitCode: number | null
  signal: string | null
  /** Why: `crash`, `boot`, `bootTimeout`, `blocked`, `frozen`, `corrupt`, `killed`, `scale`, `retire` (a reload) or `stop`. */
  cause: string
  /** It did not finish within `drainTimeout`, and was signalled. */
  forced: boolean
  /** The kernel killed it for want of memory. */
  oom: boolean
  /** Its own last words: the error that nobody caught. */
  text: string | null
  /** ms since it was ready; null if it never was. */
  uptime: number | null
}

/** What a reload has done. */
export interface ReloadReport {
  generation: number
  /** Workers that were replaced. */
  replaced: number
  /** Old workers that did not finish within `drainTimeout`. */
  forced: number
  /** ms from its beginning to the end of the last old worker. */
  took: number
}

export interface ClusterStats {
  /** Of the last (re)load that succeeded. */
  generation: number
  wanted: number
  /** Processes of workers. */
  live: number
  ready: number
  /** Spares that wait. */
  spares: number
  degraded: boolean
  /** Requests that workers have answered since the start, those that have ended too. */
  served: number
  /** Since the start. */
  spawned: number
  crashed: number
  oom: number
  forced: number
  /** Workers that were to be replaced for their age, memory or requests. */
  expired: number
  unresponsive: number
  reloads: number
  reloadsFailed: number
}

export interface ClusterEvents {
  /** A process was started, has attached, got a socket that it listens at, takes connections, is to finish. */
  fork: [worker: ClusterWorker]
  online: [worker: ClusterWorker]
  listening: [worker: ClusterWorker, address: string]
  ready: [worker: ClusterWorker]
  /** A spare is loaded, and waits. When it takes the place of a worker it is `ready`, with the slot of that one. */
  spare: [worker: ClusterWorker]
  draining: [worker: ClusterWorker, why: { cause: string }]
  /**
   * Its loop has shown nothing for so long; it is ended, unless it goes on in time (`responsive`). `cause`: `blocked`, or `frozen` where the whole process stands still. `stack`: where the loop
   * stands, in lines as those of `Error.prototype.stack` (of a worker in Python: of a traceback); null where the worker does not say. 4,096 bytes of the worker's at most.
   */
  unresponsive: [worker: ClusterWorker, why: { cause: string; stack: string | null }]
  responsive: [worker: ClusterWorker]
  /** It is to be replaced, and goes on until its successor is there. */
  expired: [worker: ClusterWorker, why: { reason: 'age' | 'memory' | 'requests' }]
  exit: [worker: ClusterWorker, how: ClusterExit]
  /**
   * What a worker says, as of a `Channel`: `fds` are the receiver's to close. What it has said before its end comes before its `exit`, and nothing after that. While nobody listens for either,
   * messages and requests wait, and hold their worker back.
   */
  message: [worker: ClusterWorker, message: any, fds: number[]]
  request: [worker: ClusterWorker, request: ChannelRequest]
  messageerror: [worker: ClusterWorker, error: unknown]
  /**
   * A line that it has printed, beside where the option `log` lets it go. Without that option a listener has to be there at `start`. What it has printed before its end comes before its `exit`; what
   * processes that it has left behind print comes after that. Nothing comes after `stopped`. Workers wait for no listener: lines beyond 1 MiB that wait for this event loop are left out, and a
   * `warning` says how many (`ERR_OFFLOOP_FULL`).
   */
  log: [worker: ClusterWorker, line: ClusterLine]
  /** That worker has room again, after a `send` that returned false. */
  drain: [worker: ClusterWorker]
  /** A process could not be started. */
  startError: [error: OffloopError]
  /** A slot that failed rests for so many ms before its next start. */
  backOff: [rest: { slot: number; delay: number }]
  reloading: [reload: { generation: number }]
  reload: [report: ReloadReport]
  /** A later worker of the new generation failed: those that were replaced are replaced back. */
  rollback: [reload: { generation: number; error: OffloopError }]
  reloadFailed: [reload: { generation: number; error: OffloopError }]
  /** Too many workers fail: one is tried every 30 s. A reload cures it. */
  degraded: [why: { failures: number }]
  recovered: []
  /** Something is not as it should be, and the cluster goes on: it has no fd for a connection, which waits then; `'reuseport'` loses more than it must; lines of `log` were left out. */
  warning: [error: OffloopError]
  stopped: []
}

/**
 * N copies of a server on the same sockets: kept alive, watched, scaled, and reloaded without losing a request. The script is an ordinary server, which need not know of it; in it
 * `currentWorker()` of `offloop/worker` says more. A cluster that was started keeps this process alive until it has stopped; when this process dies, so do its workers.
 */
export class Cluster extends EventEmitter<ClusterEvents> implements AsyncDisposable {
  /** Bad options, and a script that is not there, are errors at once; nothing is bound or started. */
  constructor(options: ClusterOptions)
  /**
   * Binds, starts the workers, and resolves when all are ready. `ERR_OFFLOOP_OS` for a socket that cannot be bound, `ERR_OFFLOOP_START_FAILED` with the worker's own error when none
   * comes up; then nothing is left.
   */
  start(): Promise<void>
  /**
   * Replaces all workers by a new generation, one after the other, and is never short of one. What is given replaces what they ran; the rest stays. The first new worker is tried before any
   * old one is touched: if it fails, the error is its own and nothing has changed; if a later one fails three times, all go back. `ERR_OFFLOOP_IN_USE` while a reload is under way.
   */
  reload(command?: Partial<ClusterCommand>): Promise<ReloadReport>
  /** So many workers from now on; resolves when they are ready, and those that leave have ended. */
  scale(workers: number): Promise<void>
  /** Ends all workers, which have `grace` ms to finish (default `drainTimeout`; 0: at once), and unbinds. */
  stop(options?: { grace?: number | undefined }): Promise<void>
  /** Ends the worker of this slot with SIGKILL; another takes its place. */
  kill(slot: number): void
  /**
   * Sends a message to the worker of this slot: the ready one that was started last, else one that starts, else one that drains. False: the worker has not received what was sent before
   * (64 KiB), and the message waits in this process, until `drain`. `ERR_OFFLOOP_FULL` when 16 MiB wait; `ERR_OFFLOOP_NOT_FOUND` for a slot without a worker, which it names.
   */
  send(slot: number, message: unknown, options?: SendOptions | TransferBuffer[] | null): boolean
  /** The reply of the worker of this slot, or its error. */
  request(slot: number, message: unknown, options?: (SendOptions & WaitOptions & { withFds?: false }) | null): Promise<any>
  request(slot: number, message: unknown, options: SendOptions & WaitOptions & { withFds: true }): Promise<{ value: any; fds: number[] }>
  /**
   * Sends a copy of a message to every worker that lives, those that start or drain and spares included. Returns those that did not get it, and why: too much waits for them already, or they are
   * about to end. The others did. A `TransferBuffer` in it is `ERR_OFFLOOP_INVALID`: it moves to one worker.
   */
  broadcast(message: unknown, options?: { fds?: SendOptions['fds'] } | null): { worker: ClusterWorker; error: OffloopError }[]
  /** The ready workers by slot. */
  readonly workers: ReadonlyMap<number, ClusterWorker>
  /** Where it listens. */
  readonly addresses: string[]
  /** Where `metrics` are to be had, port 0 resolved; null without that option, before the start and after the end. */
  readonly metricsAddress: string | null
  readonly stats: ClusterStats
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * A number that the workers of a cluster count together, by name; it lasts as long as the cluster. In a worker it is that of its cluster, in the cluster's process with `cluster` too; else one of
 * this process alone. Make it once: a worker waits for its cluster's answer. `name` has 1 to 128 bytes; a cluster has 256 counters and limiters at most. A worker that dies leaves what it has counted.
 */
export class Counter {
  constructor(name: string, options?: { cluster?: Cluster | undefined })
  /** Adds a safe integer, which may be negative (default 1); what it is then. It wraps at 64 bits. */
  add(n?: number): number
  readonly value: number
  /** Makes it a safe integer; what it was. */
  set(value: number): number
}

export interface RateLimiterOptions {
  /** Tokens per second that come back: 0.000001 to 1,000,000. */
  rate: number
  /** Tokens of a full bucket: 1 to 1,048,576. Default: those of one second. */
  burst?: number | undefined
  /** Keys whose buckets are known at a time: 8 to 16,777,216, of 8 bytes each. Default 16,384. */
  keys?: number | undefined
  cluster?: Cluster | undefined
}

/** What became of {@link RateLimiter.take}. */
export interface Taken {
  /** The tokens were there. */
  allowed: boolean
  /** Whole tokens that are there now. */
  remaining: number
  /** ms until as many are there as were wanted, if nobody else takes some; 0 when they were. */
  retryAfter: number
}

/** Token buckets, one per key, from which the workers of a cluster take together; by name, as {@link Counter}. A name stands for one limit: another is `ERR_OFFLOOP_INVALID`. */
export class RateLimiter {
  constructor(name: string, options: RateLimiterOptions)
  /** Takes `cost` tokens (default 1; 0: looks only) from the bucket of `key` (default ''), all or none. `ERR_OFFLOOP_INVALID` for a cost above the burst. */
  take(key?: string, cost?: number): Taken
}

/** One typed function per native op, on the default pool: `await ops.sha256(data)`. */
export const ops: Ops

/** The pool behind `ops`: one per process, shared by all its threads, `OFFLOOP_THREADS` wide. It cannot be closed. */
export function defaultPool(): ThreadPool

/**
 * A one-shot right to take a buffer inside this process: text, so that postMessage and JSON carry it. It holds the bytes until it is
 * taken or revoked, also when the worker thread that made it has ended: what that one posted can still be delivered.
 */
export type TransferToken = string

/** Bytes with one owner, moved between threads and processes without a copy. */
export class TransferBuffer {
  private constructor()
  /** Zeroed bytes; `shared`: in a sealed memfd that another process can map through `fd`. */
  static alloc(byteLength: number, options?: { shared?: boolean | undefined }): TransferBuffer
  /** A copy of `bytes`, made before it returns. */
  static from(bytes: Bytes): TransferBuffer
  /** Takes the bytes behind a token. A used token is `ERR_OFFLOOP_DETACHED`. */
  static receive(token: TransferToken): TransferBuffer
  /** Maps a sealed memfd of another process; the descriptor stays the caller's. */
  static attach(fd: number): TransferBuffer
  /** 0 when detached. */
  readonly byteLength: number
  readonly detached: boolean
  /** The memfd of a shared buffer; it belongs to the buffer. */
  readonly fd: number | null
  /** The bytes, without a copy; the same view each time. Detached when the buffer moves. */
  bytes(): Uint8Array<ArrayBuffer>
  /** Moves the bytes out of this handle and detaches it and its view. */
  transfer(): TransferToken
}

/** Frees the bytes behind a token that nobody will take. */
export function revokeToken(token: TransferToken): void

/** How a ring is made. */
export interface RingOptions {
  /** `spsc`: one producer, one consumer. `mpsc`: many producers. `broadcast`: every consumer sees every record. `mpmc`: many of both. */
  kind: 'spsc' | 'mpsc' | 'mpmc' | 'broadcast'
  /** Bytes of a lane, or of all slots of `mpmc`, rounded up to a power of two, 4 KiB to 1 GiB. A record may take half of a lane. Default 4 MiB. */
  capacity?: number | undefined
  /** Bytes of a slot of `mpmc`, rounded up to a power of two from 64: a record and 16 bytes. Default 256. The other kinds have no slots. */
  slotSize?: number | undefined
  /** Producers and consumers at most, together. Default 2 for `spsc`, else 16. */
  maxParticipants?: number | undefined
  /** Names the ring, so that others attach by path. Without a slash: a file in `$XDG_RUNTIME_DIR/offloop`. Default: no name. */
  path?: string | undefined
  /** What `push` does when there is no room. Default `wait`; `overwrite` the oldest is for `broadcast`. */
  onFull?: 'wait' | 'reject' | 'overwrite' | undefined
}

/** How long a `push` or a `pop` may wait. */
export interface WaitOptions {
  signal?: AbortSignal | undefined
  /** In ms. Default: without end. */
  timeout?: number | undefined
}

/** A look at a ring from outside. Positions count bytes from its begin and wrap at 2^32, as the numbers of records do. */
export interface RingStat {
  readonly kind: string
  readonly capacity: number
  /** Bytes of a slot of `mpmc`, else 0. */
  readonly slotSize: number
  readonly maxParticipants: number
  readonly onFull: string
  readonly creatorPid: number
  readonly created: Date
  readonly closed: boolean
  /** A participant found bytes that cannot be. */
  readonly poisoned: boolean
  /** Records of `mpmc` that were taken, and wait to be taken again. */
  readonly returned: number
  readonly participants: readonly {
    seat: number
    role: 'producer' | 'consumer' | null
    pid: number
    alive: boolean
    asleep: boolean
    /** Records of `mpmc` that it has taken and that are not dealt with. */
    inFlight: number
  }[]
  readonly lanes: readonly { tail: number; pushed: number; head: number; popped: number; used: number; records: number }[]
}

/** A bounded queue of records in mapped memory, between threads, processes and languages, that survives `kill -9` of either side. */
export class RingBuffer {
  private constructor()
  static create(options: RingOptions): RingBuffer
  /**
   * A ring that somebody else made: by its path, or by the file descriptors that its `fds` gave, as this process has them (a child
   * inherits them by `stdio: [0, 1, 2, ...ring.fds]` as 3, 4, …; a worker thread uses the same numbers). They are duplicated.
   */
  static attach(from: string | readonly number[]): RingBuffer
  /** Header, participants and positions of a named ring. Reads only. */
  static inspect(path: string): RingStat
  readonly kind: string
  readonly capacity: number
  /** Bytes of a slot of `mpmc`, else 0. */
  readonly slotSize: number
  /** Bytes of the longest record. */
  readonly maxRecordLength: number
  readonly onFull: string
  /** Where a named ring lies, else null. */
  readonly path: string | null
  /** What another process or thread needs to attach to a ring without a name. They belong to this object: keep it until then. */
  readonly fds: number[]
  readonly closed: boolean
  /** `batch`: records become visible by `flush`, every 4 KiB, when there is no room, and when the consumer has nothing else to do. */
  producer(options?: { batch?: boolean | undefined }): Producer
  consumer(options?: { ack?: 'auto' | undefined }): Consumer
  /** `ack: 'manual'`, in `mpmc`: a record is in flight until its delivery is acknowledged, and comes again if this consumer leaves or dies. */
  consumer(options: { ack: 'manual' }): Consumer<Delivery>
  consumer(options: { ack?: 'auto' | 'manual' | undefined }): Consumer | Consumer<Delivery>
  /**
   * Ends it for everybody: nothing more is pushed, consumers get what is there; in `mpmc` they wait for what others have in flight, too,
   * unless they have something to acknowledge themselves.
   *
   * This object lets go of file descriptors and memory when its last producer and consumer are closed and nothing waits in the ring; of a
   * ring with a path, when that was removed, too. What waits is there for a `consumer()` that comes later. `fds` throws after that.
   */
  close(): void
  /** As `close`, and lets go when the last producer and consumer are closed, whatever waits in the ring: other processes may have it. */
  [Symbol.dispose](): void
  /** Takes a named ring's name away; who is attached stays so. */
  remove(): void
}

/** Pushes records. Bytes are copied, those of a TransferBuffer too: it is not moved. */
export class Producer {
  private constructor()
  /** Pushes a copy; false while the ring is full, or an earlier `push` waits. */
  tryPush(bytes: Bytes): boolean
  /** Pushes a copy, and waits for room. It was made when this returns. */
  push(bytes: Bytes, options?: WaitOptions | null): Promise<void>
  /**
   * Has `fill` write a record of `length` bytes where it lies; false, and not called, while there is no room. The view ends when
   * `fill` returns: what is written to it later lands in other records. If `fill` throws, there is no record.
   */
  claim(length: number, fill: (view: Uint8Array) => void): boolean
  /**
   * Publishes what a producer with `batch` has committed. `ERR_OFFLOOP_CLOSED` (as from `tryPush` and `claim`) when the ring was closed
   * meanwhile and its consumer may have ended without it.
   */
  flush(): void
  /** Publishes, and leaves the seat to a successor. The collector, the end of a thread and of the process do it too. */
  close(): void
  readonly closed: boolean
  /** A pending `push` keeps the process alive (the default). */
  ref(): this
  unref(): this
  [Symbol.dispose](): void
}

/** A record of a consumer with `ack: 'manual'`. It comes again, to some consumer and marked, until somebody acknowledges it. */
export class Delivery {
  private constructor()
  /** A copy of the record. */
  readonly bytes: Uint8Array
  /** A consumer that died, or gave it back, may have seen it. */
  readonly redelivered: boolean
  /** It is dealt with, and is not delivered again. */
  ack(): void
  /** Gives it back: some consumer, this one perhaps, gets it at once. */
  nack(): void
}

/** Pops records. Iteration ends when the ring is closed and drained, and throws when the producer died; `break` leaves it open. */
export class Consumer<R = Uint8Array> implements AsyncIterable<R> {
  private constructor()
  /** The oldest record, a copy or its Delivery; null while there is none, or an earlier `pop` waits. */
  tryPop(): R | null
  /** The oldest record, as soon as there is one. With `ack: 'manual'` a consumer has 128 in flight at most, and then waits for an `ack`. */
  pop(options?: WaitOptions | null): Promise<R>
  /**
   * Shows `fn` up to `max` records where they lie, and returns how many there were. A view ends when `fn` returns: what it shows
   * later is other records. `redelivered`: a consumer that died may have seen it. A record is let go of even if `fn` throws. In `mpmc`
   * up to 64 are taken at once, and go to others if `fn` does not come to them.
   */
  read(max: number, fn: (view: R, redelivered: boolean) => void): number
  /** Records of an overwriting ring that were overwritten before this consumer came to them. */
  readonly lost: number
  /** Gives back what was let go of, and leaves the seat to a successor. */
  close(): void
  readonly closed: boolean
  /** A pending `pop` or iteration keeps the process alive (the default). */
  ref(): this
  unref(): this
  [Symbol.dispose](): void
  [Symbol.asyncIterator](): AsyncIterator<R, undefined, undefined>
}

/** What `Channel.send` takes beside its value. */
export interface SendOptions {
  /** Names what moves, as a check: each has to be in the value, and a `TransferBuffer` in the value moves in any case. */
  transfer?: TransferBuffer[]
  /** Open files, by their numbers or as a `FileHandle`, `net.Socket` or `net.Server`. They are duplicated. */
  fds?: unknown[]
}

/** Sizes of a channel; whoever makes it (`pair`, `listen`) decides on `capacity`. */
export interface ChannelOptions {
  /** Bytes of the ring of each direction: 256 KiB. A message of more than half of them goes beside it. */
  capacity?: number
  /** Bytes of the longest message, without the buffers that move: 256 MiB. */
  maxMessage?: number
  /** Bytes that wait at most, each way: for room, and for a listener. Whole messages count, with the buffers that move; one alone may be longer: 16 MiB. */
  maxQueued?: number
}

/** What is to be answered, once; an answer that throws was not sent, and leaves it open. `fds` are the receiver's to close. */
export interface ChannelRequest {
  readonly value: any
  readonly fds: number[]
  reply(value?: unknown, options?: SendOptions | TransferBuffer[] | null): void
  /** Whoever asked gets this error. */
  fail(error: unknown): void
}

export interface ChannelEvents {
  /**
   * `fds` are the receiver's to close. Messages and requests wait until there is a listener for either; while there is one for requests
   * only, messages are dropped and their fds closed.
   */
  message: [value: any, fds: number[]]
  /** While there is a listener for messages only, requests are refused (`NotFound`). */
  request: [request: ChannelRequest]
  /** A message or request was lost because its value has no JavaScript form; a request is answered with this error. */
  messageerror: [error: unknown]
  /** There is room again, after a `send` that returned false. */
  drain: []
  /** `Closed` by either end, `PeerDied`, or what else ended the channel. The last event, but for messages that nobody had listened for. */
  close: [why: OffloopError]
}

/** Accepts channels at a path until it is closed; channels that were accepted go on. It keeps the process alive (`unref`). */
export interface ChannelListener extends Disposable {
  readonly path: string
  readonly closed: boolean
  close(): void
  ref(): this
  unref(): this
}

/**
 * One end of a two-way connection between two processes. What comes is read while there is a listener for `message`, `request` or
 * `close`, or a request waits; a channel that is read keeps the process alive (`unref`). Messages that come before anybody listens for
 * them wait, in their order, 1024 of them at most; then the other end is held back.
 */
export class Channel extends EventEmitter<ChannelEvents> implements Disposable {
  private constructor()
  /** Two ends. Either may be used here, or by a child that inherits its `fd` and calls `attach`; `close` this end then. */
  static pair(options?: ChannelOptions | null): [Channel, Channel]
  /** The end of a pair whose `fd` this process inherited, or that was detached; the fd belongs to the channel from now on. */
  static attach(fd: number, options?: ChannelOptions | null): Channel
  /** `path`: a file, or a name below `$XDG_RUNTIME_DIR/offloop`. Only this user's processes can connect. */
  static listen(path: string, fn: (channel: Channel) => void): ChannelListener
  static listen(path: string, options: ChannelOptions | null | undefined, fn: (channel: Channel) => void): ChannelListener
  static connect(path: string, options?: (ChannelOptions & WaitOptions) | null): Promise<Channel>
  /** The socket of an end that was not used yet, for a child to inherit (`stdio`). */
  readonly fd: number
  /** Gives `fd` away, to one `attach` in this process, as in a worker thread that gets the number by `workerData`. This end is closed. */
  detach(): number
  readonly closed: boolean
  readonly stats: {
    sent: number
    received: number
    pending: number
    lateReplies: number
    queued: number
    peerPid: number | null
  }
  /** False: it waits for room, until `drain`. Throws `Full` when too much does. */
  send(value: unknown, options?: SendOptions | TransferBuffer[] | null): boolean
  /** The reply, or the error of whoever was asked. */
  request(value: unknown, options?: (SendOptions & WaitOptions & { withFds?: false }) | null): Promise<any>
  request(value: unknown, options: SendOptions & WaitOptions & { withFds: true }): Promise<{ value: any; fds: number[] }>
  /**
   * The other end gets what was sent, and `close` after it. What is queued is sent first, for `grace` ms (5000), and then dropped.
   * Of an end of a pair that was never used only the `fd` is closed, for a child may have it; if none has, the other end gets `PeerDied`.
   */
  close(options?: { grace?: number | undefined }): void
  ref(): this
  unref(): this
  [Symbol.dispose](): void
}

/** What every failed call rejects or throws with. An abort has `name: 'AbortError'` and `cause: signal.reason`. */
export class OffloopError extends Error {
  private constructor()
  readonly code: `ERR_OFFLOOP_${string}`
  readonly status: number
  readonly retry: 'never' | 'now' | 'later' | 'maybe'
  /** Of an `ERR_OFFLOOP_OS`. */
  readonly errno?: number
  /** Of an `ERR_OFFLOOP_OS`. */
  readonly syscall?: string
  /** Of an `ERR_OFFLOOP_WORKER_LOST`: what the thread or the process ended with. */
  readonly exitCode?: number
  /** Of an `ERR_OFFLOOP_WORKER_LOST`: the signal that ended the process, `SIGKILL`. */
  readonly signal?: string
  /** Of an `ERR_OFFLOOP_WORKER_LOST`: the worker ran out of its heap. */
  readonly oom?: boolean
  /** Of an `ERR_OFFLOOP_WORKER_LOST`: each of the runs that `retries` allows has lost its worker. */
  readonly poison?: boolean
  /** Which input of a `runMany` it was. */
  readonly index?: number
}

/** Counters and histograms of every pool of this process. Default: Prometheus text. */
export function metrics(format?: 'prometheus' | 'json'): string

/// <reference types="node" />
import type { EventEmitterAsyncResource } from 'node:events'
import type { Worker, WorkerOptions, TransferListItem } from 'node:worker_threads'

/**
 * The API of piscina on a `WorkerPool`. `T` is what its function takes, `R` what it returns. What differs from piscina is in
 * [docs/piscina.md](https://github.com/offloop/offloop/blob/main/docs/piscina.md).
 */
declare class Piscina<T = any, R = any> extends EventEmitterAsyncResource {
  constructor(options?: Piscina.Options)
  /**
   * Runs the function of `filename` with `task` on a thread. Rejects with its error, with an `AbortError` once `signal` is aborted, and with an `Error`
   * if the queue is at its limit or the thread ends meanwhile.
   */
  run(task?: T, options?: Piscina.RunOptions): Promise<R>
  /** Piscina 4's. @deprecated Use `run`. */
  runTask(
    task: T,
    transferList?: readonly TransferListItem[] | string | Piscina.AbortSignalAny,
    filename?: string | Piscina.AbortSignalAny,
    signal?: Piscina.AbortSignalAny,
  ): Promise<R>
  /** Ends every thread and rejects every call that has no outcome. */
  destroy(): Promise<void>
  /** Lets what was called run, with `force` only what has started, for `closeTimeout` ms at most, and ends the threads. */
  close(options?: { force?: boolean | undefined }): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
  readonly options: Piscina.FilledOptions
  readonly minThreads: number
  readonly maxThreads: number
  /** Live threads. */
  readonly threads: Worker[]
  /** Threads that have started and run nothing. */
  readonly idleThreads: number
  /** Calls that wait for a thread. */
  readonly queueSize: number
  /** Calls that have their outcome. */
  readonly completed: number
  /** Age of the pool in ms. */
  readonly duration: number
  /** Share of `maxThreads` that has been busy, 0 to 1. */
  readonly utilization: number
  /** Every thread is busy. */
  readonly needsDrain: boolean
  readonly histogram: Piscina.PiscinaHistogram
  /** Piscina 4's `histogram.runTime`; null without `recordTiming`. */
  readonly runTime: Piscina.PiscinaHistogramSummary | null
  /** Piscina 4's `histogram.waitTime`; null without `recordTiming`. */
  readonly waitTime: Piscina.PiscinaHistogramSummary | null

  static readonly Piscina: typeof Piscina
}

declare namespace Piscina {
  /** An `EventTarget`, or an `EventEmitter`, that tells `abort`. */
  type AbortSignalAny =
    | {
        addEventListener(name: 'abort', listener: () => void, options?: { once: boolean }): void
        removeEventListener(name: 'abort', listener: () => void): void
        readonly aborted?: boolean
        readonly reason?: unknown
      }
    | {
        once(name: 'abort', listener: () => void): unknown
        off(name: 'abort', listener: () => void): unknown
      }

  /** Durations are ms. */
  interface Options {
    /** Absolute path or `file:` URL of the worker file. Default: each call names one. */
    filename?: string | null | undefined
    /** Export that is called. Default `default`. */
    name?: string | null | undefined
    /** Threads that are always there. Default: half of the cores, at least 1. */
    minThreads?: number | undefined
    /** Default: one and a half times the cores. */
    maxThreads?: number | undefined
    /** How long a thread beyond `minThreads` stays idle; below 100 it counts as 100. Default 0. */
    idleTimeout?: number | undefined
    /** Calls that may wait; `auto` is the square of `maxThreads`. Default: no limit. */
    maxQueue?: number | 'auto' | undefined
    /** Default 1. */
    concurrentTasksPerWorker?: number | undefined
    /** Without effect: a thread never blocks between tasks. */
    atomics?: 'sync' | 'async' | 'disabled' | undefined
    /** Piscina 4's `atomics`. */
    useAtomics?: boolean | undefined
    resourceLimits?: WorkerOptions['resourceLimits'] | undefined
    env?: WorkerOptions['env'] | undefined
    argv?: any[] | undefined
    execArgv?: string[] | undefined
    /** Cloned for each thread. */
    workerData?: any
    trackUnmanagedFds?: boolean | undefined
    /** Default: first in, first out. */
    taskQueue?: TaskQueue | undefined
    /** Added to the nice value of the threads, on Linux. Default 0. */
    niceIncrement?: number | undefined
    /** How long `close` waits. Default 30 000. */
    closeTimeout?: number | undefined
    /** Default true. */
    recordTiming?: boolean | undefined
    /** Without effect: a call that finds no place keeps its place in the queue. */
    stricterFIFO?: boolean | undefined
    /** Default: the least busy thread. */
    loadBalancer?: PiscinaLoadBalancer | undefined
    /** Default false. */
    workerHistogram?: boolean | undefined
  }

  interface FilledOptions extends Options {
    filename: string | null
    name: string
    minThreads: number
    maxThreads: number
    idleTimeout: number
    maxQueue: number
    concurrentTasksPerWorker: number
    taskQueue: TaskQueue
    niceIncrement: number
    closeTimeout: number
    recordTiming: boolean
    stricterFIFO: boolean
    workerHistogram: boolean
  }

  interface RunOptions {
    transferList?: readonly TransferListItem[] | undefined
    filename?: string | null | undefined
    name?: string | null | undefined
    signal?: AbortSignalAny | null | undefined
  }

  interface PiscinaHistogramSummary {
    average: number
    mean: number
    stddev: number
    min: number
    max: number
    p0_001: number
    p0_01: number
    p0_1: number
    p1: number
    p2_5: number
    p10: number
    p25: number
    p50: number
    p75: number
    p90: number
    p97_5: number
    p99: number
    p99_9: number
    p99_99: number
    p99_999: number
  }

  /** In ms; the summaries are undefined without `recordTiming`. */
  interface PiscinaHistogram {
    readonly runTime: PiscinaHistogramSummary
    readonly waitTime: PiscinaHistogramSummary
    resetRunTime(): void
    resetWaitTime(): void
  }

  /** What a queue holds. */
  interface Task {
    readonly [queueOptionsSymbol]: object | null
  }

  interface PiscinaTask extends Task {
    taskId: number
    filename: string
    name: string
    created: number
    isAbortable: boolean
  }

  interface TaskQueue {
    readonly size: number
    shift(): Task | null
    remove(task: Task): void
    push(task: Task): void
    unshift?(task: Task): void
  }

  interface PiscinaWorker {
    readonly id: number
    readonly currentUsage: number
    readonly isRunningAbortableTask: boolean
    readonly histogram: PiscinaHistogramSummary | null
    readonly terminating: boolean
    readonly destroyed: boolean
  }

  /** Chooses one of `workers` for `task`; null has it wait, or a thread start. */
  type PiscinaLoadBalancer = (task: PiscinaTask, workers: PiscinaWorker[]) => PiscinaWorker | null

  interface Transferable {
    readonly [transferableSymbol]: object
    readonly [valueSymbol]: object
  }

  class FixedQueue implements TaskQueue {
    readonly size: number
    isEmpty(): boolean
    push(task: Task): void
    unshift(task: Task): void
    shift(): Task | null
    remove(task: Task): void
  }

  class ArrayTaskQueue implements TaskQueue {
    tasks: Task[]
    readonly size: number
    push(task: Task): void
    unshift(task: Task): void
    shift(): Task | null
    remove(task: Task): void
  }

  const transferableSymbol: unique symbol
  const valueSymbol: unique symbol
  const queueOptionsSymbol: unique symbol
  /** Whether this thread belongs to a Piscina. */
  const isWorkerThread: boolean
  /** In a thread of a Piscina its `workerData`. */
  const workerData: any
  /** Of offloop. */
  const version: string
  /** Marks a result, or a task, to be moved instead of cloned. */
  function move<V>(value: V): V
}

export = Piscina

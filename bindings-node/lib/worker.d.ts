import type { EventEmitter } from 'node:events'
import type { Channel, ChannelEvents, SendOptions, TransferBuffer, WaitOptions, WorkerRunOptions } from './index.js'

export { move } from './index.js'

/** What a function of a worker file may know of the task that it runs. */
export interface CurrentTask {
  /**
   * Aborted when nobody waits for the task any more: cancelled, or past its timeout; `reason` says which. In a loop that never lets the event
   * loop turn, `aborted` and `throwIfAborted` tell it as well.
   */
  readonly signal: AbortSignal
  /** Tells the caller's `onProgress` how far the task is. A value that cannot be cloned is `ERR_OFFLOOP_UNSERIALIZABLE`. */
  progress(value: unknown): void
  /** The pool's `context`. */
  readonly context: any
}

/** The task that this code runs in, also after an `await` and beside others; null outside of a pool's function. */
export function currentTask(): CurrentTask | null

/** This thread, or this process, as the worker of a WorkerPool or a ProcessPool. */
export interface PoolWorker {
  readonly threadId: number
  readonly pid: number
}

/** Options of a call of a {@link ClusterPool}: those of the pool's own `run` that go from process to process. */
export type ClusterPoolOptions = Pick<WorkerRunOptions, 'signal' | 'timeout' | 'queueTimeout' | 'priority' | 'key' | 'retries'>

/**
 * A pool of the cluster's process, as its workers see it. Tasks and results are values of a channel, copied; a `TransferBuffer` moves. Errors are those of the pool. Calls that are aborted, and those of
 * a worker that ends, are cancelled; when the cluster's process ends they are `ERR_OFFLOOP_PEER_DIED`, and with 16 MiB of tasks on their way `ERR_OFFLOOP_FULL`.
 */
export interface ClusterPool {
  /** Runs the export `name` (default: the default export) of the pool's file with `task`. */
  run(task: unknown, options?: (ClusterPoolOptions & { name?: string | undefined }) | null): Promise<any>
  /** `await pool.exports.thumbnail(image, 200)`. */
  readonly exports: Readonly<Record<string, (...args: any[]) => Promise<any>>>
  /** The same pool, with these options for each call. */
  options(options: ClusterPoolOptions): ClusterPool
}

/** This process as the worker of a Cluster. Its servers listen on the cluster's sockets; when it is to leave they take no more connections, answer the next request on each that is open, and the process ends with the last. */
export interface ClusterMember extends PoolWorker, EventEmitter<Pick<ChannelEvents, 'message' | 'request' | 'messageerror'> & { active: [] }> {
  /** Its place, from 0 on; that of a spare is 1,024 or higher until it takes a worker's. */
  readonly slot: number
  /** It is a spare, and waits: its servers take no connections. The event `active` says when that ends. */
  readonly spare: boolean
  /** The (re)load that it belongs to, from 1 on. */
  readonly generation: number
  /** The sockets of the cluster's option `listen`: `server.listen({ fd: worker.fds[0] })`, with any `balance`. */
  readonly fds: readonly number[]
  /** It is to finish what it has. */
  readonly draining: boolean
  /** Says that it takes work; the first server that listens says so, too. */
  ready(): void
  /** Counts requests for the cluster's `maxRequests`; those of HTTP servers are counted by themselves. */
  served(n?: number): void
  /** Calls `fn` when the worker is to finish; what it returns is waited for, within the cluster's `drainTimeout`. */
  onDrain(fn: () => unknown): void
  /**
   * To the process of the cluster. A listener for `message` or `request` of this worker, or of the channel, keeps the process alive until it is to leave; `channel.unref()` changes that. A
   * worker that only listens for messages says `ready()` itself.
   */
  readonly channel: Channel
  /** The pool that the process of the cluster has for all workers (`pool` of its options); null where it has none. */
  readonly pool: ClusterPool | null
  /** `channel.send`: false when the message waits here; `ERR_OFFLOOP_FULL` when 16 MiB do. */
  send(message: unknown, options?: SendOptions | TransferBuffer[] | null): boolean
  /** `channel.request`: the reply, or the error, of the process of the cluster. */
  request(message: unknown, options?: (SendOptions & WaitOptions & { withFds?: false }) | null): Promise<any>
  request(message: unknown, options: SendOptions & WaitOptions & { withFds: true }): Promise<{ value: any; fds: number[] }>
}

/** This thread, or this process, as a worker; null elsewhere. */
export function currentWorker(): PoolWorker | ClusterMember | null

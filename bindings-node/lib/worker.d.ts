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

/** This thread, or this process, as the worker of a WorkerPool or a ProcessPool; null elsewhere. */
export function currentWorker(): { readonly threadId: number; readonly pid: number } | null

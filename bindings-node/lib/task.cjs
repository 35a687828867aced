'use strict'
// The running task of a worker, for `currentTask()`. Until a worker file imports `offloop/worker`, tasks run without it: it costs each of them.

const { AsyncLocalStorage } = require('node:async_hooks')
const { fail } = require('./error.cjs')

/** Tasks whose signal somebody has, by their number in the board. */
const live = new Map()

class Task {
  #board
  #index
  #cancelled
  #late
  #controller = null
  #ended = false
  context
  constructor(board, index, cancelled, late, context) {
    this.#board = board
    this.#index = index
    this.#cancelled = cancelled
    this.#late = late
    this.context = context
  }

  /** Tells the caller's `onProgress` how far the task is; only the latest value is kept until its loop reads it. */
  progress(value) {
    if (this.#ended) return
    state.progress(this.#index, value)
  }

  end() {
    this.#ended = true
    if (live.get(this.#index) === this) live.delete(this.#index)
  }

  get signal() {
    if (this.#controller === null) {
      this.#controller = new AbortController()
      const { signal } = this.#controller
      // A loop that never lets the event loop turn sees it, too.
      const aborted = Object.getOwnPropertyDescriptor(AbortSignal.prototype, 'aborted').get
      const look = () => {
        this.poll()
        return aborted.call(signal)
      }
      Object.defineProperty(signal, 'aborted', { get: look, configurable: true })
      Object.defineProperty(signal, 'throwIfAborted', {
        value: () => {
          if (look()) throw signal.reason
        },
        configurable: true,
      })
      live.set(this.#index, this)
      state.onAwaited?.()
      this.poll()
    }
    return this.#controller.signal
  }

  poll() {
    if (this.#controller === null || live.get(this.#index) !== this) return
    const word = this.#board === null ? state.outcome(this.#index) : Atomics.load(this.#board, this.#index)
    if (word !== this.#cancelled && word !== this.#late) return
    live.delete(this.#index)
    const late = word === this.#late
    this.#controller.abort(late ? fail('Timeout', 'the task ran too long') : fail('Cancelled', 'nobody waits for the task'))
  }
}

const state = {
  Task,
  storage: null,
  /** Set by the worker's loop. */
  progress: null,
  /** The same, in a worker process: what has become of the task of this number. There is no board. */
  outcome: null,
  /** This thread, or this process, is a worker of a pool. */
  isWorker: false,
  /** Called when somebody wants to hear of the end of a task that runs. */
  onAwaited: null,
  /** Somebody does. */
  isAwaited: () => live.size > 0,
  enable() {
    state.storage ??= new AsyncLocalStorage()
    return state.storage
  },
  run(task, f, args) {
    return state.storage.run(task, f, ...args)
  },
  poll() {
    for (const task of live.values()) task.poll()
  },
}

module.exports = state

'use strict'
// One call of `run`, as a queue and a load balancer see it, and how it ends other than by its function.

const { movedParts, queueOptionsSymbol } = require('./transfer.cjs')

class AbortError extends Error {
  constructor(reason) {
    super('The task has been aborted', { cause: reason })
  }

  get name() {
    return 'AbortError'
  }
}

const terminated = () => new Error('Terminating worker thread')

let lastId = 0

class Call {
  taskId = ++lastId
  ended = false
  /** Ends it in its WorkerPool, if it has a signal. */
  controller = null
  /** Takes the listener from its signal. */
  unlisten = null
  /** Where it runs, or null. */
  place = null
  /** Why the thread that ran it has ended, if it has. */
  death = null
  constructor(task, list, filename, name, created, resolve, reject) {
    const parts = movedParts(task)
    this.task = parts === null ? task : parts.value
    this.list = parts === null ? list : [...(list ?? []), ...parts.list]
    this.filename = filename
    this.name = name
    this.created = created
    this.resolve = resolve
    this.reject = reject
  }

  get isAbortable() {
    return this.controller !== null
  }

  get [queueOptionsSymbol]() {
    const { task } = this
    return (typeof task === 'object' && task !== null ? task[queueOptionsSymbol] : null) ?? null
  }

  /** What a load balancer gets. */
  get interface() {
    const { taskId, filename, name, created, isAbortable } = this
    return { taskId, filename, name, created, isAbortable, [queueOptionsSymbol]: this[queueOptionsSymbol] }
  }
}

/** Calls `listener` at the first `abort` of an EventTarget or an EventEmitter; returns what takes it off. */
function onAbort(signal, listener) {
  if (typeof signal.addEventListener === 'function') {
    signal.addEventListener('abort', listener, { once: true })
    return () => signal.removeEventListener('abort', listener)
  }
  if (typeof signal.once !== 'function') throw new TypeError('signal argument must be an AbortSignal, an EventTarget or an EventEmitter')
  signal.once('abort', listener)
  return () => signal.off('abort', listener)
}

module.exports = { AbortError, Call, onAbort, terminated }

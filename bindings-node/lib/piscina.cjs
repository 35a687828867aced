'use strict'
// `offloop/piscina`: the API of piscina on WorkerPools. What its documentation says is in docs/piscina.md, section by section.

const { EventEmitterAsyncResource } = require('node:events')
const { performance } = require('node:perf_hooks')
const { isMainThread, workerData: dataOfThread } = require('node:worker_threads')
const { setTimeout: sleep } = require('node:timers/promises')
const { version } = require('../package.json')
const { AbortError, Call, onAbort } = require('./piscina/call.cjs')
const { Ahead } = require('./piscina/ahead.cjs')
const { Placed } = require('./piscina/placed.cjs')
const { fill, pathOf } = require('./piscina/options.cjs')
const { FixedQueue, ArrayTaskQueue, isPlain } = require('./piscina/queues.cjs')
const { clock, createHistogram, summary } = require('./piscina/timing.cjs')
const { move, transferableSymbol, valueSymbol, queueOptionsSymbol } = require('./piscina/transfer.cjs')
const state = require('./piscina/state.cjs')

const isWorkerThread = state.isWorkerThread
const workerData = isWorkerThread && !isMainThread ? dataOfThread : undefined

class Piscina extends EventEmitterAsyncResource {
  #options
  #timing = { runTime: null, waitTime: null }
  #start = performance.now()
  #completed = 0
  #needsDrain = false
  /** Closes and destroys that are under way: calls are refused. */
  #ending = 0
  /** Made again by the first call after it was destroyed. */
  #threads = null
  #histogram
  #host
  constructor(options = {}) {
    super({ name: 'Piscina' })
    this.#options = fill(options)
    if (this.#options.recordTiming) this.#timing = { runTime: createHistogram(), waitTime: createHistogram() }
    const { runTime, waitTime } = this.#timing
    this.#histogram = Object.freeze({
      get runTime() {
        return runTime === null ? undefined : summary(runTime)
      },
      get waitTime() {
        return waitTime === null ? undefined : summary(waitTime)
      },
      resetRunTime: () => runTime?.reset(),
      resetWaitTime: () => waitTime?.reset(),
    })
    this.#host = {
      settled: (call, error, value) => this.#settled(call, error, value),
      placed: () => this.#look(),
      // Listeners run after what is under way, and throw as those of any emitter.
      emit: (event, argument) => queueMicrotask(() => this.emit(event, argument)),
    }
    this.#threads = this.#open()
  }

  #open() {
    const { concurrentTasksPerWorker, loadBalancer, workerHistogram, taskQueue } = this.#options
    const plain = concurrentTasksPerWorker === 1 && loadBalancer === undefined && !workerHistogram && isPlain(taskQueue)
    return new (plain ? Ahead : Placed)(this.#host, this.#options, this.#timing)
  }

  run(task, options = {}) {
    if (typeof options !== 'object' || options === null) return Promise.reject(new TypeError('options must be an object'))
    const { transferList, filename, name, signal } = options
    let wrong
    if (transferList !== undefined && !Array.isArray(transferList)) wrong = 'transferList argument must be an Array'
    else if (!isTextOrNothing(filename)) wrong = 'filename argument must be a string'
    else if (!isTextOrNothing(name)) wrong = 'name argument must be a string'
    else if (typeof signal !== 'object' && signal !== undefined) wrong = 'signal argument must be an object'
    if (wrong !== undefined) return Promise.reject(new TypeError(wrong))
    return this.#run(task, transferList, filename, name, signal ?? null)
  }

  #run(task, transferList, filename, name, signal) {
    const file = filename ?? this.#options.filename
    if (file === null) return Promise.reject(new Error('filename must be provided to run() or in options object'))
    if (this.#ending > 0) return Promise.reject(new AbortError('queue is being terminated'))
    if (signal?.aborted) return Promise.reject(new AbortError(signal.reason))
    if (this.#threads === null) this.#threads = this.#open()
    const threads = this.#threads
    if (!threads.hasRoom()) {
      const none = this.#options.maxQueue === 0
      return Promise.reject(new Error(none ? 'No task queue available and all Workers are busy' : 'Task queue is at limit'))
    }
    return new Promise((resolve, reject) => {
      const path = filename === undefined || filename === null ? file : pathOf(file)
      const list = transferList === undefined || transferList.length === 0 ? null : transferList
      const call = new Call(task, list, path, name ?? this.#options.name, clock(), resolve, reject)
      if (signal !== null) {
        call.controller = new AbortController()
        call.unlisten = onAbort(signal, () => threads.abort(call, new AbortError(signal.reason)))
      }
      threads.submit(call)
      this.#look()
    })
  }

  /** Piscina 4's: everything behind `task` may be left out, and the signal may take any of the places. */
  runTask(task, transferList, filename, signal) {
    if (isSignal(transferList)) [transferList, signal] = [undefined, transferList]
    if (typeof transferList === 'string') [transferList, filename, signal] = [undefined, transferList, filename]
    if (isSignal(filename)) [filename, signal] = [undefined, filename]
    return this.run(task, { transferList: transferList ?? undefined, filename, signal })
  }

  #settled(call, error, value) {
    if (error instanceof AbortError) call.reject(error)
    else {
      this.#completed++
      if (error === null) call.resolve(value)
      else call.reject(error)
    }
    this.#look()
  }

  /** Says when every place in the threads is taken, or calls wait for threads that start, and when that is over. */
  #look() {
    const threads = this.#threads
    if (threads === null) return
    const full = threads.usage >= threads.capacity || threads.queueSize > 0
    if (full === this.#needsDrain) return
    this.#needsDrain = full
    this.#host.emit(full ? 'needsDrain' : 'drain')
  }

  async destroy() {
    const threads = this.#threads
    this.#threads = null
    this.#needsDrain = false
    this.#ending++
    try {
      await threads?.destroy()
    } finally {
      this.#ending--
    }
  }

  async close(options = {}) {
    if (typeof options !== 'object' || options === null) throw new TypeError('options must be an object')
    const { force = false } = options
    if (typeof force !== 'boolean') throw new TypeError('force argument must be a boolean')
    this.#ending++
    try {
      if (force) this.#threads?.force()
      const late = new AbortController()
      const timeout = sleep(this.#options.closeTimeout, true, { ref: false, signal: late.signal }).catch(() => false)
      const idle = (this.#threads?.idle() ?? Promise.resolve()).then(() => false)
      if (await Promise.race([idle, timeout])) this.#host.emit('error', new Error('Close operation timed out'))
      late.abort()
      await this.destroy()
      this.#host.emit('close')
    } finally {
      this.#ending--
    }
  }

  [Symbol.asyncDispose]() {
    return this.close()
  }

  get options() {
    return { ...this.#options }
  }

  get minThreads() {
    return this.#options.minThreads
  }

  get maxThreads() {
    return this.#options.maxThreads
  }

  get threads() {
    return Array.from(this.#threads?.live.values() ?? [], ({ worker }) => worker)
  }

  get idleThreads() {
    return this.#threads?.idleThreads ?? 0
  }

  get queueSize() {
    return this.#threads?.queueSize ?? 0
  }

  get completed() {
    return this.#completed
  }

  get duration() {
    return performance.now() - this.#start
  }

  get needsDrain() {
    return this.#needsDrain
  }

  get histogram() {
    return this.#histogram
  }

  get runTime() {
    return this.#histogram.runTime ?? null
  }

  get waitTime() {
    return this.#histogram.waitTime ?? null
  }

  get utilization() {
    const { runTime } = this.#timing
    if (runTime === null || runTime.count === 0) return 0
    return ((runTime.mean / 1000) * runTime.count) / (this.duration * this.#options.maxThreads)
  }

  static get Piscina() {
    return Piscina
  }

  static get FixedQueue() {
    return FixedQueue
  }

  static get ArrayTaskQueue() {
    return ArrayTaskQueue
  }

  static get isWorkerThread() {
    return isWorkerThread
  }

  static get workerData() {
    return workerData
  }

  static get version() {
    return version
  }

  static get transferableSymbol() {
    return transferableSymbol
  }

  static get valueSymbol() {
    return valueSymbol
  }

  static get queueOptionsSymbol() {
    return queueOptionsSymbol
  }

  static move(value) {
    return move(value)
  }
}

// Node.js before 24 has no such symbol of its own.
if (Symbol.dispose) {
  Object.defineProperty(Piscina.prototype, Symbol.dispose, {
    value() {
      this.close()
    },
    writable: true,
    configurable: true,
  })
}

const isTextOrNothing = (value) => typeof value === 'string' || value === undefined || value === null
const isSignal = (value) =>
  typeof value === 'object' && value !== null && (typeof value.addEventListener === 'function' || typeof value.once === 'function')

module.exports = Piscina

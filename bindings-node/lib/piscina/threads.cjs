'use strict'
// What both ways of running a Piscina's calls have in common: threads of WorkerPools that come and go, and calls that end.

const path = require('node:path')
const { WorkerPool } = require('../index.cjs')
const { AbortError, terminated } = require('./call.cjs')

const FILE = path.join(__dirname, 'handlers.cjs')
/** A thread looks so often, in ms, whether it may leave: not all the time, which `idleTimeout: 0` would say. */
const LEAST_IDLE = 100
const ON_THREAD = Symbol.for('offloop.onThread')

const exited = (code) => new Error(`worker exited with code: ${code}`)

class Threads {
  /** Live threads by their id: `{ worker, ready, face }`, where `face` is what events and balancers see. */
  live = new Map()
  /** Calls without an outcome. */
  inFlight = 0
  pools = new Set()
  #onIdle = []
  constructor(host, options, timing) {
    this.host = host
    this.options = options
    this.timing = timing
    this.idleTimeout = Math.max(options.idleTimeout, LEAST_IDLE)
  }

  open(claims, poolOptions) {
    const { filename, name, niceIncrement, env, argv, execArgv, resourceLimits, workerData, trackUnmanagedFds } = this.options
    const pool = new WorkerPool(FILE, {
      ...poolOptions,
      // As piscina: a task that is aborted is ended with its thread, and a thread starts for as long as it likes.
      cancelGrace: 0,
      readyTimeout: Number.POSITIVE_INFINITY,
      context: { claims, ...this.timing, filename, name, niceIncrement },
      env,
      argv,
      execArgv,
      resourceLimits,
      workerData,
      trackUnmanagedFds,
    })
    pool.on('workerReady', ({ threadId }) => {
      const thread = this.live.get(threadId)
      if (thread !== undefined) thread.ready = true
    })
    this.pools.add(pool)
    return pool
  }

  /** Has `pool` tell of its threads; `faceOf` makes what events show of one. */
  watch(pool, faceOf) {
    WorkerPool[ON_THREAD](pool, (worker) => {
      const { threadId } = worker
      const thread = { threadId, worker, ready: false, ended: false, error: null, face: null }
      thread.face = faceOf(thread)
      this.live.set(threadId, thread)
      worker.on('message', (message) => this.host.emit('message', message))
      // Such a listener has the thread keep the process alive; pending calls do.
      worker.unref()
      worker.on('error', (error) => {
        thread.error = error
      })
      worker.on('exit', (code) => {
        this.live.delete(threadId)
        thread.ended = true
        this.onEnd(thread, code)
        this.host.emit('workerDestroy', thread.face)
      })
      this.host.emit('workerCreate', thread.face)
    })
  }

  /** Says why a thread has ended to each of `calls`, which it had begun; to the pool if that was not what ended one of them. */
  blame(thread, code, calls) {
    const { error } = thread
    const death = { error: error ?? exited(code), open: 0, told: error === null }
    for (const call of calls) {
      if (call.ended) continue
      call.death = death
      death.open++
    }
    if (death.open === 0) this.#tell(death)
  }

  #tell(death) {
    if (death.told) return
    death.told = true
    // A thread that did not start has told the calls that waited for it.
    this.host.emit('error', death.error)
  }

  /** The outcome of a call, once. */
  end(call, error, value) {
    if (call.ended) return
    call.ended = true
    call.unlisten?.()
    const { death } = call
    if (error !== null) error = this.#reason(error, death)
    if (death !== null && --death.open === 0) this.#tell(death)
    this.inFlight--
    this.host.settled(call, error, value)
    if (this.inFlight === 0) for (const resolve of this.#onIdle.splice(0)) resolve()
  }

  /** What piscina would have said. */
  #reason(error, death) {
    if (error?.code === 'ERR_OFFLOOP_WORKER_LOST') {
      // The call may hear of its thread's end first.
      if (death === null) return error.exitCode === undefined ? error : exited(error.exitCode)
      death.told = true
      return death.error
    }
    if (error?.code === 'ERR_OFFLOOP_START_FAILED') return error.cause ?? error
    return error
  }

  /** Has the calls that nobody has begun reject. */
  force() {
    this.dropWaiting((call) => this.end(call, new AbortError('pool is closed')))
  }

  /** Resolves when no call is without an outcome. */
  idle() {
    if (this.inFlight === 0) return Promise.resolve()
    return new Promise((resolve) => this.#onIdle.push(resolve))
  }

  /** Ends every call and every thread. */
  async destroy() {
    this.dropAll((call) => this.end(call, terminated()))
    await Promise.all(Array.from(this.pools, (pool) => pool.close({ grace: 0 })))
  }
}

module.exports = { Threads }

'use strict'
// Calls in the order in which they were made, one at a time per thread: one WorkerPool has them all, and its threads take short ones ahead.
//
// In memory that both sides share there is a word per call. A thread begins a call by a CAS from its ticket to minus the thread's id; what has
// not begun when a close is forced is taken back by a CAS of this side. Tickets differ, so a thread that comes late finds another one's.

const { FixedQueue } = require('./queues.cjs')
const { Threads } = require('./threads.cjs')

/** So many calls are in the WorkerPool at most; its own queue is as long. */
const WINDOW = 65_536
const LAST_TICKET = 2 ** 30

class Ahead extends Threads {
  #pool
  #claims = new Int32Array(new SharedArrayBuffer(WINDOW * 4))
  /** By their number in `claims`. */
  #calls = []
  #free = []
  #posted = 0
  #ticket = 0
  #waiting = new FixedQueue()
  /** The WorkerPool's functions by file and name. */
  #runners = new Map()
  #last = { filename: null, name: null, run: null }
  constructor(host, options, timing) {
    super(host, options, timing)
    this.capacity = Math.ceil(options.maxThreads)
    const least = Math.ceil(options.minThreads)
    this.#pool = this.open(this.#claims, {
      minWorkers: least,
      maxWorkers: this.capacity,
      idleTimeout: least < this.capacity ? this.idleTimeout : Number.POSITIVE_INFINITY,
      maxQueue: WINDOW,
    })
    this.watch(this.#pool, (thread) => this.#faceOf(thread))
    // The core starts one thread per task that waits.
    for (let i = 0; i < least; i++) this.#pool.exports.ready().catch(() => {})
  }

  #faceOf(thread) {
    const mine = () => this.#begunBy(thread.threadId)
    return {
      id: thread.threadId,
      get currentUsage() {
        return mine().length
      },
      get isRunningAbortableTask() {
        return mine().some((call) => call.isAbortable)
      },
      histogram: null,
      terminating: false,
      get destroyed() {
        return thread.ended
      },
    }
  }

  #begunBy(threadId) {
    const begun = []
    for (const [index, call] of this.#calls.entries()) {
      if (call !== undefined && !call.ended && Atomics.load(this.#claims, index) === -threadId) begun.push(call)
    }
    return begun
  }

  get usage() {
    return Math.min(this.inFlight, this.capacity)
  }

  get queueSize() {
    return this.inFlight - this.usage
  }

  get idleThreads() {
    let idle = 0
    for (const { threadId, ready } of this.live.values()) if (ready && this.#begunBy(threadId).length === 0) idle++
    return idle
  }

  hasRoom() {
    return this.inFlight < this.capacity + this.options.maxQueue
  }

  submit(call) {
    this.inFlight++
    if (this.#posted < WINDOW) this.#post(call)
    else this.#waiting.push(call)
  }

  #post(call) {
    const index = this.#free.length > 0 ? this.#free.pop() : this.#calls.length
    this.#ticket = this.#ticket === LAST_TICKET ? 1 : this.#ticket + 1
    const ticket = this.#ticket
    this.#claims[index] = ticket
    this.#calls[index] = call
    this.#posted++
    call.place = { index, ticket }
    this.#begin(call, index, ticket).then(
      (value) => this.#settle(call, index, null, value),
      (error) => this.#settle(call, index, error),
    )
  }

  #begin(call, index, ticket) {
    const { task, list, controller, filename, name, created } = call
    if (list === null && controller === null) return this.#runner(filename, name)(task, created, index, ticket)
    const options = { name: JSON.stringify(['whole', filename, name]) }
    if (list !== null) options.transferList = list
    if (controller !== null) options.signal = controller.signal
    return this.#pool.run([task, created, index, ticket], options)
  }

  #runner(filename, name) {
    const last = this.#last
    if (last.filename === filename && last.name === name) return last.run
    const key = JSON.stringify(['spread', filename, name])
    let run = this.#runners.get(key)
    if (run === undefined) {
      run = this.#pool.exports[key]
      this.#runners.set(key, run)
    }
    this.#last = { filename, name, run }
    return run
  }

  #settle(call, index, error, value) {
    this.#calls[index] = undefined
    this.#free.push(index)
    this.#posted--
    while (this.#posted < WINDOW && this.#waiting.size > 0) this.#post(this.#waiting.shift())
    this.end(call, error, value)
  }

  abort(call, error) {
    if (call.place === null) this.#waiting.remove(call)
    else call.controller.abort()
    this.end(call, error)
  }

  dropWaiting(drop) {
    while (this.#waiting.size > 0) drop(this.#waiting.shift())
    for (const call of [...this.#calls]) {
      if (call === undefined || call.ended) continue
      const { index, ticket } = call.place
      if (Atomics.compareExchange(this.#claims, index, ticket, 0) === ticket) drop(call)
    }
  }

  dropAll(drop) {
    while (this.#waiting.size > 0) drop(this.#waiting.shift())
    for (const call of [...this.#calls]) if (call !== undefined) drop(call)
  }

  onEnd(thread, code) {
    if (thread.ready) this.blame(thread, code, this.#begunBy(thread.threadId))
    else if (this.inFlight === 0) this.blame(thread, code, [])
  }
}

module.exports = { Ahead }

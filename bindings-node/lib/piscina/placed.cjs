'use strict'
// Calls that the user's queue orders, the user's load balancer places, or that share threads: a queue here, and a WorkerPool of one thread per place.
// A place gets no more calls than it runs at once, so what waits is what the queue has.

const { createHistogram, record, summary, clock } = require('./timing.cjs')
const { terminated } = require('./call.cjs')
const { Threads } = require('./threads.cjs')

/** The place for a call when the user gives no balancer: an idle one, or the least busy one that has room. A call with a signal shares with nobody. */
const leastBusy = (most) => (task, workers) => {
  let best = null
  for (const worker of workers) {
    if (worker.currentUsage === 0) return worker
    if (worker.isRunningAbortableTask || task.isAbortable || worker.currentUsage >= most) continue
    if (best === null || worker.currentUsage < best.currentUsage) best = worker
  }
  return best
}

let lastPlace = 0

/** One thread, or its successor. */
class Place {
  id = ++lastPlace
  /** Calls may be placed here. */
  ready = false
  calls = new Set()
  timer = null
  thread = null
  destroyed = false
  constructor(threads, histogram) {
    this.pool = threads.open(null, { minWorkers: 1, maxWorkers: 1, idleTimeout: Number.POSITIVE_INFINITY, concurrency: threads.perThread })
    this.histogram = histogram
    const place = this
    this.face = {
      id: this.id,
      get currentUsage() {
        return place.calls.size
      },
      get isRunningAbortableTask() {
        return place.abortable
      },
      get histogram() {
        return histogram === null ? null : summary(histogram)
      },
      get terminating() {
        return place.destroyed && place.thread?.ended === false
      },
      get destroyed() {
        return place.destroyed || place.thread?.ended === true
      },
    }
  }

  get abortable() {
    for (const call of this.calls) if (call.isAbortable) return true
    return false
  }
}

class Placed extends Threads {
  #places = new Set()
  #queue
  /** Taken from the queue and not placed; in front of it, for one that cannot take back. */
  #front = []
  #balancer
  #min
  #max
  #failed = false
  #ending = false
  #placing = false
  constructor(host, options, timing) {
    super(host, options, timing)
    this.perThread = Math.ceil(options.concurrentTasksPerWorker)
    this.#queue = options.taskQueue
    this.#balancer = options.loadBalancer ?? leastBusy(this.perThread)
    this.#min = Math.ceil(options.minThreads)
    this.#max = Math.ceil(options.maxThreads)
    this.capacity = this.#max * this.perThread
    while (this.#places.size < this.#min) this.#open(true)
  }

  /** With `first` it takes calls while it starts: there is nobody else. */
  #open(first) {
    const place = new Place(this, this.options.workerHistogram ? createHistogram() : null)
    place.ready = first
    this.#places.add(place)
    this.watch(place.pool, (thread) => {
      place.thread = thread
      return place.face
    })
    this.#warm(place)
  }

  /** Has its thread start; the place takes calls from then on. */
  #warm(place) {
    place.pool.exports.ready().then(
      () => {
        this.#failed = false
        place.ready = true
        this.#free(place)
      },
      () => this.#failedToStart(place),
    )
  }

  #failedToStart(place) {
    if (this.#ending || place.destroyed) return
    const error = place.thread?.error ?? null
    const reason = error ?? new Error('worker exited before it was ready')
    // The next ones would end like this one: they are started when there is work for them.
    this.#failed = true
    const lost = [...place.calls]
    this.#remove(place)
    if (this.#places.size === 0) this.dropWaiting((call) => lost.push(call))
    for (const call of lost) this.end(call, reason)
    if (lost.length === 0 && error !== null) this.host.emit('error', error)
  }

  #remove(place) {
    clearTimeout(place.timer)
    place.destroyed = true
    place.ready = false
    this.#places.delete(place)
    place.pool.close({ grace: 0 }).then(() => this.pools.delete(place.pool))
  }

  /** As many threads as there should always be, and one more for what waits. */
  #ensure() {
    while (!this.#failed && this.#places.size < this.#min) this.#open(false)
    if (this.#places.size < this.#max && this.#pending < this.#waiting) this.#open(false)
  }

  get usage() {
    let usage = 0
    for (const place of this.#places) usage += place.calls.size
    return usage
  }

  get #waiting() {
    return this.#queue.size + this.#front.length
  }

  /** Calls that threads which start will take. */
  get #pending() {
    let starting = 0
    for (const place of this.#places) if (!place.ready) starting++
    return starting * this.perThread
  }

  get queueSize() {
    return Math.max(this.#waiting - this.#pending, 0)
  }

  get idleThreads() {
    let idle = 0
    for (const { thread, calls } of this.#places) if (thread?.ready && !thread.ended && calls.size === 0) idle++
    return idle
  }

  hasRoom() {
    const { maxQueue } = this.options
    // Threads that may still be started count as those that start.
    const pending = this.#pending + (this.#max - this.#places.size) * this.perThread
    if (this.#waiting < maxQueue + pending) return true
    return this.#waiting === 0 && [...this.#places].some(({ calls, ready }) => ready && calls.size < this.perThread)
  }

  submit(call) {
    this.inFlight++
    if (this.#waiting === 0 && this.#place(call)) return
    // Of the user's, which may throw.
    try {
      this.#queue.push(call)
    } catch (error) {
      return this.end(call, error)
    }
    // A balancer may have changed its mind.
    if (this.options.loadBalancer) this.#dispatch()
    if (this.#waiting > 0 && this.#places.size < this.#max) this.#open(false)
  }

  /** Gives a call to the place that the balancer wants; false if there is none. */
  #place(call) {
    const ready = [...this.#places].filter((place) => place.ready)
    let face
    try {
      face = this.#balancer(
        call.interface,
        ready.map((place) => place.face),
      )
    } catch (error) {
      this.end(call, error)
      return true
    }
    const place = ready.find((one) => one.face === face)
    if (place === undefined) return false
    this.#post(call, place)
    return true
  }

  #post(call, place) {
    const { task, list, filename, name, created } = call
    clearTimeout(place.timer)
    place.calls.add(call)
    call.place = place
    const options = { name: JSON.stringify(['whole', filename, name]) }
    if (list !== null) options.transferList = list
    const started = clock()
    const settle = (error, value) => {
      place.calls.delete(call)
      if (place.histogram !== null) record(place.histogram, clock() - started)
      // First what waits: a thread that has work again was not free.
      this.#free(place)
      this.end(call, error, value)
    }
    place.pool.run([task, created, 0, 0], options).then((value) => settle(null, value), settle)
  }

  /** Calls that wait go where there is room. */
  #dispatch() {
    // Not one out of the other: a queue may be long.
    if (this.#placing) return
    this.#placing = true
    try {
      while (this.#waiting > 0 && this.#someRoom()) {
        const call = this.#front.shift() ?? this.#queue.shift()
        if (call === null || call === undefined) break
        if (call.ended || this.#place(call)) continue
        if (typeof this.#queue.unshift === 'function') this.#queue.unshift(call)
        else this.#front.unshift(call)
        break
      }
    } finally {
      this.#placing = false
    }
  }

  /** A place has room: it gets what waits, or is idle. */
  #free(place) {
    if (this.#ending) return
    this.#dispatch()
    this.#ensure()
    this.#rest(place)
    this.host.placed()
  }

  /** Whether it is worth it to take a call from the queue. A balancer of the user's may have other limits. */
  #someRoom() {
    if (this.options.loadBalancer) return true
    for (const place of this.#places) if (place.ready && place.calls.size < this.perThread) return true
    return false
  }

  #rest(place) {
    const { idleTimeout } = this
    clearTimeout(place.timer)
    if (place.destroyed || place.calls.size > 0 || this.#places.size <= this.#min || idleTimeout === Number.POSITIVE_INFINITY) return
    place.timer = setTimeout(() => {
      if (place.calls.size === 0 && this.#places.size > this.#min) this.#remove(place)
    }, idleTimeout)
    place.timer.unref()
  }

  abort(call, error) {
    const { place } = call
    this.end(call, error)
    if (place === null) return this.#unqueue(call)
    // Nothing else runs there, unless the user's balancer has placed it.
    for (const other of place.calls) this.end(other, terminated())
    this.#remove(place)
    this.#ensure()
  }

  #unqueue(call) {
    const at = this.#front.indexOf(call)
    if (at >= 0) this.#front.splice(at, 1)
    else this.#queue.remove(call)
  }

  dropWaiting(drop) {
    for (const call of this.#front.splice(0)) drop(call)
    while (this.#queue.size > 0) {
      const call = this.#queue.shift()
      if (call === null || call === undefined) break
      drop(call)
    }
  }

  dropAll(drop) {
    this.#ending = true
    this.dropWaiting(drop)
    for (const place of this.#places) {
      clearTimeout(place.timer)
      place.destroyed = true
      for (const call of place.calls) drop(call)
    }
  }

  onEnd(thread, code) {
    const place = [...this.#places].find((one) => one.thread === thread)
    if (place === undefined || this.#ending || !thread.ready) return
    this.blame(thread, code, place.calls)
    // The WorkerPool has a successor for what waits in it.
    place.ready = false
    this.#warm(place)
  }
}

module.exports = { Placed }

'use strict'
// Leaving a stream: what becomes of its task when nobody takes its values any more.
//
//   a `next` is pending:  it is over at once, and the task is cancelled, as by a signal
//   none is:              the generator over there ends; after the grace the task is cancelled as well
//
//   its object was collected: as if none was pending, with nobody who hears of it
//
// A cancelled task is told by its signal, and its worker is ended after `cancelGrace`, as after any cancel.

const { setTimeout, clearTimeout, MAX_TIMER } = require('./clock.cjs')
const { bell } = require('./mapping.cjs')

/** Of streams that nobody can take a value of any more: what is left to do. It holds nothing that holds the stream. */
const dropped = new FinalizationRegistry((leaving) => leaving.drop())

class Leaving {
  /** Rung when there may be something new. */
  came = bell()
  /** Not even the `next` that is pending takes a value. */
  isLeft = false
  #grace
  #cancel = null
  #isCancelled = false
  #stop = null
  constructor(grace) {
    this.#grace = grace
  }

  /** The task was submitted: `cancel()` cancels it, and does nothing once it has its outcome. */
  begun(cancel) {
    this.#cancel = cancel
  }

  /** From now on `stop()` ends the generator over there, and lets go of what the stream has, as `over` says that its own code has done. */
  onDrop(stop) {
    this.#stop = stop
  }

  over() {
    this.#stop = null
  }

  drop() {
    if (this.#stop === null) return
    setTimeout(() => this.#cancelNow(), Math.min(this.#grace, MAX_TIMER)).unref()
    this.#stop()
  }

  leave() {
    this.isLeft = true
    this.#cancelNow()
    this.came.ring()
  }

  #cancelNow() {
    this.#isCancelled = true
    this.#cancel?.()
  }

  /** Waits until `isOver()`, which throws what ended the task: not that it was cancelled here. */
  async until(isOver) {
    const timer = setTimeout(() => this.#cancelNow(), Math.min(this.#grace, MAX_TIMER))
    // The task keeps the process alive.
    timer.unref()
    try {
      while (!(await isOver())) await this.came.wait()
    } catch (error) {
      if (!this.#isCancelled || error?.code !== 'ERR_OFFLOOP_CANCELLED') throw error
    } finally {
      clearTimeout(timer)
    }
  }
}

/** The async generator `make(leaving)`, whose `return` and `throw` do not wait behind a `next` that is pending. */
function leavable(make, grace) {
  const leaving = new Leaving(grace)
  const values = make(leaving)
  let pending = 0
  const settled = () => {
    pending--
  }
  const own = {
    next() {
      pending++
      const next = super.next()
      next.then(settled, settled)
      return next
    },
    return(value) {
      if (pending > 0) leaving.leave()
      return super.return(value)
    },
    throw(error) {
      if (pending > 0) leaving.leave()
      return super.throw(error)
    },
  }
  Object.setPrototypeOf(own, Object.getPrototypeOf(values))
  dropped.register(values, leaving)
  return Object.setPrototypeOf(values, own)
}

module.exports = { leavable }

'use strict'
// Promises that wait for a ring, and how much of the loop's time they may take.
//
// A handle's waits are served in their order. While there are any, one watch of the core says when it is worth looking
// again; what is there is settled at once, until the turn's time is used up, and then in the next turn.

const { setImmediate, setTimeout, clearTimeout, now, MAX_TIMER } = require('./clock.cjs')
const { fail, aborted, typeName, checkKnown } = require('./error.cjs')
const { begin, end, newNote, onNote, offNote, listen, unlisten, abortOf } = require('./completion.cjs')

/** What all rings together, with the code that waits for them, may take of one turn of the loop, in ms. */
const TURN = 0.5
/** Settled waits between two looks at the clock, at most. */
const MAX_STRIDE = 64

let stride = 8
let left = stride
let lookedAt = 0
let turnBegan = 0
let inTurn = false
const later = new Set()

function nextTurn() {
  inTurn = false
  if (later.size === 0) return
  const all = [...later]
  later.clear()
  for (const resume of all) resume()
}

/** Whether this turn's time is used up; call it once per record that a promise gets. */
function isSpent() {
  if (!inTurn) {
    inTurn = true
    turnBegan = lookedAt = now()
    left = stride
    setImmediate(nextTurn)
    return false
  }
  if (later.size > 0) return true
  if (--left > 0) return false
  const at = now()
  // As many until the next look as take an eighth of the time.
  const each = (at - lookedAt) / stride
  stride = each > 0 ? Math.max(1, Math.min(MAX_STRIDE, Math.trunc(TURN / 8 / each))) : MAX_STRIDE
  left = stride
  lookedAt = at
  return at - turnBegan > TURN
}

/** Runs `resume` in the next turn. */
function inNextTurn(resume) {
  later.add(resume)
}

function checkWait(options) {
  if (options === undefined || options === null) return undefined
  if (typeof options !== 'object') throw fail('Invalid', 'options are not an object', { got: typeName(options) })
  const { signal, timeout, ...unknown } = options
  checkKnown(unknown, 'signal timeout')
  if (timeout !== undefined && timeout !== null && !(typeof timeout === 'number' && timeout >= 0)) {
    throw fail('Invalid', 'option has the wrong type or is out of range', {
      option: 'timeout',
      value: String(timeout),
      want: 'milliseconds from 0',
    })
  }
  if (
    signal !== undefined &&
    signal !== null &&
    (typeof signal !== 'object' ||
      typeof signal.aborted !== 'boolean' ||
      typeof signal.addEventListener !== 'function' ||
      typeof signal.removeEventListener !== 'function')
  ) {
    throw fail('Invalid', 'option has the wrong type', { option: 'signal', want: 'AbortSignal', got: typeName(signal) })
  }
  if (signal?.aborted) throw aborted(signal.reason)
  return { signal, timeout }
}

/** Waits of one handle. */
class Waits {
  #attempt
  #arm
  #timeoutText
  #queue = new Set()
  #note = 0
  #ref = true
  #held = false
  #serve = () => this.#settleAll(false)

  /**
   * `attempt(data, sure)`: a result, or null; `sure` says that it is worth asking the core.
   * `arm(note, data)`: true when an attempt is sure to be worth it, else the note will tell.
   */
  constructor(attempt, arm, timeoutText) {
    this.#attempt = attempt
    this.#arm = arm
    this.#timeoutText = timeoutText
  }

  get size() {
    return this.#queue.size
  }

  /** What `attempt(data)` gives, after one that gave nothing; or in the next turn, if the time of this one is spent. */
  wait(data, options, spent) {
    return new Promise((resolve, reject) => {
      const signal = options?.signal ?? undefined
      const timeout = options?.timeout ?? Number.POSITIVE_INFINITY
      const one = { data, resolve, reject, signal, onAbort: undefined, timer: undefined }
      if (signal !== undefined) {
        one.onAbort = () => this.#settle(one, true, abortOf(signal) ?? aborted())
        // Code of the signal, which may throw: nothing is registered yet.
        listen(signal, one.onAbort)
      }
      this.#queue.add(one)
      if (timeout !== Number.POSITIVE_INFINITY) {
        const expire = () => this.#settle(one, true, fail('Timeout', this.#timeoutText, { timeout_ms: timeout }))
        one.timer = setTimeout(expire, Math.min(timeout, MAX_TIMER))
        // The wait itself keeps the loop alive, or nothing does.
        one.timer.unref()
      }
      this.#keepAlive()
      if (spent) inNextTurn(this.#serve)
      else if (this.#queue.size === 1) this.#settleAll(true)
    })
  }

  ref(on) {
    this.#ref = on
    this.#keepAlive()
  }

  /** What was promised fails. */
  fail(error) {
    for (const one of [...this.#queue]) this.#settle(one, true, error())
  }

  #settleAll(attempted) {
    let sure = false
    for (const one of this.#queue) {
      try {
        for (;;) {
          if (!attempted) {
            if (isSpent()) return inNextTurn(this.#serve)
            const value = this.#attempt(one.data, sure)
            if (value !== null) {
              this.#settle(one, false, value)
              break
            }
          }
          attempted = false
          this.#note ||= newNote()
          onNote(this.#note, this.#serve)
          sure = this.#arm(this.#note, one.data)
          if (!sure) return
        }
      } catch (error) {
        this.#settle(one, true, error)
        attempted = false
      }
    }
  }

  #settle(one, failed, value) {
    if (!this.#queue.delete(one)) return
    clearTimeout(one.timer)
    if (one.signal !== undefined) unlisten(one.signal, one.onAbort)
    // A handle that nobody waits for can be collected.
    if (this.#queue.size === 0 && this.#note !== 0) offNote(this.#note)
    this.#keepAlive()
    if (failed) one.reject(value)
    else one.resolve(value)
  }

  #keepAlive() {
    const held = this.#ref && this.#queue.size > 0
    if (held === this.#held) return
    this.#held = held
    if (held) begin()
    else end()
  }
}

module.exports = { Waits, checkWait, isSpent, inNextTurn }

'use strict'
// Promises that wait for the core, and the one wake that settles many of them.
//
// Plain lane: a slot number stands for one promise. Entries: everything that has options, a signal, progress or several
// tasks. While anything is pending the loop stays alive; an idle pool does not hold it.

const native = require('./native.cjs')
const { fromNative, aborted, CANCELLED } = require('./error.cjs')
const { wrapBuffer, unwrap } = require('./buffer.cjs')

/** Results per turn of the loop, so that timers and I/O run between while saturated. */
const BUDGET = 256
const WORDS = 5
// Kinds of records; the same numbers as in src/pool.rs.
const BYTES = 0
const NIL = 1
const VALUE = 2
const ERROR = 3

const records = new Uint8Array(BUDGET * WORDS * 4)
const words = new Uint32Array(records.buffer)
const scratch = new Uint8Array(64 * 1024)
const values = []

const resolves = []
const rejects = []
const free = []
const entries = new Map()
const closing = new Map()
let lastEntry = 0
let lastNote = 0
let pending = 0
let again = false

let grabbedResolve
let grabbedReject
const grab = (resolve, reject) => {
  grabbedResolve = resolve
  grabbedReject = reject
}

function begin() {
  if (pending++ === 0) native.keepAlive(true)
}

function end() {
  if (--pending === 0) native.keepAlive(false)
}

/** One task without options: the hot path. */
function runPlain(pool, op, input) {
  const slot = free.length > 0 ? free.pop() : resolves.length
  const promise = new Promise(grab)
  resolves[slot] = grabbedResolve
  rejects[slot] = grabbedReject
  try {
    native.poolSubmit(pool, op, slot, input)
  } catch (error) {
    free.push(slot)
    grabbedReject(error)
    return promise
  }
  if (pending++ === 0) native.keepAlive(true)
  return promise
}

/** Registers `entry` ({ resolve, reject, count, many, signal, onProgress }) and returns its number. */
function open(entry) {
  do {
    lastEntry = (lastEntry + 1) >>> 0
  } while (lastEntry === 0 || entries.has(lastEntry))
  const id = lastEntry
  // Code of the signal, which may throw: nothing is registered yet.
  if (entry.signal) listen(entry.signal, id)
  entry.id = id
  entry.left = entry.count
  entry.settled = false
  entry.results = entry.many ? new Array(entry.count) : null
  entries.set(id, entry)
  begin()
  return id
}

function close(entry) {
  entries.delete(entry.id)
  end()
  if (entry.signal) unlisten(entry.signal, entry.id)
}

// One listener per signal, however many tasks share it.
const listeners = new WeakMap()

function listen(signal, id) {
  let known = listeners.get(signal)
  if (known === undefined) {
    const ids = new Set()
    const onAbort = () => {
      for (const one of ids) native.poolCancel(one)
    }
    known = { ids, onAbort }
    listeners.set(signal, known)
  }
  if (known.ids.size === 0) signal.addEventListener('abort', known.onAbort)
  known.ids.add(id)
}

function unlisten(signal, id) {
  const known = listeners.get(signal)
  if (known?.ids.delete(id) && known.ids.size === 0) removeListener(signal, known.onAbort)
}

/** Never throws: it is called between the results of other tasks. */
function removeListener(signal, listener) {
  try {
    signal.removeEventListener('abort', listener)
  } catch (error) {
    report(error)
  }
}

/** An error of a listener, which is not the task's error: as from any event listener. */
function report(error) {
  queueMicrotask(() => {
    throw error
  })
}

function settle(entry, index, failed, value) {
  if (failed) {
    let error = value
    if (error?.status === CANCELLED && entry.signal?.aborted) error = aborted(entry.signal.reason)
    if (!entry.settled) {
      entry.settled = true
      if (entry.many) {
        error.index = index
        // Nobody waits for the others any more.
        if (entry.left > 1) native.poolCancel(entry.id)
      }
      entry.reject(error)
    }
  } else if (entry.many) {
    entry.results[index] = value
  } else {
    entry.settled = true
    entry.resolve(value)
  }
  if (--entry.left > 0) return
  close(entry)
  native.poolForget(entry.id)
  if (!entry.settled) entry.resolve(entry.results)
}

function progress(entry, value) {
  if (entry === undefined || entry.settled || !entry.onProgress) return
  try {
    entry.onProgress(value)
  } catch (error) {
    report(error)
  }
}

function drain() {
  const count = native.poolDrain(records, scratch, values, BUDGET)
  let plain = 0
  for (let at = 0, last = count * WORDS; at < last; at += WORDS) {
    const index = words[at]
    const entry = words[at + 1]
    const kind = words[at + 2]
    const a = words[at + 3]
    let value
    if (kind === BYTES) value = scratch.slice(a, a + words[at + 4])
    else if (kind === NIL) value = null
    else value = values[a]
    if (entry === 0) {
      if (kind <= VALUE) resolves[index](value)
      else if (kind === ERROR) rejects[index](value)
      else continue
      free.push(index)
      plain++
    } else if (kind <= ERROR) {
      settle(entries.get(entry), index, kind === ERROR, value)
    } else {
      progress(entries.get(entry), value)
    }
  }
  values.length = 0
  pending -= plain
  if (plain > 0 && pending === 0) native.keepAlive(false)
  // A full drain has not armed the wake: look again after the loop has turned.
  if (count === BUDGET && !again) {
    again = true
    setImmediate(drainAgain)
  }
}

function drainAgain() {
  again = false
  drain()
}

/** Called by native code on this thread: results are waiting (0), or a pool has ended. */
function wake(note) {
  if (note === 0) return drain()
  const closed = closing.get(note)
  if (closed !== undefined) {
    closing.delete(note)
    end()
    closed()
  }
}

/** A promise for the end of a pool; `start(note)` begins it. */
function whenClosed(start) {
  return new Promise((resolve, reject) => {
    const note = ++lastNote
    closing.set(note, resolve)
    begin()
    try {
      start(note)
    } catch (error) {
      closing.delete(note)
      end()
      reject(error)
    }
  })
}

function wrapError(name, message, stack) {
  const error = new Error(message)
  Object.defineProperty(error, 'name', { value: name, writable: true, configurable: true })
  if (stack) Object.defineProperty(error, 'stack', { value: stack, writable: true, configurable: true })
  return error
}

native.hooks(wake, fromNative, unwrap, wrapBuffer, wrapError, (pairs) => new Map(pairs))

module.exports = { runPlain, open, close, whenClosed, removeListener }

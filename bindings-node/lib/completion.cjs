'use strict'
// Promises that wait for the core, and the turns of the loop that settle them.
//
// Plain lane: a slot number stands for one promise. Entries: everything that has options, a signal, progress or several
// tasks. While anything is pending the loop stays alive; an idle pool does not hold it.
//
//   armed ── first completion: the core wakes the loop ──► polling: one drain per turn of the loop, by an immediate
//     ▲                                                       │
//     └───── a drain found nothing, and arming says so ◄──────┘
//
// While polling, completions ring nobody, and timers and I/O have their turn between two drains: a wake that drained by
// itself would be followed by the wake for what its continuations submitted, all within one turn.

const { setImmediate, now } = require('./clock.cjs')
const native = require('./native.cjs')
const { fromNative, wrapError, unwrapError, aborted, CANCELLED } = require('./error.cjs')
const { wrapBuffer, unwrap, lengthOf } = require('./buffer.cjs')

/** What the results of one turn, with the code that waits for them, may take of the loop's time, in ms. */
const TURN = 0.4
/** Results per turn: the bounds of what the time above allows. */
const MIN_BUDGET = 8
const MAX_BUDGET = 512
const WORDS = 5
// Kinds of records; the same numbers as in src/pool.rs.
const BYTES = 0
const NIL = 1
const VALUE = 2
const ERROR = 3

const records = new Uint8Array(MAX_BUDGET * WORDS * 4)
const words = new Uint32Array(records.buffer)
const scratch = new Uint8Array(64 * 1024)
const scratchBuffer = Buffer.from(scratch.buffer)
const values = []

/** With so many in flight, submits are collected: the workers have enough to do until they come. */
const COLLECT_FROM = 64
/** Most collected submits, and the longest input among them. */
const COLLECT = 32
const COLLECT_INPUT = 1024
// The same layout as in src/pool.rs.
const SUBMIT_WORDS = 4
const NO_INPUT = 0xffffffff

/** The entry of tasks of workers, whose results lib/workers.cjs reads; the same number as in src/worker.rs. */
const CALLS = 0xffffffff
/** That of tasks of processes, whose results lib/processes.cjs reads; the same number as in src/process.rs. */
const PROCESSES = 0xfffffffe

const submits = new Uint8Array(COLLECT * SUBMIT_WORDS * 4)
const submitWords = new Uint32Array(submits.buffer)
const inputs = new Uint8Array(COLLECT * COLLECT_INPUT)
const refused = []
let collected = 0
let collectedBytes = 0
let collectedPool = null

const resolves = []
const rejects = []
const free = []
const entries = new Map()
const closing = new Map()
/** Whom a note of a watched ring calls. */
const watched = new Map()
let lastEntry = 0
let lastNote = 0
let pending = 0
/** An immediate will drain, and the core is not armed. */
let polling = false
let budget = 128
let drained = 0
let drainedAt = 0
const resolved = Promise.resolve()

/** Settles a task of a worker: (slot, failed, bytes or error, offset); false when it will be settled later. */
let settleCall = null
let progressCall = null
/** Settles a task of a process: (slot, kind, value or offset); false when it will be settled later. */
let settleProcess = null

let grabbing = 0
const grab = (resolve, reject) => {
  resolves[grabbing] = resolve
  rejects[grabbing] = reject
}

/** The functions of a settled promise would keep it and its result alive. */
function release(slot) {
  resolves[slot] = undefined
  rejects[slot] = undefined
  free.push(slot)
}

function begin() {
  if (pending++ === 0) native.keepAlive(true)
}

function end() {
  if (--pending === 0) native.keepAlive(false)
}

/** One task without options: the hot path. `input` is a Uint8Array or undefined. */
function runPlain(pool, op, input) {
  const slot = free.length > 0 ? free.pop() : resolves.length
  grabbing = slot
  const promise = new Promise(grab)
  if (pending >= COLLECT_FROM) {
    const length = input === undefined ? NO_INPUT : lengthOf(input)
    // An input of length 0 may be detached: native code looks.
    if (length === NO_INPUT || (length <= COLLECT_INPUT && length > 0)) {
      pending++
      collect(pool, op, slot, input, length)
      return promise
    }
  }
  flush()
  try {
    native.poolSubmit(pool, op, slot, input)
  } catch (error) {
    rejects[slot](error)
    release(slot)
    return promise
  }
  if (pending++ === 0) native.keepAlive(true)
  return promise
}

function collect(pool, op, slot, input, length) {
  if (collectedPool !== pool) {
    flush()
    collectedPool = pool
  }
  if (collected === 0) resolved.then(flush)
  const at = collected * SUBMIT_WORDS
  submitWords[at] = op
  submitWords[at + 1] = slot
  submitWords[at + 2] = collectedBytes
  submitWords[at + 3] = length
  if (input !== undefined) {
    inputs.set(input, collectedBytes)
    collectedBytes += length
  }
  if (++collected === COLLECT) flush()
}

/** Submits what was collected: after the microtasks before it, when it is enough, and before anything else that a pool is asked. */
function flush() {
  if (collected === 0) return
  const count = collected
  collected = 0
  collectedBytes = 0
  native.poolSubmitEach(collectedPool, submits, inputs, count, refused)
  if (refused.length > 0) settleRefused()
}

function settleRefused() {
  for (let i = 0; i < refused.length; i += 2) {
    const slot = refused[i]
    rejects[slot](refused[i + 1])
    release(slot)
  }
  pending -= refused.length / 2
  refused.length = 0
  if (pending === 0) native.keepAlive(false)
}

/** Registers `entry` ({ resolve, reject, count, many, signal, onProgress }) and returns its number. */
function open(entry) {
  do {
    lastEntry = (lastEntry + 1) >>> 0
  } while (lastEntry === 0 || lastEntry >= PROCESSES || entries.has(lastEntry))
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

// One listener per signal, however many share it: the runtime warns of more than ten.
const listeners = new WeakMap()

/** On abort, `waiting` is called; a number is an entry, whose tasks are cancelled. Throws what the signal's own code throws. */
function listen(signal, waiting) {
  let known = listeners.get(signal)
  if (known === undefined) {
    const all = new Set()
    const onAbort = () => {
      for (const one of all) {
        if (typeof one === 'number') native.poolCancel(one)
        else one()
      }
    }
    known = { all, onAbort }
    listeners.set(signal, known)
  }
  if (known.all.size === 0) signal.addEventListener('abort', known.onAbort)
  known.all.add(waiting)
}

function unlisten(signal, waiting) {
  const known = listeners.get(signal)
  if (known?.all.delete(waiting) && known.all.size === 0) removeListener(signal, known.onAbort)
}

/** How tasks of workers are settled. */
function onCall(settle, progress) {
  settleCall = settle
  progressCall = progress
}

/** How tasks of processes are settled. */
function onProcess(settle) {
  settleProcess = settle
}

/** Calls that have no outcome. */
const inFlight = () => pending

/** Never throws: it is called between the results of other tasks. */
function removeListener(signal, listener) {
  try {
    signal.removeEventListener('abort', listener)
  } catch (error) {
    report(error)
  }
}

/** The error of a task whose signal was aborted, null when it was not. Never throws, as above: a signal may be anybody's object. */
function abortOf(signal) {
  try {
    return signal.aborted ? aborted(signal.reason) : null
  } catch (error) {
    report(error)
    return null
  }
}

/** An error of a listener, which is not the task's error: as from any event listener. */
function report(error) {
  queueMicrotask(() => {
    throw error
  })
}

function settle(entry, index, failed, value) {
  if (!failed) entry.onOutcome?.(index, native.poolTrace(entry.id, index))
  if (failed) {
    const error = value?.status === CANCELLED && entry.signal ? (abortOf(entry.signal) ?? value) : value
    entry.onOutcome?.(index, native.poolTrace(entry.id, index), { error })
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

/** Settles what is there, up to the budget; returns how much that was. */
function drain() {
  drainedAt = now()
  const count = native.poolDrain(records, scratch, values, budget)
  drained = count
  let plain = 0
  for (let at = 0, last = count * WORDS; at < last; at += WORDS) {
    const index = words[at]
    const entry = words[at + 1]
    const kind = words[at + 2]
    const a = words[at + 3]
    if (entry === CALLS) {
      if (kind > ERROR) progressCall(index, values[a])
      else if (kind === BYTES ? settleCall(index, false, scratchBuffer, a) : settleCall(index, kind === ERROR, values[a], 0)) plain++
      continue
    }
    if (entry === PROCESSES) {
      if (settleProcess(index, kind, kind === BYTES ? a : values[a], scratchBuffer)) plain++
      continue
    }
    let value
    if (kind === BYTES) value = scratch.slice(a, a + words[at + 4])
    else if (kind === NIL) value = null
    else value = values[a]
    if (entry === 0) {
      if (kind <= VALUE) resolves[index](value)
      else if (kind === ERROR) rejects[index](value)
      else continue
      release(index)
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
  // Behind the continuations of these results.
  if (count > MIN_BUDGET) resolved.then(measure)
  return count
}

/** Fits the budget to what the last drain and the code that waited for it took. */
function measure() {
  const took = now() - drainedAt
  if (took > TURN) budget = Math.max(MIN_BUDGET, drained >> 1)
  else if (drained === budget && took < TURN / 2) budget = Math.min(MAX_BUDGET, budget << 1)
}

function pollSoon() {
  if (polling) return
  polling = true
  setImmediate(poll)
}

function poll() {
  polling = false
  let more = true
  try {
    more = drain() > 0 || !native.poolArm()
  } finally {
    if (more) pollSoon()
  }
}

/** Called by native code on this thread: results are waiting (0), a pool has ended, or a ring is worth a look. */
function wake(note) {
  if (note === 0) {
    if (polling) return
    pollSoon()
    drain()
    return
  }
  watched.get(note)?.()
  const closed = closing.get(note)
  if (closed !== undefined) {
    closing.delete(note)
    end()
    closed()
  }
}

/** A number that native code may wake this environment with. */
const newNote = () => ++lastNote
const onNote = (note, call) => watched.set(note, call)
const offNote = (note) => watched.delete(note)

/** A promise for the end of a pool; `start(note)` begins it. */
function whenClosed(start) {
  return new Promise((resolve, reject) => {
    const note = newNote()
    closing.set(note, resolve)
    begin()
    flush()
    try {
      start(note)
    } catch (error) {
      closing.delete(note)
      end()
      reject(error)
    }
  })
}

native.hooks(wake, fromNative, unwrap, wrapBuffer, wrapError, (pairs) => new Map(pairs), unwrapError)

module.exports = {
  runPlain,
  flush,
  open,
  close,
  whenClosed,
  begin,
  end,
  newNote,
  onNote,
  offNote,
  listen,
  unlisten,
  abortOf,
  report,
  onCall,
  onProcess,
  inFlight,
}

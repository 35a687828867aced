'use strict'
// The thread of a worker of a WorkerPool: loads the user's file, then takes tasks from the core and runs them, several per call.
//
// The board (core/src/pool/looped.rs) has a word per task: this thread begins one by its CAS, and stores that it has ended; bytes of
// results lie there until the core has collected them. It sleeps in its own event loop, so timers and sockets of the user's code go on.

const threads = require('node:worker_threads')
const { syncBuiltinESMExports } = require('node:module')
const { setImmediate, setTimeout, now } = require('./clock.cjs')
const native = require('./native.cjs')
const { fail } = require('./error.cjs')
const { newNote, onNote, report } = require('./completion.cjs')
const {
  encode,
  encodeInto,
  takeMoving,
  refuseBuffers,
  written,
  shrink,
  decode,
  unserializable,
  unreadable,
  BESIDE,
  FAILED,
} = require('./codec.cjs')
const { sending, unwrap } = require('./stream.cjs')
const inline = require('./inline.cjs')
const functions = require('./functions.cjs')
const { beginMove, endMove } = require('./buffer.cjs')
const { movedIn } = require('./move.cjs')
const { promiseOf, whenSettled } = require('./settle.cjs')
const tasks = require('./task.cjs')

const { READY, CLAIMED, REVOKED, CANCELLED, LATE, DONE, FAILED: THREW } = native.workerWords()
// Flags of a task; the same numbers as in src/worker.rs and lib/workers.cjs.
const BEGUN = 1
const BIG = 2
const SPREAD = 4
const FETCH = 8
const STREAM = 16
const BUFFERS = 32
// What an exchange returns in place of a number of tasks.
const LEAVE = -2
/** 32-bit words per task. */
const RECORD = 5
/** Longest time in ms without a turn of the loop, as far as single tasks allow. */
const TURN = 1

const { id, url, concurrency, idleTimeout, context, port } = threads.workerData
threads.workerData = threads.workerData.workerData
syncBuiltinESMExports()

const inbox = Buffer.allocUnsafeSlow(64 * 1024)
const records = new Uint32Array(inbox.buffer, 0, inbox.length >> 2)
const big = []

let seat
let board
let runTimes
let places
let out
let loaded
const files = new functions.Files(context)
/** Functions by number. */
const known = []

/** The next record of the inbox, and how many there are. */
let next = 0
let total = 0
let outAt = 0
/** Functions whose promise is pending, and arguments that are under way. */
let running = 0
let turnStart = 0
let soon = false
let gone = false
let idleSince = 0
/** Calls that wait for their argument, by their number in the board. */
const fetching = new Map()
let lastBeside = 0

function functionOf(number) {
  if (known[number] !== undefined) return known[number]
  const name = native.workerExport(seat, number)
  if (name.startsWith(inline.IN_FILE)) {
    return files.functionOf(...inline.partsOf(name), (found) => {
      known[number] = found
    })
  }
  if (name.startsWith(inline.INLINE)) {
    known[number] = inline.functionOf(name.slice(inline.INLINE.length))
    return known[number]
  }
  const found = functions.functionOf(loaded, name)
  known[number] = found
  return found
}

/** Puts the end of a task on the board; `took` in ms. */
function finish(index, failed, value, took) {
  let last
  if (failed) {
    last = outAt < out.length ? writeError(value) : null
  } else {
    let list
    try {
      list = movedIn(value)
      last = list === null ? encodeInto(out, value, outAt, out.length) : false
    } catch (error) {
      return finish(index, true, unserializable('result', value, error), took)
    }
    if (last !== false && takeMoving() !== null) return finishMoving(index, value, took)
    if (last === false) {
      try {
        refuseBuffers(value)
        last = postResult(value, list)
      } catch (error) {
        return finish(index, true, unserializable('result', value, error), took)
      }
    }
  }
  if (last === null) return finishLarge(index, failed, value, took)
  runTimes[index] = took * 1e6
  places[index * 2] = outAt
  places[index * 2 + 1] = last - outAt
  outAt = last
  Atomics.store(board, index, failed ? THREW : DONE)
}

function writeError(error) {
  out[outAt] = FAILED
  try {
    const last = encodeInto(out, error, outAt + 1, out.length)
    if (last !== false) return last
  } catch {
    // A getter of it: what can be said of it is said.
  }
  return encodeInto(out, functions.shown(error), outAt + 1, out.length)
}

/** A result that only a message can carry. */
function postResult(value, list) {
  if (outAt + 9 > out.length) return null
  // Without gaps: the number of one that cannot be read there is that of the next one.
  port.postMessage({ kind: 'result', value }, list ?? [])
  lastBeside++
  out[outAt] = BESIDE
  out.writeUInt32LE(id, outAt + 1)
  out.writeUInt32LE(lastBeside, outAt + 5)
  return outAt + 9
}

/** The board has no room for it: what is there is collected, and it tries again, or goes by itself. */
function finishLarge(index, failed, value, took) {
  if (outAt > 0) {
    native.workerExchange(seat, inbox, big, false)
    outAt = 0
    return finish(index, failed, value, took)
  }
  let last
  if (failed) {
    try {
      last = encode(value, 1)
    } catch {
      last = false
    }
    if (last === false) last = encode(functions.shown(value), 1)
    written()[0] = FAILED
  } else {
    last = encode(value, 0)
    if (takeMoving() !== null) return finishMoving(index, value, took)
  }
  native.workerFinish(seat, index, failed, took * 1e6, written().subarray(0, last))
  shrink()
}

/** A result with TransferBuffers, which move with it. */
function finishMoving(index, value, took) {
  const last = encode(value, 0)
  const buffers = takeMoving()
  try {
    native.workerFinish(seat, index, false, took * 1e6, written().subarray(0, last), buffers.map(beginMove))
  } catch (error) {
    // One of them was detached before: nothing has moved.
    return finish(index, true, unserializable('result', value, error), took)
  } finally {
    shrink()
  }
  buffers.forEach(endMove)
}

/** Runs what is in the inbox until it is empty, all places are taken, or the loop should turn. */
function step() {
  let started = now()
  while (next < total && running < concurrency) {
    if (started - turnStart > TURN) return yieldTurn()
    const at = next++ * RECORD
    const index = records[at]
    const flags = records[at + 2]
    // Taken back; what was handed out as begun may have ended on the way here.
    if ((flags & BEGUN) === 0 ? Atomics.compareExchange(board, index, READY, CLAIMED) !== READY : Atomics.load(board, index) === REVOKED) {
      continue
    }
    if ((flags & FETCH) !== 0) {
      running++
      fetching.set(index, { number: records[at + 1], flags, started })
      port.postMessage({ kind: 'fetch', index, value: inbox.readUInt32LE(records[at + 3]) })
    } else {
      begin(index, records[at + 1], flags, at, started)
    }
    started = now()
  }
}

const buffersOf = (index, flags) => ((flags & BUFFERS) === 0 ? null : native.workerBuffers(seat, index))

function begin(index, number, flags, at, started) {
  let value
  try {
    if ((flags & BIG) !== 0) {
      const bytes = big[records[at + 3]]
      big[records[at + 3]] = undefined
      value = decode(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength), 0, buffersOf(index, flags))
    } else {
      value = decode(inbox, records[at + 3], buffersOf(index, flags))
    }
  } catch (error) {
    return finish(index, true, unreadable('argument', error), now() - started)
  }
  call(index, number, flags, value, started)
}

function call(index, number, flags, value, started) {
  let result
  const task = tasks.storage === null ? null : new tasks.Task(board, index, CANCELLED, LATE, context)
  try {
    const f = functionOf(number)
    if (task === null) {
      if ((flags & SPREAD) === 0) result = f(value)
      else result = value.length === 1 ? f(value[0]) : f(...value)
    } else result = tasks.run(task, f, (flags & SPREAD) !== 0 ? value : [value])
    const promise = promiseOf(result)
    if (promise !== null) {
      whenSettled(
        promise,
        (value) => settled(index, false, value, started, task),
        (error) => settled(index, true, error, started, task),
      )
      running++
      return
    }
  } catch (error) {
    task?.end()
    return finish(index, true, error, now() - started)
  }
  task?.end()
  finish(index, false, result, now() - started)
}

/** A task whose values go one by one, by a port of its own. */
function send(index, number, message, started) {
  const task = tasks.storage === null ? null : new tasks.Task(board, index, CANCELLED, LATE, context)
  const run = task === null ? (f) => f() : (f) => tasks.run(task, f, [])
  const isStopped = () => Atomics.load(board, index) !== CLAIMED
  running++
  sending(message, () => functionOf(number)(unwrap(message.task, 'argument')), run, isStopped).then(
    (sent) => settled(index, false, sent, started, task),
    (error) => settled(index, true, error, started, task),
  )
}

function settled(index, failed, value, started, task) {
  running--
  task?.end()
  finish(index, failed, value, now() - started)
  if (gone) return
  // The next one of the inbox begins at once; more are asked for once for all that settle now.
  if (next < total) step()
  if (next >= total) pumpSoon()
}

const resolved = Promise.resolve()
function pumpSoon() {
  if (soon) return
  soon = true
  resolved.then(() => {
    soon = false
    if (now() - turnStart > TURN) yieldTurn()
    else pump()
  })
}

let yielding = false
/** The loop turns before the next task; results do not wait for that. */
function yieldTurn() {
  if (yielding) return
  yielding = true
  if (outAt > 0) {
    native.workerExchange(seat, inbox, big, false)
    outAt = 0
  }
  setImmediate(onTurn)
}

function onTurn() {
  yielding = false
  turnStart = now()
  pump()
}

/** Gives results and takes tasks until there are none. */
function pump() {
  if (gone || yielding) return
  for (;;) {
    if (next < total) {
      step()
      if (next < total) return flushResults()
    }
    if (yielding) return
    const taken = native.workerExchange(seat, inbox, big, running < concurrency)
    outAt = 0
    if (taken <= 0) {
      if (taken === LEAVE && running === 0) leave()
      idleSince = now()
      return
    }
    next = 0
    total = taken
  }
}

/** All places are taken by promises: what has ended meanwhile is given. */
function flushResults() {
  if (outAt === 0 || yielding) return
  native.workerExchange(seat, inbox, big, false)
  outAt = 0
}

/** Called when the core has work, or cancelled some. */
function wake() {
  if (gone) return
  try {
    tasks.poll()
    turnStart = now()
    pump()
  } catch (error) {
    // Not lost in native code, which called this: it ends the worker.
    report(error)
  }
}

function tellProgress(index, value) {
  const last = encode(value, 0)
  if (last === false || takeMoving() !== null) throw unserializable('progress', value)
  native.workerProgress(seat, index, written().subarray(0, last))
  shrink()
}

function watchIdle() {
  const left = idleTimeout - (now() - idleSince)
  const timer = setTimeout(
    () => {
      if (gone) return
      if (running === 0 && next >= total && now() - idleSince >= idleTimeout && native.workerRetire(seat)) leave()
      else {
        if (now() - idleSince >= idleTimeout) idleSince = now()
        watchIdle()
      }
    },
    Math.max(1, left),
  )
  timer.unref()
}

async function leave() {
  gone = true
  port.postMessage({ kind: 'leaving' })
  try {
    await functions.hookOf(loaded, 'teardown')?.(context)
    await files.teardown()
  } finally {
    process.exit()
  }
}

port.on('message', (message) => {
  const { number, flags, started } = fetching.get(message.index)
  fetching.delete(message.index)
  running--
  if (message.port === null) {
    finish(message.index, true, fail('Cancelled', 'nobody waits for the task'), 0)
  } else {
    let value
    let refused = null
    try {
      value = threads.receiveMessageOnPort(message.port).message
    } catch (error) {
      refused = unreadable('argument', error)
    }
    message.port.close()
    if (refused !== null) finish(message.index, true, refused, now() - started)
    else if ((flags & STREAM) !== 0) send(message.index, number, value, started)
    else call(message.index, number, flags, value, started)
  }
  turnStart = now()
  pump()
})

async function start() {
  tasks.isWorker = true
  tasks.progress = tellProgress
  loaded = await functions.load(url)
  await functions.hookOf(loaded, 'init')?.(context)
  const note = newNote()
  onNote(note, wake)
  seat = native.workerSit(id, note)
  const parts = native.workerBoard(seat)
  if (parts === null) throw fail('Unsupported', 'this runtime has no memory outside of its heap, which a WorkerPool needs')
  const [memory, size, outLength] = parts
  board = new Int32Array(memory, 0, size)
  runTimes = new Float64Array(memory, size * 4, size)
  places = new Uint32Array(memory, size * 12, size * 2)
  out = Buffer.from(memory, memory.byteLength - outLength, outLength)
  port.postMessage({ kind: 'ready' })
  idleSince = turnStart = now()
  watchIdle()
  pump()
}

start().catch((error) => {
  // As an error that nobody caught: the pool hears of it by the thread's `error` and `exit`.
  setImmediate(() => {
    throw error
  })
})

'use strict'
// `stream` of a WorkerPool: values of a generator of a worker file, as they are taken.
//
//   caller: reading ──── a task, as any other call ────► worker: sending ── next() ──► the generator
//      ▲   └──────────── { more: n } | { stop } ───────────────► │
//      └──── { bytes } | { value } … { end, failed } ────────────┘         a port of their own
//
// A value is sent before the next one is made, which may take any time.
//
// The task ends with the generator: deadlines, the signal and the loss of the worker are those of the task. The port has the order: what came
// before an error of the generator is taken before it. Such an error goes by the port, and the task fails with null in its place.

const { MessageChannel } = require('node:worker_threads')
const { setImmediate, now } = require('./clock.cjs')
const { fail, typeName } = require('./error.cjs')
const { bell } = require('./mapping.cjs')
const { movedIn } = require('./move.cjs')
const { shown } = require('./functions.cjs')
const { checkNext } = require('./settle.cjs')
const { encode, takeMoving, refuseBuffers, written, shrink, decode, unserializable, unreadable } = require('./codec.cjs')

/** Longest time in ms without a turn of the worker's loop, as far as the generator allows. */
const TURN = 1

const copyOf = (last) => Uint8Array.prototype.slice.call(written(), 0, last)
const bufferOf = (bytes) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)

/** A value as it travels: bytes of the codec, or itself where only a message can carry it. */
function wrap(value) {
  const last = encode(value, 0)
  if (last === false || takeMoving() !== null) refuseBuffers(value)
  const wrapped = last === false ? { value } : { bytes: copyOf(last) }
  shrink()
  return wrapped
}
/** The value of what `wrap` gave; `what` it is goes into the error. `unread` is why the runtime could not read it. */
function unwrap({ bytes, value, unread }, what) {
  if (unread !== undefined) throw unreadable(what, unread)
  if (bytes === undefined) return value
  try {
    return decode(bufferOf(bytes), 0)
  } catch (error) {
    throw unreadable(what, error)
  }
}

/** Values of the generator that `start(message, ports)` calls; at most `window` of them are made ahead. `leaving` as in lib/leaving.cjs. */
async function* reading(start, window, leaving) {
  const { port1: port, port2 } = new MessageChannel()
  const line = []
  const { came } = leaving
  let end = null
  let closed = false
  let outcome = null
  let taken = 0
  port.on('message', (message) => {
    if (message.end) end = message
    else line.push(message)
    came.ring()
  })
  port.on('messageerror', (unread) => {
    line.push({ unread })
    came.ring()
  })
  port.on('close', () => {
    closed = true
    came.ring()
  })
  const settled = start({ port: port2, window }, [port2]).then(
    () => {
      outcome = { failed: false }
      came.ring()
    },
    (error) => {
      outcome = { failed: true, error }
      came.ring()
    },
  )

  // The other end of a port that is closed stops.
  leaving.onDrop(() => port.close())
  /** Whether it is over; throws what ended it. */
  const isOver = async () => {
    if (end === null) {
      if (outcome === null) return false
      // What a lost worker sent before is still on its way, and so is the end of one that is done.
      const more = !outcome.failed || outcome.error === null || outcome.error.code === 'ERR_OFFLOOP_WORKER_LOST'
      if (more && !closed) return false
    }
    await settled
    if (outcome.failed && outcome.error !== null) throw outcome.error
    if (end === null) throw fail('WorkerLost', 'the worker ended before its stream did')
    if (end.failed) throw unwrap(end, 'error')
    return true
  }

  try {
    while (!leaving.isLeft) {
      if (line.length > 0) {
        const value = unwrap(line.shift(), 'yielded value')
        if (++taken * 2 >= window) {
          port.postMessage({ more: taken })
          taken = 0
        }
        yield value
      } else if (await isOver()) return
      else if (line.length === 0) await came.wait()
    }
  } finally {
    leaving.over()
    // Left early: the generator's own `finally` has run before this goes on, and what that throws is thrown here.
    if (end === null && outcome === null) {
      port.postMessage({ stop: true })
      try {
        await leaving.until(isOver)
      } finally {
        port.close()
      }
    } else port.close()
  }
}

/**
 * Gives a sink what the generator that `make()` gives yields, until it ends or `sink.isStopped()`; `sink.wait()` comes before a value for which it
 * has no room, and `sink.add(value)` throws for one that cannot travel. `run(f)` calls code of the user. Never rejects: the error is in the result.
 */
async function generate(make, run, sink) {
  const result = { failed: false, error: undefined, given: 0 }
  let iterator = null
  try {
    let made = run(make)
    if (typeof made?.then === 'function') made = await made
    iterator = run(() => made?.[Symbol.asyncIterator]?.() ?? made?.[Symbol.iterator]?.() ?? null)
    if (iterator === null) throw fail('Invalid', 'function of a stream gave nothing to iterate over', { got: typeName(made) })
    let since = now()
    while (!sink.isStopped()) {
      if (!sink.hasRoom()) {
        await sink.wait()
        since = now()
        continue
      }
      let next
      try {
        next = run(() => iterator.next())
        if (typeof next?.then === 'function') {
          next = await next
          since = now()
        }
        checkNext(next)
      } catch (thrown) {
        // It is over by itself.
        iterator = null
        throw thrown
      }
      if (next.done) {
        iterator = null
        break
      }
      sink.add(typeof next.value?.then === 'function' ? await next.value : next.value)
      result.given++
      if (now() - since > TURN) {
        await new Promise(setImmediate)
        since = now()
      }
    }
  } catch (thrown) {
    result.failed = true
    result.error = thrown
  }
  try {
    if (iterator !== null) await run(() => iterator.return?.())
  } catch (thrown) {
    // The first error is the one that is told.
    if (!result.failed) result.error = thrown
    result.failed = true
  }
  return result
}

/**
 * Sends what the generator that `make()` gives yields, until it ends or `isStopped()`. Resolves to how many values that were; rejects with null when
 * the error is on its way by the port.
 */
async function sending({ port, window }, make, run, isStopped) {
  const told = bell()
  let credit = window
  let stop = false
  port.on('message', ({ more, stop: stops }) => {
    if (stops) stop = true
    else credit += more
    told.ring()
  })
  port.on('close', () => {
    stop = true
    told.ring()
  })
  const { failed, error, given } = await generate(make, run, {
    isStopped: () => stop || isStopped(),
    hasRoom: () => credit > 0,
    wait: told.wait,
    add(value) {
      credit--
      const list = movedIn(value)
      try {
        port.postMessage(list === null ? wrap(value) : { value }, list ?? [])
      } catch (error) {
        throw unserializable('yielded value', value, error)
      }
    },
  })
  // One that was cancelled has its outcome already.
  if (!isStopped()) port.postMessage({ end: true, failed, ...(failed ? wrapError(error) : {}) })
  port.close()
  if (failed) throw null
  return given
}

function wrapError(error) {
  try {
    const wrapped = wrap(error)
    if (wrapped.bytes !== undefined) return wrapped
    structuredClone(error)
    return wrapped
  } catch {
    return wrap(shown(error))
  }
}

module.exports = { reading, sending, generate, wrap, unwrap }

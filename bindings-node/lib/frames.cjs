'use strict'
// `stream` of a ProcessPool: values of a generator in a worker process, as they are taken. Both sides of it.
//
//   caller: reading ◄── a frame of records, one per value ── worker: Sink ◄── generate ── the generator
//              └─────────────── "taken", "stop" ───────────────► │
//
// One frame is on its way until the caller has read all of the one before and wants more (core/src/pool/lane/stream.rs); what the generator yields
// meanwhile goes into the next one. The task's outcome, the error of the generator too, comes after the last frame.

const { isUint8Array } = require('node:util').types
const native = require('./native.cjs')
const { newNote, onNote, offNote } = require('./completion.cjs')
const { unreadable } = require('./codec.cjs')
const { takeAway } = require('./buffer.cjs')
const { bell } = require('./mapping.cjs')
const { memoryOf, detach } = require('./move.cjs')
const { Writer, views, moved, readParts, NODE } = require('./frame.cjs')

// Kinds of records; the same numbers as in src/pool.rs.
const THROWN = 5
const FRAME = 6
// What has become of the last frame; the same numbers as in src/process.rs.
const UNWANTED = 0
const TAKEN = 2

function valueIn(kind, value) {
  if (kind === THROWN) throw value
  if (kind !== FRAME) return value
  try {
    return readParts(value)
  } catch (error) {
    throw unreadable('yielded value', error)
  }
}

/** Values of the generator; `submit(stream)` begins it and gives the promise of its task. `leaving` as in lib/leaving.cjs. */
async function* reading(submit, leaving) {
  const { came } = leaving
  const note = newNote()
  onNote(note, came.ring)
  const stream = native.streamNew(note)
  let outcome = null
  submit(stream).then(
    () => {
      outcome = { failed: false }
      came.ring()
    },
    (error) => {
      outcome = { failed: true, error }
      came.ring()
    },
  )
  leaving.onDrop(() => {
    native.streamStop(stream)
    offNote(note)
  })
  const isOver = () => {
    if (outcome?.failed) throw outcome.error
    return outcome !== null
  }
  /** Kinds and values by turns. */
  let line = []
  let at = 0
  try {
    while (!leaving.isLeft) {
      if (at < line.length) {
        at += 2
        yield valueIn(line[at - 2], line[at - 1])
        continue
      }
      // Before the look: there is no frame after an outcome.
      const over = outcome
      line = native.streamTake(stream)
      at = 0
      if (line.length > 0) continue
      if (over === null) await came.wait()
      else if (over.failed) throw over.error
      else return
    }
  } finally {
    leaving.over()
    try {
      // Left early: the generator's own `finally` has run before this goes on, and what that throws is thrown here.
      if (outcome === null) {
        native.streamStop(stream)
        await leaving.until(isOver)
      }
    } finally {
      offNote(note)
    }
  }
}

const writer = new Writer()
const copyOf = (bytes) => Uint8Array.prototype.slice.call(bytes)

/** What the generator of one task yields, on its way to the caller. */
class Sink {
  #desk
  #index
  #window
  #isCommon
  #told = bell()
  /** Records that could not be sent yet, and their parts. */
  #records = []
  #parts = []
  /** Values in the last frame, and in the one before, of which the caller has at least one. */
  #sent = 0
  #before = 1
  /** Why nothing more can be sent. */
  #error = null
  /** At most `window` values are made beyond those that the caller has. */
  constructor(desk, index, window, isCommon) {
    this.#desk = desk
    this.#index = index
    this.#window = window
    this.#isCommon = isCommon
  }

  isStopped() {
    return native.processStreamed(this.#desk, this.#index) === UNWANTED
  }

  hasRoom() {
    if (this.#error !== null) throw this.#error
    let made = this.#sent + this.#records.length
    if (this.#sent === 0) return made < this.#window
    if (native.processStreamed(this.#desk, this.#index) === TAKEN) made--
    else made += this.#before - 1
    return made < this.#window
  }

  wait() {
    return this.#told.wait()
  }

  add(value) {
    const memory = memoryOf(value)
    let record
    let parts = null
    if (this.#isCommon) record = native.processEncode(value)
    else {
      const last = writer.write(0, NODE, 0, null, value, 'yielded value')
      record = writer.memory.subarray(0, last)
      parts = writer.takeParts()
    }
    try {
      if (this.#records.length === 0 && this.#send([record], [views(parts)])) {
        moved(parts)
        detach(memory)
        return
      }
      // What the generator does with it from now on is not seen.
      this.#records.push(copyOf(record))
      this.#parts.push(parts?.map((part) => (isUint8Array(part) ? copyOf(part) : takeAway(part))))
      detach(memory)
    } finally {
      writer.shrink()
    }
  }

  #send(records, parts) {
    if (native.processFrame(this.#desk, this.#index, records, parts) !== TAKEN) return false
    this.#before = Math.max(1, this.#sent)
    this.#sent = records.length
    return true
  }

  /** Called when the caller may have taken a frame, or has gone. */
  poll() {
    try {
      if (this.#records.length > 0 && this.#send(this.#records, this.#parts)) this.#drop()
    } catch (error) {
      // No memory for so much.
      this.#error = error
      this.#drop()
    }
    this.#told.ring()
  }

  #drop() {
    this.#records = []
    this.#parts = []
  }

  /** Resolves when everything is sent, or nobody takes it. */
  async flush() {
    while (this.#records.length > 0 && !this.isStopped()) {
      this.poll()
      if (this.#records.length > 0) await this.wait()
    }
    if (this.#error !== null) throw this.#error
  }
}

module.exports = { reading, Sink }

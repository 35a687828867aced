'use strict'
// The consumer of an mpmc ring: the core takes the records, and passes them on through the stage, memory of this handle.
//
// `pop` takes one: what was taken ahead would lie here while another consumer is idle. `read` is told how many its caller wants,
// so it takes as many in one call. Those that the callback does not come to go to others.

const native = require('./native.cjs')
const { fail } = require('./error.cjs')
const { layout, copyOut } = require('./lane.cjs')

const BEGIN = layout.stageBegin
const HEADER = layout.stageHeader
/** Records that one call passes on, at most: half of what a consumer may hold. */
const MAX_RECORDS = 64
/** Bytes of a stage, unless one record needs more. */
const STAGE = 64 << 10
/** The longest record for which a stage is kept. */
const MAX_STAGED = 1 << 20

class SlotReader {
  /** `deliver(bytes, redelivered, delivery)` makes what is given of a record that is to be acknowledged; without it, that is its bytes. */
  constructor(handle, memory, batch, deliver) {
    this.handle = handle
    this.memory = memory
    this.bytes = new Uint8Array(memory)
    this.words = new Int32Array(memory)
    this.batch = batch
    this.deliver = deliver
  }

  take() {
    this.checkMemory()
    if (!native.consumerPop(this.handle)) return null
    const record = this.copy(BEGIN)
    return this.deliver === undefined ? record : this.deliver(record, this.isMarked(BEGIN), this.delivery(BEGIN))
  }

  glance() {
    return this.take()
  }

  show(fn, more, max) {
    this.checkMemory()
    let count
    try {
      count = native.consumerRead(this.handle, Math.min(max, this.batch))
    } catch (error) {
      // Told again by the next call, which then has nothing else to tell.
      if (more) return 0
      throw error
    }
    let shown = 0
    let at = BEGIN
    try {
      while (shown < count) {
        const here = at
        at += this.sizeAt(here)
        // Who ends in the middle, ends here: src/ring.rs.
        this.words[0] = ++shown
        const goesOn = this.showAt(here, fn)
        this.checkMemory()
        if (!goesOn) break
      }
    } finally {
      if (count > 0) this.end(at, count - shown)
    }
    return shown
  }

  showAt(at, fn) {
    const marked = this.isMarked(at)
    if (this.deliver !== undefined) return fn(this.deliver(this.copy(at), marked, this.delivery(at)), marked)
    return fn(new Uint8Array(this.memory, at + HEADER, this.words[at >> 2]), marked)
  }

  /** The records from `at` on, `unseen` of them, go to others. */
  end(at, unseen) {
    if (this.deliver !== undefined && this.words.length > 0) {
      // What was shown is in its receiver's hands.
      for (let i = 0; i < unseen; i++, at += this.sizeAt(at)) native.consumerNack(this.handle, this.delivery(at))
    }
    native.consumerReadDone(this.handle, unseen)
  }

  copy(at) {
    return copyOut(this.bytes, this.words, at + HEADER, this.words[at >> 2])
  }

  sizeAt(at) {
    return sizeOf(this.words[at >> 2])
  }

  isMarked(at) {
    return this.words[(at >> 2) + 1] === 1
  }

  delivery(at) {
    // Deliveries of one consumer are counted, so they stay exact.
    return (this.words[(at >> 2) + 2] >>> 0) + (this.words[(at >> 2) + 3] >>> 0) * 2 ** 32
  }

  checkMemory() {
    if (this.words.length === 0) throw fail('Detached', 'memory of the ring was transferred away')
  }
}

const sizeOf = (length) => HEADER + ((length + layout.align - 1) & -layout.align)

/** Null where only a native call per record can do it. */
function openSlotReader(handle, maxLength, deliver) {
  if (maxLength > MAX_STAGED) return null
  const size = sizeOf(maxLength)
  const batch = Math.max(1, Math.min(MAX_RECORDS, Math.trunc(STAGE / size)))
  const memory = native.consumerStage(handle, BEGIN + batch * size)
  return memory && new SlotReader(handle, memory, batch, deliver)
}

module.exports = { openSlotReader }

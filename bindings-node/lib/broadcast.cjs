'use strict'
// A lane with one writer and many readers: a broadcast ring.
//
// The same protocol as core/src/ring/broadcast.rs. What the writer may overwrite is bounded by its gate, its own seat's `head`.
// In a lossless ring the core moves it, when a push runs into it, and readers are those of any lane. In one that overwrites, the
// writer moves it itself, past the oldest records, before it writes; a reader copies first and believes its copy only if the gate
// is not beyond the record then. Numbers of lost records come from positions and record numbers that are stored together, as one
// 64-bit word.

const native = require('./native.cjs')
const {
  layout,
  STATE,
  POISONED,
  HEADER,
  DATA,
  PAD,
  MISALIGNED,
  AT,
  COUNT,
  PUBLISHED,
  PEER,
  HIGH,
  NOTHING,
  ASK,
  extentOf,
  copyOut,
  LaneWriter,
  LaneReader,
} = require('./lane.cjs')

const MEMBERS = layout.members >> 2

/** A position and a record number as one word. */
const mark = new BigInt64Array(1)
const markWords = new Int32Array(mark.buffer)

function markOf(at, count) {
  markWords[0] = at
  markWords[1] = count
  return mark[0]
}

class BroadcastWriter extends LaneWriter {
  constructor(handle, mapping, own, where, batch) {
    super(handle, mapping, own, where, batch)
    this.longs = mapping.longs
    this.seats = Array.from({ length: mapping.seats - 1 }, (_, i) => ({
      status: mapping.seatWord(i + 1, 'status'),
      waiting: mapping.seatWord(i + 1, 'waiting'),
    }))
    /** Where living readers say that they sleep, as of this value of `members`. */
    this.readers = []
    this.members = undefined
  }

  readerSleeps() {
    // Who has come meanwhile may sleep already.
    return Atomics.load(this.words, MEMBERS) !== this.members || this.isAsleep()
  }

  isAsleep() {
    for (let i = 0; i < this.readers.length; i++) if (Atomics.load(this.words, this.readers[i]) !== 0) return true
    return false
  }

  tell() {
    // W3. A reader that came and sleeps already is in the list, or has seen what was published.
    const members = Atomics.load(this.words, MEMBERS)
    if (members !== this.members) this.lookForReaders(members)
    if (this.isAsleep()) native.ringWake(this.handle, 0)
  }

  lookForReaders(members) {
    const lives = ({ status }) => (Atomics.load(this.words, status) & 3) === layout.live
    this.readers = this.seats.filter(lives).map(({ waiting }) => waiting)
    this.members = members
  }
}

class OverwritingWriter extends BroadcastWriter {
  storeMark(word, at, count) {
    Atomics.store(this.longs, word >> 1, markOf(at, count))
  }

  /** Moves the gate past the oldest records. */
  refresh(_tail, need) {
    // What is committed and not published cannot be overwritten.
    this.publish()
    const { words, own, capacity, mask, data, maxLength } = this
    const published = own[PUBLISHED]
    let at = words[this.head]
    let count = words[this.head + 1]
    for (;;) {
      const held = (published - at) >>> 0
      if (held > capacity || (held & MISALIGNED) !== 0) return false
      if (capacity - held >= need) break
      const offset = at & mask
      const length = words[(data + offset) >> 2]
      const kind = words[(data + offset + 4) >> 2]
      let extent
      if (kind === PAD && length === capacity - offset - HEADER) {
        extent = capacity - offset
      } else if (kind === DATA && length >= 0 && length <= maxLength) {
        extent = extentOf(length)
        count++
      } else {
        return false
      }
      if (extent > held) return false
      at = (at + extent) | 0
    }
    // G2: the gate is seen to move before a byte changes. The load keeps what is written next behind the store.
    Atomics.store(this.longs, this.head >> 1, markOf(at, count))
    Atomics.load(words, this.head)
    own[PEER] = at
    return true
  }
}

/** A word of this thread's own: a store and then a load keep what was read before it in front of what is read after it. */
const between = new Int32Array(1)

class CopyingReader extends LaneReader {
  constructor(handle, mapping, own, where) {
    super(handle, mapping, own, where)
    this.gate = mapping.seatWord(where.writer, 'head')
    /** Bytes before the record that a look found. */
    this.pad = 0
  }

  take() {
    const record = this.glance()
    if (record !== null) return record
    // Nothing is there, or the reader was lapped, which the core counts.
    this.checkMemory()
    const taken = native.consumerTake(this.handle)
    return taken === null ? null : taken[0]
  }

  glance() {
    const at = this.look()
    if (at < 0) return null
    const { own, length } = this
    const record = copyOut(this.bytes, this.words, at, length)
    if (!this.isIntact()) return null
    own[AT] += this.pad + extentOf(length)
    own[COUNT]++
    return record
  }

  show(fn, more) {
    const record = more ? this.glance() : this.take()
    if (record === null) return 0
    fn(record, false)
    return 1
  }

  look() {
    const { words, own, capacity, mask, data } = this
    if ((words[STATE] & POISONED) !== 0) return ASK
    const at = own[AT]
    // C1.
    const ready = (Atomics.load(words, this.tail) - at) >>> 0
    const high = words[this.high]
    if ((high - own[HIGH]) >>> 0 > 1 || ready > capacity || (ready & MISALIGNED) !== 0) return ASK
    // The half-turn that this place is in: `high` is that, or already the next.
    own[HIGH] = high - ((high ^ (at >>> 31)) & 1)
    if (ready === 0) return NOTHING
    let offset = at & mask
    let length = words[(data + offset) >> 2]
    let kind = words[(data + offset + 4) >> 2]
    this.pad = 0
    if (kind === PAD) {
      const room = capacity - offset
      if (length !== room - HEADER || room >= ready) return ASK
      this.pad = room
      offset = 0
      length = words[data >> 2]
      kind = words[(data + 4) >> 2]
    }
    if (kind !== DATA || length < 0 || length > this.maxLength) return ASK
    const extent = extentOf(length)
    if (extent > ready - this.pad || extent > capacity - offset) return ASK
    this.length = length
    return data + offset + HEADER
  }

  /** Nothing that was read since `look` began has been overwritten. */
  isIntact() {
    const { words, own } = this
    // G2: pairs with the store of the gate.
    Atomics.store(between, 0, 0)
    const gate = Atomics.load(words, this.gate)
    return (words[this.high] - own[HIGH]) >>> 0 <= 1 && (own[AT] - gate) >>> 0 <= this.capacity
  }
}

module.exports = { BroadcastWriter, OverwritingWriter, CopyingReader }

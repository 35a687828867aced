'use strict'
// The lanes of an mpsc ring: each producer has one of its own, the consumer reads them in turn.
//
// As core/src/ring/input.rs does: at most 32 records from one lane before the next; a bit per lane in `ready` hints at news, and
// because a hint can be lost, every lane is looked at before it is said that there is nothing, and every so many times anyway.

const native = require('./native.cjs')
const { layout, STATE, POISONED, ASK, MAX_DOUBTS, restless, LaneWriter, LaneReader } = require('./lane.cjs')

const READY = layout.ready >> 2
const OWN = layout.ownWords

/** The producer of one of many lanes. */
class ManyWriter extends LaneWriter {
  constructor(handle, mapping, own, where, batch) {
    super(handle, mapping, own, where, batch)
    this.ready = READY + (this.lane >> 5)
    this.bit = 1 << (this.lane & 31)
  }

  tell() {
    // A hint, which may be lost; who sets it, sets it after publishing.
    if ((this.words[this.ready] & this.bit) === 0) Atomics.or(this.words, this.ready, this.bit)
    super.tell()
  }
}

class ManyReader {
  constructor(handle, mapping, own) {
    this.handle = handle
    this.words = mapping.words
    this.lanes = Array.from({ length: mapping.seats - 1 }, (_, lane) => {
      const seat = lane + 1
      const words = new Int32Array(own.buffer, lane * OWN * 4, OWN)
      return new LaneReader(handle, mapping, words, { lane, writer: seat, reader: seat, peer: seat })
    })
    /** Bit i: lane i may have something. */
    this.pending = new Int32Array(2)
    /** The lane whose turn it is, and how many records it has had. */
    this.turn = 0
    this.taken = 0
    this.refills = 0
    /** Where the record lies that the last look found. */
    this.at = ASK
  }

  take() {
    return this.copy(this.find())
  }

  glance() {
    return this.copy(this.look())
  }

  copy(lane) {
    if (lane === null) return null
    this.taken++
    return lane.copy(this.at)
  }

  show(fn, more) {
    const lane = more ? this.look() : this.find()
    if (lane === null) return 0
    this.taken++
    lane.showAt(this.at, fn)
    return 1
  }

  /** The lane with the next record, which lies at `at`; null when there is none. */
  find() {
    for (let doubts = 0; ; doubts++) {
      const lane = this.look()
      if (lane !== null) return lane
      this.lanes[0].checkMemory()
      if (!native.consumerFind(this.handle, this.turn)) return null
      if (doubts === MAX_DOUBTS) throw restless()
    }
  }

  /** As `find`, but null also when the core must look, at the lane whose turn it is. */
  look() {
    if ((this.words[STATE] & POISONED) !== 0) return null
    const { pending, lanes } = this
    let lookedAtAll = false
    for (;;) {
      if ((pending[0] | pending[1]) === 0) {
        if (lookedAtAll) return null
        lookedAtAll = this.refill()
      }
      if (this.taken >= layout.turn || !this.isPending(this.turn)) this.nextTurn()
      const lane = lanes[this.turn]
      this.at = lane.look()
      if (this.at >= 0) return lane
      if (this.at === ASK) return null
      lane.publish()
      pending[this.turn >> 5] &= ~(1 << (this.turn & 31))
    }
  }

  /** Takes the hints; without any, or from time to time, every lane may have something, and it says so. */
  refill() {
    const { words, pending, lanes } = this
    this.refills++
    if (this.refills % layout.lookAtAll !== 0) {
      // Reading first: an exchange takes the line from the producers. Bits of lanes that are not there are a peer's mistake.
      if (words[READY] !== 0) pending[0] = Atomics.exchange(words, READY, 0) & maskOf(lanes.length)
      if (words[READY + 1] !== 0) pending[1] = Atomics.exchange(words, READY + 1, 0) & maskOf(lanes.length - 32)
      if ((pending[0] | pending[1]) !== 0) return false
    }
    pending[0] = maskOf(lanes.length)
    pending[1] = maskOf(lanes.length - 32)
    return true
  }

  isPending(lane) {
    return ((this.pending[lane >> 5] >> (lane & 31)) & 1) !== 0
  }

  /** The next lane after this one that may have something. */
  nextTurn() {
    const count = this.lanes.length
    this.taken = 0
    for (let i = 1; i <= count; i++) {
      const lane = this.turn + i < count ? this.turn + i : this.turn + i - count
      if (this.isPending(lane)) {
        this.turn = lane
        return
      }
    }
  }
}

/** The lowest `count` bits of 32. */
const maskOf = (count) => (count >= 32 ? -1 : count <= 0 ? 0 : (1 << count) - 1)

module.exports = { ManyWriter, ManyReader }

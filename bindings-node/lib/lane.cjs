'use strict'
// One lane of a ring, over typed arrays on the mapping: no native call per record.
//
// The same protocol as core/src/ring/spsc.rs, step by step; the argument why it is right is core/src/ring/README.md. The
// names P1, C1, … are those sync points. What JavaScript does not decide itself it asks the core: nothing there, no room,
// a ring that ended, and bytes that cannot be, which the core then finds and judges. Both stand in the same place, because
// it is in the own words of the handle (src/ring.rs).
//
// Positions are 32-bit integers that wrap, kept signed: `(a - b) | 0` is a distance.
// Atomics.store is sequentially consistent, so it is P1 or C2 and, before the look at `waiting`, the fence of W3.
//
// What several lanes, and several readers of one, add: lanes.cjs, broadcast.cjs.

const native = require('./native.cjs')
const { fail } = require('./error.cjs')

const layout = native.ringLayout()
const word = (name) => layout[name] >> 2
const STATE = word('state')
const CLOSED = layout.closed
const POISONED = layout.poisoned
const HEADER = layout.recordHeader
const DATA = layout.data
const PAD = layout.pad
const BATCH = layout.batchBytes
const COMMITTED = layout.committedBit
const MISALIGNED = layout.align - 1
// The own words of a handle for a lane, as `Cursor` of the core has them.
const AT = 0
const COUNT = 1
const PUBLISHED = 2
const PEER = 3
const AGAIN = 4
const HIGH = 5

/** Bytes that a record takes. */
const extentOf = (length) => (length + HEADER + MISALIGNED) & ~MISALIGNED

/** Looks in a row that find a record damaged which the core finds whole: somebody is writing it all the time. */
const MAX_DOUBTS = 8
const restless = () => fail('Corrupt', 'a record changes while it is read')

const late = () => fail('Closed', 'ring was closed before the record was published; its consumer may have ended without it')

/** What a look at a lane finds in place of a record: there is none, or the core must look. */
const NOTHING = -1
const ASK = -2

// Small records are cut from slabs, as Buffer does: memory of their own would cost more than they do.
const SLAB = 8192
const POOLED_MAX = 1024
let slab
let slabWords
let slabAt = SLAB

function copyOut(bytes, words, at, length) {
  if (length > POOLED_MAX) return bytes.slice(at, at + length)
  const size = (length + MISALIGNED) & ~MISALIGNED
  if (slabAt + size > SLAB) {
    slab = new ArrayBuffer(SLAB)
    slabWords = new Int32Array(slab)
    slabAt = 0
  }
  const out = new Uint8Array(slab, slabAt, length)
  // Records begin at multiples of 8, in the ring as in the slab; the padding behind them comes along.
  for (let from = at >> 2, to = slabAt >> 2, last = from + ((length + 3) >> 2); from < last; ) slabWords[to++] = words[from++]
  slabAt += size
  return out
}

/** Below this a loop is faster than the call of `set`. */
const LOOP_MAX = 32

function copyIn(bytes, at, source, length) {
  if (length > LOOP_MAX) bytes.set(source, at)
  else for (let i = 0; i < length; i++) bytes[at + i] = source[i]
}

/** The mapping of a ring as typed arrays, one per ring and isolate. */
class Mapping {
  constructor(memory, { kind, capacity, maxRecordLength, onFull, seats, dataAt }) {
    this.memory = memory
    this.words = new Int32Array(memory)
    this.longs = new BigInt64Array(memory)
    this.bytes = new Uint8Array(memory)
    this.kind = kind
    this.capacity = capacity
    this.maxLength = maxRecordLength
    this.overwrites = onFull === 'overwrite'
    this.seats = seats
    this.dataAt = dataAt
  }

  seatWord(seat, name) {
    return (layout.seatsAt + seat * layout.seatLength + layout[name]) >> 2
  }
}

/** What both ends of a lane have. */
class LaneEnd {
  /**
   * The lane with the number `lane`, whose writer publishes on seat `writer` and whose reader gives back on seat `reader`; `own` are the
   * handle's words for it, and `peer` the seat of whom it wakes.
   */
  constructor(handle, mapping, own, { lane, writer, reader, peer }) {
    this.handle = handle
    this.own = own
    this.lane = lane
    this.memory = mapping.memory
    this.words = mapping.words
    this.bytes = mapping.bytes
    this.capacity = mapping.capacity
    this.mask = mapping.capacity - 1
    this.maxLength = mapping.maxLength
    this.data = mapping.dataAt + lane * mapping.capacity
    this.tail = mapping.seatWord(writer, 'tail')
    this.committed = mapping.seatWord(writer, 'committed')
    this.high = mapping.seatWord(writer, 'high')
    this.head = mapping.seatWord(reader, 'head')
    this.seen = mapping.seatWord(reader, 'seen')
    this.waiting = mapping.seatWord(peer, 'waiting')
  }

  checkMemory() {
    if (this.words.length === 0 || this.own.length === 0) throw fail('Detached', 'memory of the ring was transferred away')
  }
}

class LaneWriter extends LaneEnd {
  constructor(handle, mapping, own, where, batch) {
    super(handle, mapping, own, where)
    this.batch = batch
    this.pad = 0
  }

  /** Pushes a copy of `source`, a Uint8Array of `length`; false while there is no room. */
  push(source, length) {
    if (this.offer(source, length)) return true
    this.checkMemory()
    return native.producerTryPush(this.handle, source)
  }

  /** As `push`, but false also when the core must look. */
  offer(source, length) {
    // A source of length 0 may be detached: native code looks.
    const at = length > 0 ? this.place(length) : -1
    if (at < 0) return false
    copyIn(this.bytes, at, source, length)
    this.commit(length)
    return true
  }

  /** Shows `fill` the room for a record; false, and nothing shown, while there is none. */
  claim(length, fill) {
    let at = this.place(length)
    if (at < 0) {
      this.checkMemory()
      if (!native.producerClaim(this.handle, length)) return false
      // There was room after all, or the core would have refused.
      native.producerAbort(this.handle)
      at = this.place(length)
      if (at < 0) return false
    }
    const pad = this.pad
    fill(new Uint8Array(this.memory, at, length))
    this.checkMemory()
    this.pad = pad
    this.commit(length)
    return true
  }

  flush() {
    this.publish()
  }

  /** The offset of room for a payload, or -1 when the core must look. */
  place(length) {
    const { own, capacity } = this
    if ((this.words[STATE] & (CLOSED | POISONED)) !== 0 || length > this.maxLength) return -1
    const tail = own[AT]
    const offset = tail & this.mask
    const extent = extentOf(length)
    const room = capacity - offset
    const pad = extent > room ? room : 0
    if (capacity - ((tail - own[PEER]) | 0) < pad + extent && !this.refresh(tail, pad + extent)) return -1
    this.pad = pad
    return this.data + ((offset + pad) & this.mask) + HEADER
  }

  refresh(tail, need) {
    const { own } = this
    // P2: pairs with the store at C2, so that the reader's loads are over before this writes.
    const head = Atomics.load(this.words, this.head)
    const read = (head - own[PEER]) >>> 0
    if (read > (tail - own[PEER]) >>> 0 || (read & MISALIGNED) !== 0) return false
    // A reader that had nothing to do has published for itself what waited here.
    if (read > (own[PUBLISHED] - own[PEER]) >>> 0) own[PUBLISHED] = head
    own[PEER] = head
    return this.capacity - ((tail - head) | 0) >= need
  }

  commit(length) {
    const { words, own, mask } = this
    const from = own[AT]
    let at = from
    if (this.pad > 0) {
      const header = (this.data + (at & mask)) >> 2
      words[header] = this.pad - HEADER
      words[header + 1] = PAD
      at += this.pad
    }
    const header = (this.data + (at & mask)) >> 2
    words[header] = length
    words[header + 1] = DATA
    own[COUNT]++
    own[AT] = at + extentOf(length)
    if ((own[AT] ^ from) < 0) words[this.high]++
    if (this.batch) {
      // P0, and the fence before the look: a sleeping consumer gains nothing from waiting for more, one that will sleep looks here first.
      this.storeMark(this.committed, own[AT] | COMMITTED, own[COUNT])
      if (((own[AT] - own[PUBLISHED]) | 0) < BATCH && !this.readerSleeps()) return
    }
    this.publish()
  }

  publish() {
    this.checkMemory()
    const { own } = this
    const tail = own[AT]
    const published = own[PUBLISHED]
    if (tail === published) return
    // P1: everything before `tail` is whole. Pairs with C1.
    this.storeMark(this.tail, tail, own[COUNT])
    own[PUBLISHED] = tail
    this.tell()
    // Behind the fence that the store is: a consumer that was told the end before may not have seen this. It has, if it let go of it.
    if ((Atomics.load(this.words, STATE) & CLOSED) !== 0 && Atomics.load(this.words, this.head) !== tail) throw late()
  }

  /** Stores a position and the number of records before it. */
  storeMark(word, at, count) {
    this.words[word + 1] = count
    Atomics.store(this.words, word, at)
  }

  readerSleeps() {
    return Atomics.load(this.words, this.waiting) !== 0
  }

  /** W3. */
  tell() {
    if (Atomics.load(this.words, this.waiting) !== 0) native.ringWake(this.handle, 0)
  }
}

class LaneReader extends LaneEnd {
  constructor(handle, mapping, own, where) {
    super(handle, mapping, own, where)
    this.giveBack = Math.trunc(mapping.capacity / layout.giveBack)
    this.length = 0
  }

  /** A copy of the oldest record, or null. */
  take() {
    return this.copy(this.find())
  }

  /** As `take`, but null also when the core must look. */
  glance() {
    return this.copy(this.look())
  }

  copy(at) {
    if (at < 0) return null
    const record = copyOut(this.bytes, this.words, at, this.length)
    this.release(this.length)
    return record
  }

  /** Shows `fn` the oldest records where they lie, and returns how many: one, or none. `more`: one was shown just now. */
  show(fn, more) {
    const at = more ? this.look() : this.find()
    if (at < 0) {
      if (more) this.publish()
      return 0
    }
    this.showAt(at, fn)
    return 1
  }

  /** Shows the record that a look found. */
  showAt(at, fn) {
    const { length } = this
    try {
      fn(new Uint8Array(this.memory, at, length), this.own[AGAIN] > 0)
    } finally {
      this.release(length)
    }
  }

  /** The offset of the oldest record's payload, its length in `length`; negative when there is none. */
  find() {
    let at = this.look()
    for (let doubts = 0; at < 0; doubts++) {
      this.checkMemory()
      if (!native.consumerFind(this.handle, this.lane)) return at
      if (doubts === MAX_DOUBTS) throw restless()
      at = this.look()
    }
    return at
  }

  /** As `find`, but negative also when the core must look. */
  look() {
    const { words, own, capacity, mask, data } = this
    if ((words[STATE] & POISONED) !== 0) return ASK
    let head = own[AT]
    if (head === own[PEER]) {
      // Memory that was transferred away has no words.
      if (words.length === 0) return ASK
      // C1: pairs with the store at P1.
      const tail = Atomics.load(words, this.tail)
      const bytes = (tail - head) >>> 0
      if (bytes === 0) return NOTHING
      if (bytes > capacity || (bytes & MISALIGNED) !== 0) return ASK
      own[PEER] = tail
    }
    let ready = (own[PEER] - head) | 0
    let offset = head & mask
    // C0: the record's two words are read once.
    let length = words[(data + offset) >> 2]
    let kind = words[(data + offset + 4) >> 2]
    if (kind === PAD) {
      const room = capacity - offset
      if (length !== room - HEADER || room === capacity || room >= ready) return ASK
      this.advance(room)
      head = own[AT]
      ready -= room
      offset = 0
      length = words[data >> 2]
      kind = words[(data + 4) >> 2]
    }
    if (kind !== DATA || length < 0 || length > this.maxLength) return ASK
    const extent = extentOf(length)
    if (extent > ready || extent > capacity - offset) return ASK
    // From here on the record may have had effects, which the reader's successor should know; what a dead one saw stays seen.
    if (extent > own[AGAIN]) words[this.seen] = head + extent
    this.length = length
    return data + offset + HEADER
  }

  advance(bytes) {
    const { own } = this
    own[AT] += bytes
    if (own[AGAIN] > 0) own[AGAIN] = Math.max(0, own[AGAIN] - bytes)
  }

  release(length) {
    const { own } = this
    own[COUNT]++
    this.advance(extentOf(length))
    // A producer that waits for room is told early; who misses that it sleeps, sees it next time. Of an empty lane nothing is kept back.
    const due = ((own[AT] - own[PUBLISHED]) | 0) >= this.giveBack || own[AT] === own[PEER]
    if (due || this.words[this.waiting] !== 0) this.publish()
  }

  publish() {
    this.checkMemory()
    const { words, own } = this
    const head = own[AT]
    if (head === own[PUBLISHED]) return
    words[this.head + 1] = own[COUNT]
    // C2: nothing before `head` is read any more. Pairs with P2.
    Atomics.store(words, this.head, head)
    own[PUBLISHED] = head
    // W3.
    if (Atomics.load(words, this.waiting) !== 0) native.ringWake(this.handle, this.lane)
  }
}

module.exports = {
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
  MAX_DOUBTS,
  restless,
  extentOf,
  copyOut,
  Mapping,
  LaneWriter,
  LaneReader,
}

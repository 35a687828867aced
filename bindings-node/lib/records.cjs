'use strict'
// How the records of a handle go: over the mapping, or with a native call each.

const native = require('./native.cjs')
const { LaneWriter, LaneReader } = require('./lane.cjs')
const { ManyWriter, ManyReader } = require('./lanes.cjs')
const { BroadcastWriter, OverwritingWriter, CopyingReader } = require('./broadcast.cjs')
const { openSlotReader } = require('./slots.cjs')

/** With a native call per record: pushed to an mpmc ring, or where the runtime refuses external memory. */
class NativeWriter {
  constructor(handle) {
    this.handle = handle
  }

  push(source) {
    return native.producerTryPush(this.handle, source)
  }

  offer(source) {
    return this.push(source)
  }

  claim(length, fill) {
    if (!native.producerClaim(this.handle, length)) return false
    const view = new Uint8Array(length)
    try {
      fill(view)
      native.producerCommit(this.handle, view)
    } finally {
      native.producerAbort(this.handle)
    }
    return true
  }

  flush() {
    native.producerFlush(this.handle)
  }
}

class NativeReader {
  /** `deliver(bytes, redelivered, delivery)` makes what is given of a record that is to be acknowledged; without it, that is its bytes. */
  constructor(handle, deliver) {
    this.handle = handle
    this.deliver = deliver
  }

  take() {
    const taken = native.consumerTake(this.handle)
    if (taken === null) return null
    return this.deliver === undefined ? taken[0] : this.deliver(...taken)
  }

  glance() {
    return this.take()
  }

  show(fn, more) {
    let shown
    try {
      shown = native.consumerShow(this.handle)
    } catch (error) {
      // Told again by the next call, which then has nothing else to tell.
      if (more) return 0
      throw error
    }
    if (shown === null) return 0
    try {
      fn(this.deliver === undefined ? shown[0] : this.deliver(...shown), shown[1])
    } finally {
      native.consumerRelease(this.handle)
    }
    return 1
  }
}

/** The own words of a handle, or null where the core alone stands in the ring. */
function ownWords(handle, mapping) {
  const memory = mapping && native.ringOwn(handle)
  return memory && new Int32Array(memory)
}

// Which seat is whose says core/src/wire/ring.rs. `mapping` is null where only native calls can do it.

function openWriter(handle, mapping, batch) {
  const own = ownWords(handle, mapping)
  if (!own) return new NativeWriter(handle)
  const writer = native.ringSeat(handle)
  switch (mapping.kind) {
    case 'broadcast': {
      const Writer = mapping.overwrites ? OverwritingWriter : BroadcastWriter
      // Nobody reads the word of a peer: there are several. The gate is the writer's own.
      return new Writer(handle, mapping, own, { lane: 0, writer, reader: writer, peer: writer }, batch)
    }
    default: {
      const Writer = mapping.kind === 'mpsc' ? ManyWriter : LaneWriter
      return new Writer(handle, mapping, own, { lane: writer - 1, writer, reader: writer, peer: 0 }, batch)
    }
  }
}

function openReader(handle, mapping, { kind, maxRecordLength }, deliver) {
  if (kind === 'mpmc') return openSlotReader(handle, maxRecordLength, deliver) ?? new NativeReader(handle, deliver)
  const own = ownWords(handle, mapping)
  if (!own) return new NativeReader(handle)
  if (mapping.kind === 'mpsc') return new ManyReader(handle, mapping, own)
  if (mapping.kind === 'spsc') return new LaneReader(handle, mapping, own, { lane: 0, writer: 1, reader: 1, peer: 1 })
  const Reader = mapping.overwrites ? CopyingReader : LaneReader
  return new Reader(handle, mapping, own, { lane: 0, writer: 0, reader: native.ringSeat(handle), peer: 0 })
}

module.exports = { openWriter, openReader }

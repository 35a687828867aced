'use strict'
// RingBuffer, Producer and Consumer: checks what it is given, and follows the host's protocols (promises, AbortSignal, async
// iteration, dispose). How records are written and read: records.cjs; how promises wait: waits.cjs.

const path = require('node:path')
const { isUint8Array } = require('node:util').types
const native = require('./native.cjs')
const { fail, typeName, checkOptions, checkKnown } = require('./error.cjs')
const { TransferBuffer, viewOf, lengthOf, notBytes } = require('./buffer.cjs')
const { Mapping } = require('./lane.cjs')
const { openWriter, openReader } = require('./records.cjs')
const { Waits, checkWait, isSpent, inNextTurn } = require('./waits.cjs')

if (!Symbol.dispose) Object.defineProperty(Symbol, 'dispose', { value: Symbol('Symbol.dispose') })

const MADE_HERE = Symbol('made here')
const CLOSED = fail('Closed', '').code
const DONE = Promise.resolve()
const NOTHING = Object.freeze({ value: undefined, done: true })

function bytesOf(bytes) {
  if (isUint8Array(bytes)) return bytes
  const view = bytes instanceof TransferBuffer ? bytes.bytes() : viewOf(bytes)
  if (view === null) throw notBytes(bytes)
  if (isUint8Array(view)) return view
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
}

function checkFunction(value, what) {
  if (typeof value !== 'function') throw fail('Invalid', `${what} is no function`, { got: typeName(value) })
}

/** The view ends when the callback returns: one that goes on later would write or read what is not its own any more. */
function checkSynchronous(returned, what) {
  if (typeof returned?.then === 'function') throw fail('Invalid', `${what} returned a promise; its view ends when it returns`)
}

function checkCount(value, name) {
  if (!(Number.isSafeInteger(value) && value >= 0)) {
    throw fail('Invalid', 'number is out of range', {
      [name]: typeof value === 'number' ? value : typeName(value),
      want: 'a whole number from 0',
    })
  }
}

let laneOf
let waitsOf
let handleOf
let within

/** What a producer and a consumer have in common: a seat, somebody who waits, and calls that must not interrupt each other. */
class End {
  #handle
  #lane
  #waits
  #left
  #inside = false
  #closed = false

  static {
    // The lane, for a call that may use it now.
    laneOf = (end) => {
      if (end.#inside) throw fail('InUse', 'a callback of this handle is running')
      if (end.#closed) throw wasClosed()
      return end.#lane
    }
    waitsOf = (end) => end.#waits
    handleOf = (end) => end.#handle
    // Runs `call`, in which code of the user runs.
    within = (end, call) => {
      end.#inside = true
      try {
        return call()
      } finally {
        end.#inside = false
        if (end.#closed) end.#leave()
      }
    }
  }

  /** `left` is called when it has left its seat. */
  constructor(handle, lane, waits, left) {
    this.#handle = handle
    this.#lane = lane
    this.#waits = waits
    this.#left = left
  }

  get closed() {
    return this.#closed
  }

  close() {
    if (this.#closed) return
    this.#closed = true
    if (!this.#inside) this.#leave()
  }

  ref() {
    this.#waits.ref(true)
    return this
  }

  unref() {
    this.#waits.ref(false)
    return this
  }

  [Symbol.dispose]() {
    this.close()
  }

  #leave() {
    native.ringLeave(this.#handle)
    this.#waits.fail(wasClosed)
    this.#left()
  }
}

const wasClosed = () => fail('Closed', 'handle of the ring was closed')

class Producer extends End {
  #rejects

  constructor(key, ring, mapping, batch, rejects, left) {
    checkKey(key, 'a Producer is made by RingBuffer.producer')
    const handle = native.ringProducer(ring, batch)
    const lane = openWriter(handle, mapping, batch)
    const attempt = (view, sure) => ((sure ? lane.push(view, view.length) : lane.offer(view, view.length)) ? undefined : null)
    const arm = (note, view) => native.producerWait(handle, view.length, note)
    super(handle, lane, new Waits(attempt, arm, 'no room in the ring'), left)
    this.#rejects = rejects
  }

  tryPush(bytes) {
    const lane = laneOf(this)
    const view = bytesOf(bytes)
    // Those that wait were first.
    if (waitsOf(this).size > 0) return false
    return lane.push(view, lengthOf(view))
  }

  push(bytes, options) {
    try {
      const wait = checkWait(options)
      const lane = laneOf(this)
      const view = bytesOf(bytes)
      const spent = isSpent()
      if (waitsOf(this).size === 0) {
        if (lane.offer(view, lengthOf(view))) return spent ? new Promise(inNextTurn) : DONE
        // Bytes that are no record, and a ring that has ended, are told at once.
        if (this.#rejects) native.producerPush(handleOf(this), view)
        else if (!lane.push(view, lengthOf(view))) return waitsOf(this).wait(new Uint8Array(view), wait, false)
        return DONE
      }
      return waitsOf(this).wait(new Uint8Array(view), wait, false)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  claim(length, fill) {
    const lane = laneOf(this)
    checkCount(length, 'length')
    checkFunction(fill, 'fill')
    if (waitsOf(this).size > 0) return false
    return within(this, () => lane.claim(length, (view) => checkSynchronous(fill(view), 'fill')))
  }

  flush() {
    laneOf(this).flush()
  }
}

/** A record that is in flight until it is acknowledged. */
class Delivery {
  #handle
  #delivery

  constructor(key, handle, bytes, redelivered, delivery) {
    checkKey(key, 'a Delivery is made by a Consumer')
    this.#handle = handle
    this.#delivery = delivery
    this.bytes = bytes
    this.redelivered = redelivered
  }

  ack() {
    native.consumerAck(this.#handle, this.#delivery)
  }

  nack() {
    native.consumerNack(this.#handle, this.#delivery)
  }
}

class Consumer extends End {
  constructor(key, ring, info, mapping, ack, left) {
    checkKey(key, 'a Consumer is made by RingBuffer.consumer')
    const handle = native.ringConsumer(ring, ack)
    const deliver = ack === 'manual' ? (...taken) => new Delivery(MADE_HERE, handle, ...taken) : undefined
    const lane = openReader(handle, mapping, info, deliver)
    const attempt = (_, sure) => (sure ? lane.take() : lane.glance())
    const arm = (note) => native.consumerWait(handle, note)
    super(handle, lane, new Waits(attempt, arm, 'no record in the ring'), left)
  }

  get lost() {
    return this.closed ? 0 : native.consumerLost(handleOf(this))
  }

  tryPop() {
    const lane = laneOf(this)
    // Those that wait were first.
    return waitsOf(this).size > 0 ? null : lane.take()
  }

  pop(options) {
    try {
      const wait = checkWait(options)
      const lane = laneOf(this)
      const spent = isSpent()
      const record = spent || waitsOf(this).size > 0 ? null : lane.glance()
      return record !== null ? Promise.resolve(record) : waitsOf(this).wait(undefined, wait, spent)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  read(max, fn) {
    const lane = laneOf(this)
    checkCount(max, 'max')
    checkFunction(fn, 'fn')
    if (waitsOf(this).size > 0) return 0
    // Whether the read goes on.
    const show = (view, redelivered) => {
      checkSynchronous(fn(view, redelivered), 'fn')
      return !this.closed
    }
    return within(this, () => {
      let count = 0
      while (count < max && !this.closed) {
        const shown = lane.show(show, count > 0, max - count)
        if (shown === 0) break
        count += shown
      }
      return count
    })
  }

  [Symbol.asyncIterator]() {
    let ended = false
    const next = (record) => ({ value: record, done: false })
    const last = (error) => {
      ended = true
      if (error.code === CLOSED) return NOTHING
      throw error
    }
    const finish = (value) => {
      ended = true
      return Promise.resolve({ value, done: true })
    }
    return {
      next: () => {
        if (ended) return Promise.resolve(NOTHING)
        let lane
        let spent
        try {
          lane = laneOf(this)
          spent = isSpent()
          const record = spent || waitsOf(this).size > 0 ? null : lane.glance()
          if (record !== null) return Promise.resolve({ value: record, done: false })
        } catch (error) {
          return Promise.reject(error).catch(last)
        }
        return waitsOf(this).wait(undefined, undefined, spent).then(next, last)
      },
      return: finish,
      [Symbol.asyncIterator]() {
        return this
      },
    }
  }
}

function checkKey(key, text) {
  if (key !== MADE_HERE) throw fail('Invalid', `${text}, not by new`)
}

class RingBuffer {
  #handle
  #info
  #mapping
  // Whether it is closed without regard to what waits in it, for whom this object would open a consumer.
  #disposed = false
  // Lets go of a ring that was closed here, once nobody can want it; its views, which end with it, are nobody's then.
  #settle = () => {
    if (native.ringSettle(this.#handle, this.#mapping?.memory, this.#disposed)) this.#mapping = null
  }

  constructor(key, handle) {
    checkKey(key, 'a RingBuffer is made by create or attach')
    this.#handle = handle
    this.#info = native.ringInfo(handle)
  }

  static create(options) {
    const { kind, capacity, slotSize, maxParticipants, path: file, onFull, ...unknown } = checkOptions(options)
    checkKnown(unknown, 'kind capacity slotSize maxParticipants path onFull')
    return new RingBuffer(
      MADE_HERE,
      native.ringCreate(kind, capacity, onFull, maxParticipants, slotSize, file == null ? undefined : pathOf(file)),
    )
  }

  static attach(from) {
    if (typeof from === 'string') return new RingBuffer(MADE_HERE, native.ringOpen(pathOf(from)))
    if (!Array.isArray(from)) throw fail('Invalid', 'a ring is attached to by a path or by fds', { got: typeName(from) })
    return new RingBuffer(MADE_HERE, native.ringAttach([...from]))
  }

  static inspect(file) {
    return native.ringInspect(pathOf(file))
  }

  get kind() {
    return this.#info.kind
  }

  get capacity() {
    return this.#info.capacity
  }

  get slotSize() {
    return this.#info.slotSize
  }

  get maxRecordLength() {
    return this.#info.maxRecordLength
  }

  get onFull() {
    return this.#info.onFull
  }

  get path() {
    return this.#info.path
  }

  get fds() {
    return native.ringFds(this.#handle)
  }

  get closed() {
    return native.ringIsClosed(this.#handle)
  }

  producer(options = {}) {
    const { batch = false, ...unknown } = checkOptions(options ?? {})
    checkKnown(unknown, 'batch')
    if (typeof batch !== 'boolean')
      throw fail('Invalid', 'option has the wrong type', { option: 'batch', want: 'boolean', got: typeName(batch) })
    return new Producer(MADE_HERE, this.#handle, this.#map(), batch, this.#info.onFull === 'reject', this.#settle)
  }

  consumer(options = {}) {
    const { ack = 'auto', ...unknown } = checkOptions(options ?? {})
    checkKnown(unknown, 'ack')
    return new Consumer(MADE_HERE, this.#handle, this.#info, this.#map(), ack, this.#settle)
  }

  close() {
    native.ringClose(this.#handle)
    this.#settle()
  }

  [Symbol.dispose]() {
    this.#disposed = true
    this.close()
  }

  remove() {
    native.ringRemove(this.#handle)
    this.#settle()
  }

  /** The mapping for records.cjs, opened at first use; null where records go through native calls. */
  #map() {
    if (this.#mapping === undefined) {
      const memory = native.ringMemory(this.#handle)
      this.#mapping = memory && new Mapping(memory, this.#info)
    }
    return this.#mapping
  }
}

/** A name without a slash is the core's to place; a path is taken from where the process is now. */
function pathOf(file) {
  if (typeof file !== 'string') throw fail('Invalid', 'path is not text', { got: typeName(file) })
  return file.includes('/') ? path.resolve(file) : file
}

module.exports = { RingBuffer, Producer, Consumer, Delivery, pathOf }

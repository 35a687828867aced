'use strict'
// Messages between a ProcessPool and a worker in JavaScript. The picture of one is in src/process.rs.
//
// Long byte arrays and TransferBuffers are parts of their own: they are copied once, into memory that both processes have, and read there.

const { isUint8Array, isSharedArrayBuffer } = require('node:util').types
const { fail } = require('./error.cjs')
const { TransferBuffer, beginMove, endMove, wrapBuffer } = require('./buffer.cjs')
const { encodeBeside, decodeBeside, hasOwnWay, unserializable } = require('./codec.cjs')

/** First byte; the same numbers as in core/src/pool/lane/call.rs. */
const NODE = 3
const FAILED = 0x80
/** Bytes before the body. */
const HEAD = 8
/** Byte arrays from this length on are parts. */
const PART = 4096
/** Of the upper half of a part's length: it is a TransferBuffer; src/process.rs has the whole number. */
const BUFFER = 1 << 30
/** Most parts of one frame. */
const MAX_PARTS = 0xffff
const MIN_OWN = 64 * 1024
/** Memory above this is not kept for the next frame. */
const KEEP = 4 << 20

/** Writes frames, one behind the other, into memory of its own. */
class Writer {
  memory = Buffer.allocUnsafeSlow(MIN_OWN)
  /** Of the last frame: byte arrays and TransferBuffers beside it, or null. */
  parts = null
  #take
  /** `beside`: long byte arrays and TransferBuffers become parts. */
  constructor(beside = true) {
    this.#take = (object) => {
      if (!beside) return -1
      if (object === null) {
        if (this.parts?.some((part) => part instanceof TransferBuffer))
          throw fail('Unserializable', 'a TransferBuffer moves in plain data only')
        this.parts = null
        return -1
      }
      const isBuffer = object instanceof TransferBuffer
      if (!isBuffer && !(isUint8Array(object) && object.length >= PART)) return -1
      if (!isBuffer && (isSharedArrayBuffer(object.buffer) || object.buffer.resizable)) return -1
      this.parts ??= []
      if (this.parts.length === MAX_PARTS) return -1
      return this.parts.push(object) - 1
    }
  }

  #grow(at) {
    const larger = Buffer.allocUnsafeSlow(this.memory.length * 2)
    larger.set(this.memory.subarray(0, at))
    this.memory = larger
  }

  /**
   * Writes a frame at `at` and returns its end: `name`, unless it is null, and `value`. Throws what a getter throws, and Unserializable for
   * what cannot be in another process; `what` it is goes into that error.
   */
  write(at, first, flags, name, value, what, areArgs = false) {
    for (;;) {
      const last = this.#tryWrite(at, first, flags, name, value, what, areArgs)
      if (last !== null) return last
      this.#grow(at)
    }
  }

  #tryWrite(at, first, flags, name, value, what, areArgs) {
    this.parts = null
    const limit = this.memory.length
    if (at + HEAD > limit) return null
    let last = at + HEAD
    if (name !== null) {
      last = encodeBeside(this.memory, name, last, limit, false, this.#take)
      if (last === null) return null
    }
    try {
      last = encodeBeside(this.memory, value, last, limit, areArgs, this.#take)
    } catch (error) {
      // A getter of the user, or a proxy that was revoked.
      throw unserializable(what, value, error)
    }
    if (last === false) throw unserializable(what, value, new Error('a value like this cannot leave its process'), hasOwnWay)
    if (last === null) return null
    const table = last - at
    const parts = this.parts
    if (parts !== null) {
      if (last + parts.length * 8 > limit) return null
      for (const part of parts) {
        this.memory.writeUInt32LE(part.byteLength >>> 0, last)
        const high = Math.floor(part.byteLength / 2 ** 32)
        this.memory.writeUInt32LE(part instanceof TransferBuffer ? (high | BUFFER) >>> 0 : high, last + 4)
        last += 8
      }
    }
    this.memory[at] = first
    this.memory[at + 1] = flags
    this.memory.writeUInt16LE(parts === null ? 0 : parts.length, at + 2)
    this.memory.writeUInt32LE(table, at + 4)
    return last
  }

  /** The parts of the last frame, which are the caller's from now on. */
  takeParts() {
    const { parts } = this
    this.parts = null
    return parts
  }

  /** Memory of a large value is let go. */
  shrink() {
    this.parts = null
    if (this.memory.length > KEEP) this.memory = Buffer.allocUnsafeSlow(MIN_OWN)
  }
}

/** Parts as native code takes them. */
const views = (parts) => (parts === null ? undefined : parts.map((part) => (isUint8Array(part) ? part : beginMove(part))))

/** Native code has taken a frame with these parts: TransferBuffers have moved. */
function moved(parts) {
  for (const part of parts ?? []) if (!isUint8Array(part)) endMove(part)
}

let given = null
const give = (number, isBuffer) => (isBuffer ? wrapBuffer(given[number + 1]) : given[number + 1])

/** The value at `offset` of `bytes`, a Buffer; `parts[number + 1]` is a part. */
function read(bytes, offset, parts) {
  const before = given
  given = parts
  try {
    return decodeBeside(bytes, offset, give)
  } finally {
    given = before
  }
}

const bufferOf = (bytes) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)

/** The value of a frame that is `[head, part, …]`. */
const readParts = (parts) => read(bufferOf(parts[0]), HEAD, parts).value

module.exports = { Writer, views, moved, read, readParts, bufferOf, NODE, FAILED, HEAD }

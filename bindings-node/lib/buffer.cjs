'use strict'
// TransferBuffer: native memory with one owner. Its view is detached when the bytes move.

const { isAnyArrayBuffer, isUint8Array } = require('node:util').types
const native = require('./native.cjs')
const { fail, typeName, checkOptions, checkKnown } = require('./error.cjs')

const MADE_HERE = Symbol('made here')

/** A Uint8Array over any byte source, or null. Works across realms. */
function viewOf(value) {
  const isView = ArrayBuffer.isView(value)
  if (isView ? isUint8Array(value) : !isAnyArrayBuffer(value)) return isView ? value : null
  try {
    return isView ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength) : new Uint8Array(value)
  } catch (cause) {
    // The one reason that a language's own view has: its memory was transferred, or shrunk from under it.
    throw fail('Detached', 'buffer of the input was transferred', { got: typeName(value), cause: cause.message })
  }
}

// Of the prototype: an own property of the view could say anything.
const typedArray = Object.getPrototypeOf(Uint8Array.prototype)
const getter = (name) => Function.prototype.call.bind(Object.getOwnPropertyDescriptor(typedArray, name).get)
const lengthOf = getter('length')
const memoryOf = getter('buffer')

let beginMove
let endMove
let takeAway
let giveBack

class TransferBuffer {
  #handle
  #length
  #view = null
  #external = true
  #detached = false

  static {
    // The native handle, ready to be moved; the move may still be refused.
    beginMove = (buffer) => {
      if (buffer.#view !== null && !buffer.#detached) {
        if (lengthOf(buffer.#view) !== buffer.#length) native.bufferSeparate(buffer.#handle)
        else if (!buffer.#external) native.bufferWrite(buffer.#handle, buffer.#view)
      }
      return buffer.#handle
    }
    // The bytes are gone.
    endMove = (buffer) => {
      buffer.#detached = true
      if (buffer.#view !== null && lengthOf(buffer.#view) === buffer.#length && buffer.#length > 0) {
        native.detach(memoryOf(buffer.#view))
      }
      buffer.#view = null
    }
    // Moves the bytes to a handle that only the caller has: for a submit that comes after code of the user.
    takeAway = (buffer) => {
      const token = native.bufferTransfer(beginMove(buffer))
      endMove(buffer)
      return native.bufferReceive(token)
    }
    // What was taken away comes back; its views stay detached.
    giveBack = (buffer, handle) => {
      buffer.#handle = handle
      buffer.#detached = false
    }
  }

  constructor(key, handle) {
    if (key !== MADE_HERE) {
      throw fail('Invalid', 'a TransferBuffer is made by alloc, from, receive or attach, not by new')
    }
    this.#handle = handle
    this.#length = native.bufferLength(handle)
  }

  static alloc(byteLength, options = {}) {
    const { shared = false, ...unknown } = checkOptions(options ?? {})
    checkKnown(unknown, 'shared')
    if (typeof shared !== 'boolean')
      throw fail('Invalid', 'option has the wrong type', { option: 'shared', want: 'boolean', got: typeName(shared) })
    return new TransferBuffer(MADE_HERE, native.bufferAlloc(byteLength, shared))
  }

  static from(bytes) {
    const view = bytes instanceof TransferBuffer ? bytes.bytes() : viewOf(bytes)
    if (view === null) throw notBytes(bytes)
    return new TransferBuffer(MADE_HERE, native.bufferFrom(view))
  }

  static receive(token) {
    return new TransferBuffer(MADE_HERE, native.bufferReceive(token))
  }

  static attach(fd) {
    return new TransferBuffer(MADE_HERE, native.bufferAttach(fd))
  }

  get byteLength() {
    return this.#detached ? 0 : this.#length
  }

  get detached() {
    return this.#detached
  }

  get fd() {
    return native.bufferFd(this.#handle)
  }

  bytes() {
    if (this.#view === null) [this.#view, this.#external] = native.bufferView(this.#handle)
    return this.#view
  }

  transfer() {
    const token = native.bufferTransfer(beginMove(this))
    endMove(this)
    return token
  }
}

function notBytes(value) {
  return fail('Invalid', 'input is no bytes', { want: 'Uint8Array, ArrayBuffer or TransferBuffer', got: typeName(value) })
}

/** Called by native code for a buffer inside a result. */
const wrapBuffer = (handle) => new TransferBuffer(MADE_HERE, handle)

// Buffers that the value which is being read moves; null while values are copied.
let moving = null
/** Named by who sends a value in which no buffer may move. */
const NOTHING = []

/**
 * What `send(check)` gives, which reads a value; buffers inside move if it succeeds, and stay as they are if it throws. It calls
 * `check` once it has read the value: each of `named` has to be in it.
 */
function movingBuffers(send, named) {
  const outer = moving
  const moved = []
  moving = moved
  let sent
  try {
    sent = send(
      named &&
        (() => {
          if (named === NOTHING && moved.length > 0) {
            throw fail('Invalid', 'a buffer moves to one worker: a broadcast copies bytes only', { buffers: moved.length })
          }
          const at = named.findIndex((buffer) => !moved.includes(buffer))
          if (at >= 0) throw fail('Invalid', 'transfer names a buffer that is not in the value', { at })
        }),
    )
  } finally {
    moving = outer
  }
  for (const buffer of moved) endMove(buffer)
  return sent
}

/** Called by native code for an object inside a value whose class Node-API cannot tell. */
function unwrap(value) {
  if (value instanceof TransferBuffer) {
    if (moving === null) return value.bytes()
    moving.push(value)
    return beginMove(value)
  }
  const view = viewOf(value)
  if (view !== null) return view
  const tag = Object.prototype.toString.call(value)
  if (tag === '[object Map]') return [...value]
  const prototype = Object.getPrototypeOf(value)
  if (prototype === null || Object.getPrototypeOf(prototype) === null) return undefined
  return typeName(value)
}

function revokeToken(token) {
  native.revokeToken(token)
}

module.exports = {
  TransferBuffer,
  revokeToken,
  movingBuffers,
  NOTHING,
  beginMove,
  endMove,
  takeAway,
  giveBack,
  viewOf,
  lengthOf,
  notBytes,
  wrapBuffer,
  unwrap,
}

'use strict'
// Values between the threads of a WorkerPool, as structuredClone gives them, and Errors whole.
//
// Plain data is written here, byte by byte: undefined, null, booleans, numbers, strings, byte arrays, and plain objects and arrays
// of these. Whatever else is in a value, or is in it twice, hands all of it to the runtime's own serializer, which keeps
// cycles and shared references. What that one refuses (SharedArrayBuffer, MessagePort, …) travels beside the task as a message.
//
// A byte array that was written here arrives with an ArrayBuffer of its own, so that a slice of Node's pool does not bring all of it.

const v8 = require('node:v8')
const { isNativeError, isGeneratorObject, isUint8Array, isSharedArrayBuffer } = require('node:util').types
const { OffloopError, fail, typeName } = require('./error.cjs')
const { TransferBuffer } = require('./buffer.cjs')

const UNDEFINED = 0
const NULL = 1
const TRUE = 2
const FALSE = 3
const INT = 4
const DOUBLE = 5
const SHORT = 6
const LATIN1 = 7
const UTF16 = 8
const BYTES = 9
const ARRAY = 10
const OBJECT = 11
/** By the runtime's serializer; with errors, a list of what it does not keep of them. */
const CLONED = 12
const WITH_ERRORS = 13
/** The value comes by message, under this number. */
const BESIDE = 14
/** What follows is the error of a task, not its result. */
const FAILED = 15
/** A TransferBuffer, by its number among those that travel along. */
const BUFFER = 16

/** A byte array, or a TransferBuffer, that lies beside the message, by its number. */
const OUTSIDE = 17
const OUTSIDE_BUFFER = 18

/** Deeper values go to the serializer, which has the limit of the runtime. */
const MAX_DEPTH = 64
/** Most errors inside each other, as in the common form of values. */
const MAX_ERRORS = 128
/** So many objects of one value are compared one by one; more go into a Set. */
const FEW = 8
/** Strings up to this length are written and read by characters: faster than a call into the runtime. */
const BY_CHAR = 24

// What cannot be written here; never seen outside.
const NOT_PLAIN = Symbol('not plain')
const NO_ROOM = Symbol('no room')

const float = new Float64Array(1)
const floatBytes = new Uint8Array(float.buffer)
const MIN_OWN = 64 * 1024

let own = Buffer.allocUnsafeSlow(MIN_OWN)
let out = own
let pos = 0
let end = own.length
let grows = true
const few = new Array(FEW).fill(null)
let seen = 0
let many = null
/** TransferBuffers of the value that was written last, or null. */
let moving = null
/** Takes what is to lie beside the message that is written: see `encodeBeside`. */
let outside = null

function reserve(n) {
  if (pos + n <= end) return
  if (!grows) throw NO_ROOM
  let length = own.length * 2
  while (length < pos + n) length *= 2
  const larger = Buffer.allocUnsafeSlow(length)
  larger.set(own.subarray(0, pos))
  own = out = larger
  end = length
}

function writeUint32(n) {
  out[pos] = n
  out[pos + 1] = n >>> 8
  out[pos + 2] = n >>> 16
  out[pos + 3] = n >>> 24
  pos += 4
}

function writeDouble(n) {
  float[0] = n
  for (let i = 0; i < 8; i++) out[pos + i] = floatBytes[i]
  pos += 8
}

function writeString(text) {
  const { length } = text
  if (length <= BY_CHAR) {
    reserve(2 + length)
    let at = pos + 2
    let bits = 0
    for (let i = 0; i < length; i++) {
      const c = text.charCodeAt(i)
      bits |= c
      out[at++] = c
    }
    if (bits < 256) {
      out[pos] = SHORT
      out[pos + 1] = length
      pos = at
      return
    }
  }
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the range of Latin-1 begins with them
  if (/^[\x00-\xff]*$/.test(text)) {
    reserve(5 + length)
    out[pos++] = LATIN1
    writeUint32(length)
    out.latin1Write(text, pos, length)
    pos += length
  } else {
    reserve(5 + 2 * length)
    out[pos++] = UTF16
    writeUint32(length)
    out.ucs2Write(text, pos, 2 * length)
    pos += 2 * length
  }
}

/** An object that is in the value for the second time is not plain. */
function once(object) {
  if (many !== null) {
    if (many.has(object)) throw NOT_PLAIN
    many.add(object)
    return
  }
  for (let i = 0; i < seen; i++) if (few[i] === object) throw NOT_PLAIN
  if (seen < FEW) few[seen++] = object
  else {
    many = new Set(few)
    many.add(object)
  }
}

function forget() {
  for (let i = 0; i < seen; i++) few[i] = null
  seen = 0
  many = null
}

function write(value, depth) {
  switch (typeof value) {
    case 'number':
      reserve(9)
      if ((value | 0) === value && (value !== 0 || 1 / value > 0)) {
        out[pos++] = INT
        writeUint32(value)
      } else {
        out[pos++] = DOUBLE
        writeDouble(value)
      }
      return
    case 'string':
      writeString(value)
      return
    case 'undefined':
      reserve(1)
      out[pos++] = UNDEFINED
      return
    case 'boolean':
      reserve(1)
      out[pos++] = value ? TRUE : FALSE
      return
    case 'object':
      if (value === null) {
        reserve(1)
        out[pos++] = NULL
      } else writeObject(value, depth)
      return
    default:
      throw NOT_PLAIN
  }
}

function writeObject(value, depth) {
  if (depth > MAX_DEPTH) throw NOT_PLAIN
  once(value)
  if (outside !== null && writeOutside(value)) return
  const prototype = Object.getPrototypeOf(value)
  if (prototype === Object.prototype || prototype === null) {
    // An `arguments` object and a module namespace have such prototypes, too.
    if (Symbol.toStringTag in value || (prototype !== null && Object.prototype.toString.call(value) !== '[object Object]')) throw NOT_PLAIN
    const keys = Object.keys(value)
    const { length } = keys
    reserve(5)
    out[pos++] = OBJECT
    writeUint32(length)
    for (let i = 0; i < length; i++) {
      const key = keys[i]
      if (key === '__proto__') throw NOT_PLAIN
      writeString(key)
      write(value[key], depth + 1)
    }
  } else if (prototype === Array.prototype && Array.isArray(value)) {
    const { length } = value
    // Holes, and properties beside the elements.
    if (Object.keys(value).length !== length) throw NOT_PLAIN
    reserve(5)
    out[pos++] = ARRAY
    writeUint32(length)
    for (let i = 0; i < length; i++) {
      const item = value[i]
      if (item === undefined && !(i in value)) throw NOT_PLAIN
      write(item, depth + 1)
    }
  } else if (isUint8Array(value)) {
    const { buffer } = value
    if (isSharedArrayBuffer(buffer) || buffer.resizable) throw NOT_PLAIN
    once(buffer)
    const { length } = value
    // One of length 0 may be detached, which the serializer refuses.
    if (length === 0) throw NOT_PLAIN
    reserve(5 + length)
    out[pos++] = BYTES
    writeUint32(length)
    out.set(value, pos)
    pos += length
  } else if (value instanceof TransferBuffer) {
    moving ??= []
    reserve(5)
    out[pos++] = BUFFER
    writeUint32(moving.push(value) - 1)
  } else {
    throw NOT_PLAIN
  }
}

/** The TransferBuffers of the value that was written last, which move with it; null without any. */
function takeMoving() {
  const buffers = moving
  moving = null
  return buffers
}

/** Where a TransferBuffer cannot be. */
const notHere = () =>
  fail('Unserializable', 'a TransferBuffer moves once, in plain data: arguments, results, and plain objects and arrays in them')

/** Throws if there is a TransferBuffer in `value`, which is not written here. */
function refuseBuffers(value, visited = new Set()) {
  if (typeof value !== 'object' || value === null || visited.has(value)) return
  visited.add(value)
  if (value instanceof TransferBuffer) throw notHere()
  if (ArrayBuffer.isView(value)) return
  if (value instanceof Map) for (const pair of value) refuseBuffers(pair, visited)
  else if (value instanceof Set) for (const item of value) refuseBuffers(item, visited)
  else for (const key of Object.keys(value)) refuseBuffers(value[key], visited)
}

/** Gives `value` away if it is of those that lie beside the message. */
function writeOutside(value) {
  const number = outside(value)
  if (number < 0) return false
  const isBytes = isUint8Array(value)
  // Two views of one memory are one memory there, too.
  if (isBytes) once(value.buffer)
  reserve(5)
  out[pos++] = isBytes ? OUTSIDE : OUTSIDE_BUFFER
  writeUint32(number)
  return true
}

/** Arguments of a call: a new array without holes, which nothing in it can be. */
function writeArgs(args) {
  const { length } = args
  reserve(5)
  out[pos++] = ARRAY
  writeUint32(length)
  for (let i = 0; i < length; i++) write(args[i], 1)
}

/** What the runtime's serializer writes, and only a message can read; there is none where WebAssembly is off. */
const Module = globalThis.WebAssembly?.Module

/** Whether only a message can carry `value`, and only within its process: memory that is shared, and what has a way of its own to be cloned. */
function hasOwnWay(value) {
  if (ArrayBuffer.isView(value)) return isSharedArrayBuffer(value.buffer)
  if (isSharedArrayBuffer(value) || (Module !== undefined && value instanceof Module)) return true
  for (let at = Object.getPrototypeOf(value); at !== null && at !== Object.prototype; at = Object.getPrototypeOf(at)) {
    for (const symbol of Object.getOwnPropertySymbols(at)) if (symbol.description?.startsWith('messaging_')) return true
  }
  return false
}

/**
 * Calls `look` for each object in `value`, in an order that a copy of it has too; for an error it gives what is to be looked at in its place, for others
 * null. False when something has a way of its own to be cloned.
 */
function survey(value, look, errors = 0, visited = new Set()) {
  if (typeof value !== 'object' || value === null || visited.has(value)) return true
  visited.add(value)
  if (value instanceof TransferBuffer) throw notHere()
  if (ArrayBuffer.isView(value)) return !isSharedArrayBuffer(value.buffer)
  const all = (items, errors) => {
    for (const item of items) if (!survey(item, look, errors, visited)) return false
    return true
  }
  const inside = look(value)
  if (inside !== null) {
    if (errors === MAX_ERRORS) throw tooDeep()
    return all(inside, errors + 1)
  }
  if (value instanceof Map) {
    for (const pair of value) if (!all(pair, errors)) return false
    return true
  }
  if (value instanceof Set) return all(value, errors)
  if (hasOwnWay(value)) return false
  for (const key of Object.keys(value)) if (!survey(value[key], look, errors, visited)) return false
  return true
}

const PARTS = new Set(['name', 'message', 'stack', 'cause'])

const tooDeep = () => fail('TooLarge', 'errors are nested too deeply', { max_depth: MAX_ERRORS })

/**
 * What the serializer does not keep of an error: `[name, hasCause, cause, keys, values]`, and of a DOMException, of which it keeps nothing, the place in the
 * value, message, stack and code as well. Null where `error` is neither.
 */
function parts(error) {
  if (error instanceof DOMException) {
    const keys = Object.keys(error).filter((key) => !PARTS.has(key) && key !== 'code')
    const { name, message, stack, code, cause } = error
    const values = keys.map((key) => error[key])
    return [String(name), Object.hasOwn(error, 'cause'), cause, keys, values, error, String(message), String(stack), code]
  }
  if (!isNativeError(error)) return null
  // The runtime writes such a one, and cannot read it.
  const chain = new Set()
  for (let at = error; isNativeError(at); at = at.cause) {
    if (chain.has(at)) throw fail('Unserializable', 'an error is its own cause')
    if (chain.size === MAX_ERRORS) throw tooDeep()
    chain.add(at)
  }
  const keys = Object.keys(error).filter((key) => !PARTS.has(key))
  if (error instanceof AggregateError && !keys.includes('errors')) keys.push('errors')
  return [String(error.name), Object.hasOwn(error, 'cause'), error.cause, keys, keys.map((key) => error[key])]
}

/** Written by the runtime. Throws what it throws. */
function writeCloned(value) {
  const found = []
  const plain = survey(value, (error) => {
    const kept = parts(error)
    if (kept === null) return null
    found.push(kept)
    return [kept[2], ...kept[4]]
  })
  if (!plain) throw NOT_PLAIN
  const serializer = new v8.Serializer()
  serializer.writeHeader()
  serializer.writeValue(found.length > 0 ? [value, found] : value)
  const bytes = serializer.releaseBuffer()
  reserve(5 + bytes.length)
  out[pos++] = found.length > 0 ? WITH_ERRORS : CLONED
  writeUint32(bytes.length)
  out.set(bytes, pos)
  pos += bytes.length
}

function writeAny(value, areArgs) {
  const start = pos
  try {
    if (areArgs) writeArgs(value)
    else write(value, 0)
  } catch (error) {
    moving = null
    if (error !== NOT_PLAIN) throw error
    pos = start
    if (outside !== null) outside(null)
    writeCloned(value)
  } finally {
    if (seen > 0) forget()
  }
}

/**
 * Writes `value` into memory of this module from `at` on, and returns where it ends; see `written`. False when it has to travel beside
 * the task; throws what a getter throws. `areArgs`: it is the list of arguments of a call.
 */
function encode(value, at, areArgs = false) {
  out = own
  pos = at
  end = own.length
  grows = true
  return tryWrite(value, areArgs)
}

/** As `encode`, into `target`; null when there is no room before `limit`. */
function encodeInto(target, value, at, limit) {
  out = target
  pos = at
  end = limit
  grows = false
  try {
    return tryWrite(value, false)
  } catch (error) {
    if (error === NO_ROOM) return null
    throw error
  }
}

/**
 * As `encodeInto`, between processes: `take(object)` gets each object before it is written, and returns its number if it lies beside the
 * message, or a negative number. What is written by the runtime has all of it inside: `take(null)` takes back what it was given.
 */
function encodeBeside(target, value, at, limit, areArgs, take) {
  outside = take
  out = target
  pos = at
  end = limit
  grows = false
  try {
    return tryWrite(value, areArgs)
  } catch (error) {
    if (error === NO_ROOM) return null
    throw error
  } finally {
    outside = null
  }
}

function tryWrite(value, areArgs) {
  try {
    writeAny(value, areArgs)
    return pos
  } catch (error) {
    if (error === NO_ROOM) throw error
    // The runtime's own words for what cannot be cloned; whether it can travel beside the task is asked there.
    if (error === NOT_PLAIN || /could not be cloned|Cannot serialize|detached ArrayBuffer/.test(error?.message)) return false
    throw error
  }
}

/** Where `encode` has written. Memory of a large value is let go. */
const written = () => own
function shrink() {
  if (own.length > 1 << 20) own = Buffer.allocUnsafeSlow(MIN_OWN)
}

// ---- reading ----

let from = own
let at = 0
let received = null
/** Gives what lies beside the message that is read. */
let beside = null

function readUint32() {
  const n = from[at] | (from[at + 1] << 8) | (from[at + 2] << 16) | (from[at + 3] << 24)
  at += 4
  return n >>> 0
}

const KEYS = 1024
const keys = new Array(KEYS).fill('')

/** A short text, the same string as the last one of these bytes: names of properties come again and again. */
function readShort() {
  const length = from[at++]
  let hash = length
  for (let i = at, last = at + length; i < last; i++) hash = (Math.imul(hash, 31) + from[i]) | 0
  const known = keys[hash & (KEYS - 1)]
  if (known.length === length) {
    let i = 0
    while (i < length && known.charCodeAt(i) === from[at + i]) i++
    if (i === length) {
      at += length
      return known
    }
  }
  const text = from.latin1Slice(at, at + length)
  keys[hash & (KEYS - 1)] = text
  at += length
  return text
}

function read() {
  const tag = from[at++]
  switch (tag) {
    case UNDEFINED:
      return undefined
    case NULL:
      return null
    case TRUE:
      return true
    case FALSE:
      return false
    case INT:
      return readUint32() | 0
    case DOUBLE:
      for (let i = 0; i < 8; i++) floatBytes[i] = from[at + i]
      at += 8
      return float[0]
    case SHORT:
      return readShort()
    case LATIN1: {
      const length = readUint32()
      at += length
      return from.latin1Slice(at - length, at)
    }
    case UTF16: {
      const length = readUint32() * 2
      at += length
      return from.ucs2Slice(at - length, at)
    }
    case BYTES: {
      const length = readUint32()
      const bytes = new Uint8Array(length)
      // `slice` would make a Buffer of it.
      bytes.set(from.subarray(at, at + length))
      at += length
      return bytes
    }
    case ARRAY: {
      const length = readUint32()
      const array = []
      for (let i = 0; i < length; i++) array.push(read())
      return array
    }
    case OBJECT: {
      const length = readUint32()
      const object = {}
      for (let i = 0; i < length; i++) {
        const key = read()
        object[key] = read()
      }
      return object
    }
    case BUFFER:
      return received[readUint32()]
    case OUTSIDE:
    case OUTSIDE_BUFFER:
      if (beside === null) throw fail('Corrupt', 'value of a worker has nothing beside it', { tag })
      return beside(readUint32(), tag === OUTSIDE_BUFFER)
    case CLONED:
    case WITH_ERRORS: {
      const length = readUint32()
      at += length
      const reader = new v8.Deserializer(from.subarray(at - length, at))
      reader.readHeader()
      const value = reader.readValue()
      return tag === CLONED ? value : rebuild(value[0], value[1])
    }
    default:
      throw fail('Corrupt', 'value of a worker has no known form', { tag })
  }
}

/** Gives the errors in `value` what the serializer did not keep of them. */
function rebuild(value, found) {
  // A DOMException is an object without anything, or an error, until it is dealt with.
  const exceptions = new Set(found.map((kept) => kept[5]).filter((object) => object !== undefined))
  let next = 0
  survey(value, (error) => {
    const isException = exceptions.has(error)
    if (!isException && !isNativeError(error)) return null
    const [name, hasCause, cause, names, values, , message, stack, code] = found[next++]
    if (isException || error.name !== name) hide(error, 'name', name)
    if (hasCause) hide(error, 'cause', cause)
    names.forEach((key, i) => {
      if (key === 'errors') hide(error, key, values[i])
      else Object.defineProperty(error, key, { value: values[i], writable: true, enumerable: true, configurable: true })
    })
    // The class is not the runtime's: DOMException, ours, and AggregateError.
    if (isException) {
      hide(error, 'message', message)
      hide(error, 'stack', stack)
      hide(error, 'code', code)
      Object.setPrototypeOf(error, DOMException.prototype)
    } else if (typeof error.status === 'number' && String(error.code).startsWith('ERR_OFFLOOP_'))
      Object.setPrototypeOf(error, OffloopError.prototype)
    else if (names.includes('errors') && name === 'AggregateError') Object.setPrototypeOf(error, AggregateError.prototype)
    return [cause, ...values]
  })
  return value
}

function hide(object, name, value) {
  Object.defineProperty(object, name, { value, writable: true, configurable: true })
}

/** The value at `offset` of `bytes`, a Buffer; `buffers` are the TransferBuffers that came along. */
function decode(bytes, offset, buffers = null) {
  from = bytes
  at = offset
  received = buffers
  const value = read()
  from = own
  received = null
  return value
}

/** As `decode`, of what `encodeBeside` wrote; `give(number, isBuffer)` has what lies beside. Returns the value and where it ends. */
function decodeBeside(bytes, offset, give) {
  from = bytes
  at = offset
  beside = give
  try {
    return { value: read(), end: at }
  } finally {
    from = own
    beside = null
  }
}

// ---- what cannot travel ----

/** Where in `value` something is that cannot be cloned, or that `stays`, as text: `.rows[3].done`. */
function findUnclonable(value, stays, path = '', visited = new Set()) {
  if (typeof value === 'function' || typeof value === 'symbol') return path
  if (typeof value !== 'object' || value === null || visited.has(value)) return null
  visited.add(value)
  if (value instanceof TransferBuffer || stays(value)) return path
  const inside = (item, name) => findUnclonable(item, stays, path + name, visited)
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i++) {
      const found = inside(value[i], `[${i}]`)
      if (found !== null) return found
    }
  } else if (value instanceof Map) {
    let i = 0
    for (const [key, item] of value) {
      const found = inside(key, `.keys()[${i}]`) ?? inside(item, `.values()[${i}]`)
      if (found !== null) return found
      i++
    }
  } else if (value instanceof Set) {
    let i = 0
    for (const item of value) {
      const found = inside(item, `.values()[${i++}]`)
      if (found !== null) return found
    }
  } else {
    for (const key of Object.keys(value)) {
      const found = inside(value[key], /^[A-Za-z_$][\w$]*$/.test(key) ? `.${key}` : `[${JSON.stringify(key)}]`)
      if (found !== null) return found
    }
  }
  try {
    structuredClone(value)
    return null
  } catch {
    return path
  }
}

/** The error of a `what` that cannot be cloned; `cause` is what the runtime said, or says it all. What `stays` here is the reason as well. */
function unserializable(what, value, cause, stays = () => false) {
  if (cause instanceof OffloopError && cause.code === 'ERR_OFFLOOP_TOO_LARGE') return cause
  if (isGeneratorObject(value)) {
    const hint = what === 'result' ? 'a result that is a generator cannot be cloned: stream takes its values' : `${what} cannot be cloned`
    const error = fail('Unserializable', hint, { got: typeName(value) })
    error.cause = cause
    return error
  }
  let path = null
  let item = value
  try {
    path = findUnclonable(value, stays)
    if (path === '') item = value
    else if (path !== null) item = undefined
  } catch {
    // A getter or a proxy that throws.
  }
  const values = path === null || path === '' ? { got: typeName(item) } : { path: path.replace(/^\./, '') }
  const error = fail('Unserializable', `${what} cannot be cloned`, values)
  error.cause = cause
  return error
}

/** The error of a `what` that has come and cannot be read. */
function unreadable(what, thrown) {
  const error = fail('Unserializable', `${what} cannot be read`, { why: thrown?.message })
  error.cause = thrown
  return error
}

module.exports = {
  encode,
  encodeInto,
  takeMoving,
  refuseBuffers,
  written,
  shrink,
  decode,
  hasOwnWay,
  unserializable,
  unreadable,
  encodeBeside,
  decodeBeside,
  BESIDE,
  FAILED,
}

'use strict'
// OffloopError, from the core's table.

const { constants } = require('node:os')
const native = require('./native.cjs')

const byStatus = new Map()
const byKind = new Map()
for (const row of native.errorTable()) {
  byStatus.set(row.status, row)
  byKind.set(row.kind, row)
}
const CANCELLED = byKind.get('Cancelled').status
const WORKER_LOST = byKind.get('WorkerLost').status

function hidden(object, name, value) {
  Object.defineProperty(object, name, { value, writable: true, configurable: true })
}

class OffloopError extends Error {
  constructor(status, message, options) {
    super(message, options)
    const row = byStatus.get(status)
    if (status === CANCELLED) hidden(this, 'name', 'AbortError')
    this.code = row ? row.code : 'ERR_OFFLOOP_UNKNOWN'
    this.status = status
    this.retry = row ? row.retry : 'never'
  }
}
hidden(OffloopError.prototype, 'name', 'OffloopError')

// Of two names of one number (SIGABRT and SIGIOT, SIGIO and SIGPOLL) the first is the one that child_process says.
const signals = new Map(
  Object.entries(constants.signals)
    .reverse()
    .map(([name, number]) => [number, name]),
)
/** As Node.js names signals; one that has no name is its number, as text. */
const signalName = (number) => signals.get(number) ?? String(number)

/** Called by native code for each error that it hands out. */
function fromNative(status, message, errno, syscall, exitCode, oom, poison, signal) {
  const error = new OffloopError(status, message)
  if (errno !== undefined) {
    error.errno = errno
    error.syscall = syscall
  }
  if (exitCode !== undefined) error.exitCode = exitCode
  if (signal !== undefined) error.signal = signalName(signal)
  if (status === WORKER_LOST) {
    error.oom = oom
    error.poison = poison
  }
  return error
}

const STANDARD = { AggregateError, EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError }
// What an error has beside its own properties.
const PARTS = new Set(['name', 'message', 'stack', 'cause'])

/** Called by native code for an error inside a value. A `status` other than 0 is that of an OffloopError. */
function wrapError(name, message, stack, cause, properties, status) {
  let error
  if (status !== 0) error = new OffloopError(status, message)
  else if (name === 'AggregateError') error = new AggregateError([], message)
  else error = new (Object.hasOwn(STANDARD, name) ? STANDARD[name] : Error)(message)
  if (error.name !== name) hidden(error, 'name', name)
  // This stack would be that of the reader.
  hidden(error, 'stack', stack === '' ? `${name}: ${message}` : stack)
  if (cause !== undefined) hidden(error, 'cause', cause)
  for (const [key, value] of properties) {
    // `errors` of an AggregateError is hidden, as its own is.
    if (key === 'errors' && name === 'AggregateError') hidden(error, key, value)
    else Object.defineProperty(error, key, { value, writable: true, enumerable: true, configurable: true })
  }
  return error
}

/** Called by native code: `[name, message, stack, cause, properties]` of an error inside a value. */
function unwrapError(error) {
  const properties = Object.entries(error).filter(([key]) => !PARTS.has(key))
  if (error instanceof AggregateError && !Object.hasOwn(Object.fromEntries(properties), 'errors')) properties.push(['errors', error.errors])
  const text = (value) => (value === undefined ? '' : String(value))
  const [name, message] = [text(error.name), text(error.message)]
  const stack = text(error.stack)
  return [name, message, stack === `${name}: ${message}` ? '' : stack, error.cause, properties]
}

/** An error that only this face can find, in the core's form: kind, what happened, the values. */
function fail(kind, message, values = {}) {
  const row = byKind.get(kind)
  // A list of names is ours, and of use when it is whole.
  const shown = Object.entries(values).map(([name, value]) => `${name}=${name === 'known' ? value : String(value).slice(0, 80)}`)
  return new OffloopError(row.status, `${row.text}: ${message}${shown.length > 0 ? ` (${shown.join(', ')})` : ''}`)
}

function aborted(reason) {
  return new OffloopError(CANCELLED, 'cancelled: the signal was aborted', { cause: reason })
}

function typeName(value) {
  if (value === null) return 'null'
  if (typeof value !== 'object') return typeof value
  try {
    return value.constructor?.name || Object.prototype.toString.call(value).slice(8, -1)
  } catch {
    return 'object'
  }
}

function checkObject(value, what) {
  if (value === null || typeof value !== 'object' || Array.isArray(value))
    throw fail('Invalid', `${what} are not an object`, { got: typeName(value) })
  return value
}

/** Options of this package: an object that is nothing else, so that an argument in the wrong place is noticed. */
function checkOptions(value) {
  checkObject(value, 'options')
  if (Object.prototype.toString.call(value) !== '[object Object]')
    throw fail('Invalid', 'options are not a plain object', { got: typeName(value) })
  return value
}

/** One that is not among `known`, with the one that was probably meant. */
function noSuchOption(option, known) {
  const meant = native.nearest(option, known)
  return fail('Invalid', 'unknown option', { option, ...(meant === undefined ? {} : { did_you_mean: meant }), known })
}

/** What is not among `known` options. */
function checkKnown(unknown, known) {
  const [option] = Object.keys(unknown)
  if (option !== undefined) throw noSuchOption(option, known)
}

module.exports = {
  OffloopError,
  fromNative,
  signalName,
  wrapError,
  unwrapError,
  fail,
  aborted,
  typeName,
  checkObject,
  checkOptions,
  noSuchOption,
  checkKnown,
  CANCELLED,
}

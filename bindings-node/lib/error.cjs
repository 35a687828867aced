'use strict'
// OffloopError, from the core's table.

const native = require('./native.cjs')

const byStatus = new Map()
const byKind = new Map()
for (const row of native.errorTable()) {
  byStatus.set(row.status, row)
  byKind.set(row.kind, row)
}
const CANCELLED = byKind.get('Cancelled').status

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

/** Called by native code for each error that it hands out. */
function fromNative(status, message, errno, syscall) {
  const error = new OffloopError(status, message)
  if (errno !== undefined) {
    error.errno = errno
    error.syscall = syscall
  }
  return error
}

/** An error that only this face can find, in the core's form: kind, what happened, the values. */
function fail(kind, message, values = {}) {
  const row = byKind.get(kind)
  const shown = Object.entries(values).map(([name, value]) => `${name}=${String(value).slice(0, 80)}`)
  return new OffloopError(row.status, `${row.text}: ${message}${shown.length > 0 ? ` (${shown.join(', ')})` : ''}`)
}

function aborted(reason) {
  return new OffloopError(CANCELLED, 'cancelled: the signal was aborted', { cause: reason })
}

function typeName(value) {
  if (value === null) return 'null'
  if (typeof value !== 'object') return typeof value
  try {
    return value.constructor?.name ?? 'object'
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

/** What is not among `known` options. */
function checkKnown(unknown, known) {
  const [option] = Object.keys(unknown)
  if (option !== undefined) throw fail('Invalid', 'unknown option', { option, known })
}

module.exports = { OffloopError, fromNative, fail, aborted, typeName, checkObject, checkOptions, checkKnown, CANCELLED }

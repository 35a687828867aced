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
  return value === null ? 'null' : typeof value === 'object' ? (value.constructor?.name ?? 'object') : typeof value
}

module.exports = { OffloopError, fromNative, fail, aborted, typeName, CANCELLED }

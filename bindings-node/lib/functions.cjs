'use strict'
// The functions of a worker's file, and the errors that they throw.

const { fail } = require('./error.cjs')
const { encodeInto, unserializable } = require('./codec.cjs')

/** What a file says of `name`: not what every object and every function has. */
function memberOf(object, name) {
  const found = object[name]
  return name === '__proto__' || found === Object.prototype[name] || found === Function.prototype[name] ? undefined : found
}

/** The function that is exported as `name`. */
function functionOf(loaded, name) {
  let found = memberOf(loaded, name)
  if (typeof found !== 'function') {
    const inner = loaded.default
    // CommonJS: `module.exports` is the default export, and what a compiler made of `export default` is inside of it.
    if (inner !== null && (typeof inner === 'object' || typeof inner === 'function')) found = memberOf(inner, name)
  }
  if (typeof found !== 'function') {
    const has = Object.keys(loaded).filter((key) => typeof loaded[key] === 'function')
    throw fail('NotFound', 'worker has no function of this name', { name, exports: has.join(' ') || 'none' })
  }
  return found
}

/** `init` or `teardown`, if the file has one. */
function hookOf(loaded, name) {
  const found = loaded[name] ?? loaded.default?.[name]
  return typeof found === 'function' ? found : undefined
}

const room = Buffer.allocUnsafeSlow(64 * 1024)

/** An error of a task that cannot be cloned, as far as it can. */
function shown(error) {
  if (error === null || typeof error !== 'object') return unserializable('what the task threw', error)
  const text = (name) => {
    try {
      return String(error[name])
    } catch {
      return ''
    }
  }
  const make = () => {
    const copy = new Error(text('message'))
    copy.name = text('name')
    copy.stack = text('stack')
    return copy
  }
  const copy = make()
  for (const key of Object.keys(error)) {
    try {
      copy[key] = structuredClone(error[key])
    } catch {
      // Left out.
    }
  }
  try {
    if (encodeInto(room, copy, 0, room.length) !== false) return copy
  } catch {
    // What is left of it cannot be written either: a cycle of causes.
  }
  return make()
}

/** Text of an error that ends its worker. */
function textOf(error) {
  try {
    if (typeof error?.stack === 'string' && error.stack !== '') return error.stack
    return error instanceof Error ? `${error.name}: ${error.message}` : `thrown: ${String(error)}`
  } catch {
    return 'an error without text'
  }
}

module.exports = { functionOf, hookOf, shown, textOf }

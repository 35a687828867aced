'use strict'
// `move`: marks what a call, or a result, gives away instead of copying it.

const { isAnyArrayBuffer, isArrayBuffer } = require('node:util').types
const { fail, typeName } = require('./error.cjs')
const { TransferBuffer } = require('./buffer.cjs')

/** What goes along with a marked object. */
const lists = new WeakMap()
/** Whether anything was ever marked here: until then no value is looked through. */
let used = false

function move(value, list) {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) {
    throw fail('Invalid', 'what is moved is no object', { got: typeName(value) })
  }
  if (list !== undefined && !Array.isArray(list)) throw fail('Invalid', 'list of what is moved is not an array', { got: typeName(list) })
  // It always moves.
  if (value instanceof TransferBuffer && list === undefined) return value
  used = true
  lists.set(value, list ?? [ArrayBuffer.isView(value) ? value.buffer : value])
  return value
}

/** Everything that is marked in `value`, or null. */
function movedIn(value) {
  if (!used || typeof value !== 'object' || value === null) return null
  const found = new Set()
  look(value, found, new Set())
  return found.size > 0 ? [...found] : null
}

function look(value, found, visited) {
  if (typeof value !== 'object' || value === null || visited.has(value)) return
  visited.add(value)
  const list = lists.get(value)
  if (list !== undefined) for (const one of list) found.add(one)
  if (ArrayBuffer.isView(value) || isAnyArrayBuffer(value)) return
  if (value instanceof Map) {
    for (const [key, item] of value) {
      look(key, found, visited)
      look(item, found, visited)
    }
  } else if (value instanceof Set) for (const item of value) look(item, found, visited)
  else for (const key of Object.keys(value)) look(value[key], found, visited)
}

/**
 * What a value gives away to another process, marked in it or in its `transferList`: memory, which `detach` takes away here once it was copied. A
 * TransferBuffer moves by itself. Throws for what cannot leave its process.
 */
function memoryOf(value, transferList) {
  const list = transferList ?? movedIn(value)
  if (list === null) return null
  const memory = list.filter((one) => !(one instanceof TransferBuffer))
  const at = list.findIndex((one, i) => !(one instanceof TransferBuffer || isArrayBuffer(one)) || list.indexOf(one) < i)
  if (at >= 0)
    throw fail('Unserializable', 'what is to be moved cannot leave its process, or is there twice', { at, got: typeName(list[at]) })
  return memory
}

/** Takes the memory away from whoever had it; what the runtime does not give away, such as the pool of `Buffer`, stays. */
function detach(memory) {
  for (const buffer of memory ?? []) {
    try {
      structuredClone(undefined, { transfer: [buffer] })
    } catch {
      // It was copied.
    }
  }
}

module.exports = { move, movedIn, memoryOf, detach }

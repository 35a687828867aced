'use strict'
// Piscina's `move` and its interface `Transferable`, on both sides.

// Registered, so that objects made with the symbols of piscina itself are understood.
const transferableSymbol = Symbol.for('Piscina.transferable')
const valueSymbol = Symbol.for('Piscina.valueOf')
const queueOptionsSymbol = Symbol.for('Piscina.queueOptions')

/** What `move` has returned. */
const moved = new WeakSet()

class Moved {
  #value
  #list
  constructor(value, list) {
    this.#value = value
    this.#list = list
  }

  get [transferableSymbol]() {
    return this.#list
  }

  get [valueSymbol]() {
    return this.#value
  }
}

function isTransferable(value) {
  return transferableSymbol in value && valueSymbol in value
}

function move(value) {
  if (typeof value !== 'object' || value === null) return value
  const marked = isTransferable(value) ? value : new Moved(value, ArrayBuffer.isView(value) ? value.buffer : value)
  moved.add(marked)
  return marked
}

/** `{ value, list }` of what `move` has returned, else null. */
function movedParts(value) {
  if (typeof value !== 'object' || value === null || !moved.has(value)) return null
  return { value: value[valueSymbol], list: [value[transferableSymbol]].flat() }
}

module.exports = { transferableSymbol, valueSymbol, queueOptionsSymbol, move, movedParts }

'use strict'
// The queues that a Piscina may have in front of its threads.

/** First in, first out, in a ring that grows: `push`, `unshift` and `shift` take the same time at any length. */
class FixedQueue {
  #slots = new Array(16)
  #first = 0
  #size = 0

  get size() {
    return this.#size
  }

  isEmpty() {
    return this.#size === 0
  }

  push(task) {
    this.#makeRoom()
    this.#slots[(this.#first + this.#size++) & (this.#slots.length - 1)] = task
  }

  unshift(task) {
    this.#makeRoom()
    this.#first = (this.#first - 1) & (this.#slots.length - 1)
    this.#slots[this.#first] = task
    this.#size++
  }

  shift() {
    if (this.#size === 0) return null
    const task = this.#slots[this.#first]
    this.#slots[this.#first] = undefined
    this.#first = (this.#first + 1) & (this.#slots.length - 1)
    this.#size--
    return task
  }

  remove(task) {
    const mask = this.#slots.length - 1
    let at = 0
    while (at < this.#size && this.#slots[(this.#first + at) & mask] !== task) at++
    if (at === this.#size) return
    for (; at < this.#size - 1; at++) this.#slots[(this.#first + at) & mask] = this.#slots[(this.#first + at + 1) & mask]
    this.#slots[(this.#first + at) & mask] = undefined
    this.#size--
  }

  /** Lengths are powers of two. */
  #makeRoom() {
    const { length } = this.#slots
    if (this.#size < length) return
    const slots = new Array(length * 2)
    for (let i = 0; i < length; i++) slots[i] = this.#slots[(this.#first + i) & (length - 1)]
    this.#slots = slots
    this.#first = 0
  }
}

/** First in, first out, in an array that anybody may look at. */
class ArrayTaskQueue {
  tasks = []

  get size() {
    return this.tasks.length
  }

  push(task) {
    this.tasks.push(task)
  }

  unshift(task) {
    this.tasks.unshift(task)
  }

  shift() {
    return this.tasks.shift() ?? null
  }

  remove(task) {
    const at = this.tasks.indexOf(task)
    if (at >= 0) this.tasks.splice(at, 1)
  }
}

function isTaskQueue(value) {
  if (typeof value !== 'object' || value === null || !('size' in value)) return false
  return ['push', 'shift', 'remove'].every((name) => typeof value[name] === 'function')
}

/** A queue in which tasks come out as they went in, whoever keeps them. */
const isPlain = (queue) => queue === undefined || queue.constructor === FixedQueue || queue.constructor === ArrayTaskQueue

module.exports = { FixedQueue, ArrayTaskQueue, isTaskQueue, isPlain }

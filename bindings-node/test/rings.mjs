// What the tests of rings need.

import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import { RingBuffer } from '../lib/index.mjs'

export const native = createRequire(import.meta.url)('../lib/native.cjs')
export const layout = native.ringLayout()

export const throws = (act, code, message = /./) => assert.throws(act, (error) => error.code === code && message.test(error.message))

/** Another handle of `ring` whose producers and consumers go the given way: over the mapping, or with a native call per record. */
export function by(way, ring) {
  const own = RingBuffer.attach(ring.fds)
  return {
    open(make) {
      const { ringMemory } = native
      native.ringMemory = way === 'mapped' ? ringMemory : () => null
      try {
        return make(own)
      } finally {
        native.ringMemory = ringMemory
      }
    },
  }
}

export const record = (length, n) => Uint8Array.from({ length }, (_, i) => (n + i * 7) & 255)

export function drain(consumer) {
  const all = []
  for (let one = consumer.tryPop(); one !== null; one = consumer.tryPop()) all.push(one)
  return all
}

/** The mapping of a ring as typed arrays, whoever sits on its seats. */
export function mapping(ring) {
  const handle = native.ringAttach(ring.fds)
  const memory = native.ringMemory(handle)
  return { words: new Int32Array(memory), bytes: new Uint8Array(memory), dataAt: native.ringInfo(handle).dataAt }
}

/** The index of a word of a seat in such an array. */
export const seatWord = (name, seat = 1) => (layout.seatsAt + seat * layout.seatLength + layout[name]) >> 2

/** Every way that a writer and a reader can go. */
export const WAYS = ['mapped', 'native'].flatMap((writes) => ['mapped', 'native'].map((reads) => [writes, reads]))

/** Counts native calls of `names` while `run` goes on. */
export function nativeCalls(names, run) {
  let calls = 0
  const saved = {}
  for (const name of names) {
    saved[name] = native[name]
    native[name] = (...args) => {
      calls++
      return saved[name](...args)
    }
  }
  try {
    run()
  } finally {
    Object.assign(native, saved)
  }
  return calls
}

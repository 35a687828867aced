// The codec through Node.js: the shared vectors, what other packages write, and what JavaScript makes of each value.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { test } from 'node:test'
import * as msgpack from '@msgpack/msgpack'
import { OffloopError } from 'offloop'

const native = createRequire(import.meta.url)('../lib/native.cjs')
const vectors = JSON.parse(readFileSync(new URL('../../tests/vectors/codec.json', import.meta.url), 'utf8'))

const bytes = (hex) => Uint8Array.from(Buffer.from(hex, 'hex'))
const hex = (view) => Buffer.from(view).toString('hex')

const TYPED = {
  u8: Uint8Array,
  i8: Int8Array,
  u16: Uint16Array,
  i16: Int16Array,
  u32: Uint32Array,
  i32: Int32Array,
  u64: BigUint64Array,
  i64: BigInt64Array,
  f32: Float32Array,
  f64: Float64Array,
}

/** What a value of the vectors is in JavaScript. */
function expected(json) {
  if (Array.isArray(json)) return json.map(expected)
  if (json === null || typeof json !== 'object') return json
  const [[form, v], ...more] = Object.entries(json)[0] === undefined ? [[]] : Object.entries(json)
  if (more.length > 0 || !form?.startsWith('$')) return Object.fromEntries(Object.entries(json).map(([key, item]) => [key, expected(item)]))
  switch (form) {
    case '$hex':
      return bytes(v)
    case '$date':
      return new Date(v)
    case '$float':
      return { inf: Number.POSITIVE_INFINITY, '-inf': Number.NEGATIVE_INFINITY, nan: Number.NaN, '-0': -0 }[v] ?? Number(v)
    case '$int':
      return Number.isSafeInteger(Number(v)) ? Number(v) : BigInt(v)
    case '$map':
      return new Map(v.map(([key, item]) => [expected(key), expected(item)]))
    case '$typed':
      return TYPED[v.dtype].from(v.elements.map(v.dtype.endsWith('64') && v.dtype !== 'f64' ? BigInt : Number))
    case '$error':
      return v
    default:
      throw new Error(`unknown form ${form}`)
  }
}

function sameError(got, want) {
  assert.ok(got instanceof Error)
  assert.deepEqual([got.name, got.message], [want.name, want.message])
  assert.equal(got.stack, want.stack ?? `${want.name}: ${want.message}`)
  assert.deepEqual({ ...got }, want.properties ?? {})
  if (want.cause?.$error) sameError(got.cause, want.cause.$error)
  else assert.deepEqual(got.cause, want.cause)
}

for (const entry of vectors.values.filter((entry) => !entry.beside)) {
  test(`codec: ${entry.name}`, () => {
    for (const form of [entry.hex, ...(entry.also ?? [])]) {
      const got = native.decode(bytes(form))
      const want = expected(entry.nodeValue ?? entry.value)
      if (entry.value?.$error) sameError(got, want)
      else assert.deepStrictEqual(got, want)
      assert.equal(hex(native.encode(got)), entry.node ?? entry.hex, form)
    }
  })
}

for (const entry of vectors.hostile.filter((entry) => !entry.beside)) {
  test(`codec refuses: ${entry.name}`, () => {
    const { max_depth: depth, max_items: items, max_bytes: length } = entry.options ?? {}
    assert.throws(
      () => native.decode(bytes(entry.hex), depth, items, length),
      (error) => {
        assert.ok(error instanceof OffloopError)
        assert.equal(error.code, `ERR_OFFLOOP_${entry.kind === 'TooLarge' ? 'TOO_LARGE' : entry.kind.toUpperCase()}`)
        for (const part of entry.contains) assert.ok(error.message.includes(part), error.message)
        return true
      },
    )
  })
}

test('codec: what @msgpack/msgpack writes is read, and the other way round', () => {
  const value = {
    nil: null,
    yes: true,
    numbers: [0, 127, 128, 255, 65_536, 2 ** 32, 2 ** 53 - 1, -1, -33, -129, -(2 ** 31) - 1, 1.5, -0.25, 1e300],
    text: 'grüße 🦀'.repeat(40),
    bytes: Uint8Array.from({ length: 300 }, (_, i) => i),
    date: new Date(1_700_000_000_123),
    early: new Date(-1),
    nested: { list: [[], {}, [[1]]], '': 'empty key' },
    many: Array.from({ length: 70_000 }, (_, i) => i),
  }
  assert.deepStrictEqual(native.decode(msgpack.encode(value)), value)
  assert.deepStrictEqual(msgpack.decode(native.encode(value)), value)
  assert.equal(hex(native.encode(value)), hex(msgpack.encode(value)))
  // Every form that a writer may choose.
  assert.deepStrictEqual(native.decode(msgpack.encode([1.5, -2], { forceFloat32: true })), [1.5, -2])
  assert.deepStrictEqual(native.decode(msgpack.encode([1n, 2n ** 64n - 1n, -(2n ** 63n)], { useBigInt64: true })), [
    1,
    2n ** 64n - 1n,
    -(2n ** 63n),
  ])
  // What MessagePack has no form for is an extension that another reader may skip or keep.
  const foreign = msgpack.decode(native.encode([Float64Array.of(1.5), 7]))
  assert.deepStrictEqual([foreign[0].type, foreign[1]], [2, 7])
})

test('codec: long payloads are whole, each in memory of its own', () => {
  const value = [new Uint8Array(10_000).fill(1), Float64Array.from({ length: 5000 }, (_, i) => i / 2), new Uint8Array(5000).fill(3)]
  const got = native.decode(native.encode(value))
  assert.deepStrictEqual(got, value)
  got[0].fill(9)
  assert.deepStrictEqual(got.slice(1), value.slice(1))
})

test('codec: errors keep their class, cause and properties', () => {
  const there = (value) => native.decode(native.encode(value))
  const cause = Object.assign(new RangeError('inner'), { errno: -2, code: 'ENOENT' })
  const error = there(Object.assign(new TypeError('outer', { cause }), { details: { list: [1] } }))
  assert.ok(error instanceof TypeError && error.cause instanceof RangeError)
  assert.deepStrictEqual([error.details, error.cause.code, error.cause.errno], [{ list: [1] }, 'ENOENT', -2])
  assert.match(error.stack, /TypeError: outer\n {4}at /)
  assert.ok(!Object.keys(error).includes('cause') && !Object.keys(error).includes('stack'))

  class ShopError extends Error {
    constructor(message) {
      super(message)
      this.name = 'ShopError'
      this.item = 7
    }
  }
  const shop = there(new ShopError('sold out'))
  assert.deepStrictEqual([shop.name, shop.message, shop.item, shop.constructor], ['ShopError', 'sold out', 7, Error])

  const many = there(new AggregateError([new Error('a'), new TypeError('b')], 'both'))
  assert.ok(many instanceof AggregateError)
  assert.deepStrictEqual(many.errors.map(String), ['Error: a', 'TypeError: b'])

  let full
  try {
    native.decode(Uint8Array.of(0xc1))
  } catch (corrupt) {
    full = there(corrupt)
  }
  assert.ok(full instanceof OffloopError)
  assert.deepStrictEqual([full.code, full.status, full.retry], ['ERR_OFFLOOP_CORRUPT', -10, 'never'])
  assert.match(full.message, /^corrupt: byte is no marker/)
})

test('codec: properties of an error that cannot travel stay behind, even in a cycle', () => {
  const error = Object.assign(new Error('x'), { socket: new (class Socket {})(), retry() {}, kept: 1 })
  error.self = error
  error.again = { error }
  const got = native.decode(native.encode(error))
  assert.deepStrictEqual({ ...got }, { kept: 1 })
})

test('codec: undefined is nil, and as a property left out', () => {
  assert.deepEqual(native.encode(undefined), native.encode(null))
  assert.deepStrictEqual(native.decode(native.encode([undefined, null])), [null, null])
  assert.deepStrictEqual(native.decode(native.encode({ left: undefined, kept: null })), { kept: null })
})

test('codec: names from a peer set no prototype', () => {
  const got = native.decode(bytes(`84${'a95f5f70726f746f5f5f'}81a1780${'1'}a1${'61'}01a1${'62'}02a1${'63'}03`))
  assert.deepStrictEqual(Object.keys(got), ['__proto__', 'a', 'b', 'c'])
  assert.equal(got.x, undefined)
  const error = native.decode(native.encode(Object.defineProperty(new Error('x'), '__proto__', { value: { x: 1 }, enumerable: true })))
  assert.ok(error instanceof Error)
  assert.equal(error.x, undefined)
})

test('codec: a value that is no time does not travel, nor does one beyond what a Date holds', () => {
  assert.throws(() => native.encode(new Date(Number.NaN)), { code: 'ERR_OFFLOOP_UNSERIALIZABLE' })
  assert.throws(() => native.decode(bytes('c70cff00000000000fffffffffffff')), { code: 'ERR_OFFLOOP_UNSUPPORTED' })
})

test('codec: what lies deeper than the limit is refused by writer and reader', () => {
  let deep = []
  for (let i = 1; i < 128; i++) deep = [deep]
  assert.deepStrictEqual(native.decode(native.encode(deep)), deep)
  assert.throws(() => native.encode([deep]), { code: 'ERR_OFFLOOP_TOO_LARGE' })
})

test('text of any length comes back whole, whatever its last characters are', () => {
  for (const end of ['', 'a', 'é', '€', '😀', 'é😀', '\0']) {
    for (let length = 110; length < 135; length++) {
      const text = 'x'.repeat(length) + end
      assert.deepEqual(native.roundTrip({ [text]: text }), { [text]: text })
      assert.equal(native.roundTrip(`${text}\ud800`), `${text}\ufffd`)
    }
  }
})

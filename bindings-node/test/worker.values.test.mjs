// Values of a WorkerPool: as structuredClone gives them, and Errors whole.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isProxy } from 'node:util/types'
import { OffloopError } from '../lib/index.mjs'
import { openWorkers, random, rejection } from './support.mjs'

/** One value of each kind, and of those that a codec gets wrong. */
function corners() {
  const shared = { x: 1 }
  const cycle = { name: 'cycle' }
  cycle.self = cycle
  const list = [1]
  list.push(list)
  const sparse = [1, 2, 3]
  delete sparse[1]
  const longer = []
  longer.length = 5
  const named = [1, 2]
  named.extra = 'x'
  const buffer = new ArrayBuffer(16)
  const nested = new Map([[{ key: 1 }, new Set([new Map([[1, 2]])])]])
  nested.set('self', nested)
  let deep = 0
  for (let i = 0; i < 500; i++) deep = [deep]
  class Point {
    x = 1
    #y = 2
    get y() {
      return this.#y
    }
  }
  return [
    undefined, null, true, false, 0, -0, 1, -1, 2 ** 31 - 1, -(2 ** 31), 2 ** 31, 2 ** 53, 1.5, Number.NaN, Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY, 5e-324, '', 'a', 'ÿ', 'Ā', 'äöü'.repeat(50), '€'.repeat(50), '\ud800', 'x\udc00y', '\u{1f600}'.repeat(20), '\0',
    'a'.repeat(24), 'a'.repeat(25), 'a'.repeat(70_000), '€'.repeat(70_000), 0n, -1n, 2n ** 200n, [], {}, [[]], [undefined, null], { a: undefined },
    { 1: 'one', b: 2, 0: 'zero' }, JSON.parse('{"__proto__": 1, "a": 2}'), Object.create(null), { '': 1 }, { constructor: 1, toString: 2 },
    { length: 3, 0: 'a' }, shared, [shared, shared], { a: shared, b: { c: shared } }, cycle, list, sparse, longer, named, deep,
    new Uint8Array(0), new Uint8Array([1, 2, 3]), Buffer.from('abc'), Buffer.alloc(5000, 1), [Buffer.from('a'), Buffer.from('b')],
    new Uint8Array(buffer, 2, 3), [new Uint8Array(buffer), new Uint8Array(buffer, 4)], new Uint8ClampedArray([1, 300]), new Int16Array([-1]),
    new Float64Array([-0, Number.NaN]), new BigInt64Array([1n]), new DataView(buffer, 1, 2), buffer, new ArrayBuffer(0),
    new Date(0), /a+/giu, new Map(), new Set(), new Map([[1, { a: 1 }]]), new Set(['x', {}]), nested,
    Object(1), Object('s'), Object(true), Object(1n), new Point(), { p: new Point() }, 'match'.match(/(?<g>t)/),
    { get a() { return 7 } }, Object.defineProperty({}, 'hidden', { value: 1 }), { [Symbol('s')]: 1, t: 2 },
    Array.from({ length: 1000 }, (_, i) => ({ i, s: `${i}` })), Array.from({ length: 20 }, (_, i) => [i]),
    new Proxy({ a: 1 }, {}),
  ] // biome-ignore format: one screen
}

/** A value that an oracle has not chosen. */
function generate(pick, depth, made) {
  const leaf = () => {
    const leaves = [
      undefined, null, true, pick(1000) - 500, -0, pick(1e9) / 7, Number.NaN, `s${pick(50)}`, 'ü', '\ud83d', '€uro', BigInt(pick(1e9)),
      new Date(pick(1e9)), Buffer.from([pick(256), 2]), new Uint8Array(pick(200)), new Float32Array([1.5, pick(9)]), /x/g, new ArrayBuffer(pick(9)),
    ] // biome-ignore format: one screen
    return leaves[pick(leaves.length)]
  }
  if (depth === 0 || pick(4) === 0) return leaf()
  if (made.length > 0 && pick(12) === 0) return made[pick(made.length)]
  const n = pick(5)
  const child = () => generate(pick, depth - 1, made)
  switch (pick(6)) {
    case 0:
    case 1: {
      const object = {}
      if (pick(3) === 0) made.push(object)
      for (let i = 0; i < n; i++) object[['a', 'b', 'länge', '€', '0', '__x'][pick(6)]] = child()
      return object
    }
    case 2:
    case 3: {
      const array = []
      if (pick(3) === 0) made.push(array)
      for (let i = 0; i < n; i++) {
        if (pick(15) === 0) array.length++
        else array.push(child())
      }
      return array
    }
    case 4: {
      const map = new Map()
      made.push(map)
      for (let i = 0; i < n; i++) map.set(leaf(), child())
      return map
    }
    default: {
      const set = new Set()
      made.push(set)
      for (let i = 0; i < n; i++) set.add(child())
      return set
    }
  }
}

/** Pairs of places that hold the same object: what deepStrictEqual does not see. */
function sharing(value, path = '', seen = new Map(), out = []) {
  if (typeof value !== 'object' || value === null) return out
  if (seen.has(value)) {
    out.push(`${seen.get(value)}=${path}`)
    return out
  }
  seen.set(value, path)
  if (value instanceof Map)
    [...value].forEach(([k, v], i) => {
      sharing(k, `${path}.k${i}`, seen, out)
      sharing(v, `${path}.v${i}`, seen, out)
    })
  else if (value instanceof Set) for (const [i, v] of [...value].entries()) sharing(v, `${path}.s${i}`, seen, out)
  else if (!ArrayBuffer.isView(value)) for (const key of Object.keys(value)) sharing(value[key], `${path}.${key}`, seen, out)
  return out
}

test('every kind of value arrives as structuredClone would give it, both ways', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  for (const value of corners()) {
    const want = structuredClone(isProxy(value) ? { ...value } : value)
    for (const got of [await pool.run(value), await pool.exports.identity(value)]) {
      assert.deepStrictEqual(got, want)
      assert.deepStrictEqual(sharing(got), sharing(want))
    }
  }
  // Of an invalid date deepStrictEqual says that it is not equal to itself.
  assert.ok(Number.isNaN((await pool.run([new Date(Number.NaN)]))[0].getTime()))
  const all = corners().filter((value) => !isProxy(value))
  assert.deepStrictEqual(await pool.run(all), structuredClone(all))
})

test('generated values arrive as structuredClone would give them', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2 })
  const pick = random(20_261_122)
  const values = Array.from({ length: 3000 }, () => generate(pick, 5, []))
  const wanted = values.map((value) => structuredClone(value))
  const results = await Promise.all(values.map((value) => pool.run(value)))
  results.forEach((result, i) => {
    assert.deepStrictEqual(result, wanted[i])
    assert.deepStrictEqual(sharing(result), sharing(wanted[i]))
  })
})

test('a value is taken when the call is made', async (t) => {
  const pool = openWorkers(t)
  const object = { a: 1, list: [1] }
  const bytes = new Uint8Array([1, 2])
  const calls = [pool.run(object), pool.run(bytes), pool.run(object, { timeout: 60_000 })]
  object.a = 2
  object.list.push(2)
  bytes.fill(9)
  assert.deepEqual(await Promise.all(calls), [{ a: 1, list: [1] }, new Uint8Array([1, 2]), { a: 1, list: [1] }])
})

test('large values and large results of any size come through, beside small ones', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2 })
  const sizes = [0, 1, 1000, 1024, 1025, 4096, 60_000, 65_535, 65_536, 65_537, 300_000, 5_000_000]
  const results = await Promise.all(sizes.flatMap((n) => [pool.exports.large(n), pool.run(new Uint8Array(n).fill(3)), pool.run(n)]))
  sizes.forEach((n, i) => {
    const [made, echoed, number] = results.slice(3 * i)
    assert.deepEqual(
      [made.length, made.at(-1), echoed.length, echoed.at(-1), number],
      [n, n > 0 ? 7 : undefined, n, n > 0 ? 3 : undefined, n],
    )
  })
  assert.equal((await rejection(pool.exports.throwLarge(300_000))).message.length, 300_000)
})

test('shared memory is shared, both ways', async (t) => {
  const pool = openWorkers(t)
  const shared = new SharedArrayBuffer(16)
  const result = await pool.exports.makeShared(shared)
  new Int32Array(shared)[2] = 77
  assert.equal(result.view[2], 77)
  assert.equal(new Int32Array(result.shared)[2], 77)
  const results = await Promise.all(Array.from({ length: 200 }, (_, i) => (i % 3 === 0 ? pool.run(shared) : pool.run(i))))
  results.forEach((value, i) => {
    assert.ok(i % 3 === 0 ? value instanceof SharedArrayBuffer : value === i)
  })
})

test('an error comes whole: class, name, message, code, cause, own properties, stack', async (t) => {
  const pool = openWorkers(t)
  for (const error of [await rejection(pool.exports.fail()), await rejection(pool.exports.failLate())]) {
    assert.ok(error instanceof Error)
    assert.deepEqual([error.name, error.message, error.code], ['Own', 'outer', 'E_OUTER'])
    assert.ok(error.cause instanceof TypeError)
    assert.deepEqual([error.cause.message, error.cause.code], ['inner', 'E_INNER'])
    assert.deepEqual(error.details.rows, [1, 2])
    assert.equal(error.details.again, error.cause)
    assert.match(error.stack, /tasks\.mjs/)
    assert.deepEqual(Object.keys(error).sort(), ['code', 'details'])
  }
  // As a value, too, and inside of others.
  const cause = Object.assign(new RangeError('r'), { code: 'E_R' })
  const value = new Map([['e', [Object.assign(new Error('m', { cause }), { name: 'Mine', extra: cause })]]])
  const [got] = (await pool.run(value)).get('e')
  assert.deepEqual([got.name, got.message, got.cause.code, got.extra === got.cause], ['Mine', 'm', 'E_R', true])
  const many = await pool.run(new AggregateError([new TypeError('a'), 'b'], 'all'))
  assert.deepEqual([many instanceof AggregateError, many.errors[0] instanceof TypeError, many.errors[1]], [true, true, 'b'])
  const loop = new Error('loop')
  loop.cause = loop
  // structuredClone cannot do it either.
  assert.equal((await rejection(pool.run([loop]))).code, 'ERR_OFFLOOP_UNSERIALIZABLE')
  const thrown = await rejection(pool.exports.throwLoop())
  assert.deepEqual([thrown.name, thrown.message, thrown.cause], ['Error', 'loop', undefined])
  // One of ours stays one of ours.
  const ours = await rejection(pool.exports.nothing())
  assert.ok(ours instanceof OffloopError)
  assert.equal(ours.code, 'ERR_OFFLOOP_NOT_FOUND')
})

test('anything can be thrown', async (t) => {
  const pool = openWorkers(t)
  for (const value of [undefined, null, 0, 'text', { a: 1 }, [1]]) {
    await assert.rejects(pool.exports.throwValue(value), (error) => {
      assert.deepEqual(error, value)
      return true
    })
    await assert.rejects(pool.exports.reject(value), (error) => {
      assert.deepEqual(error, value)
      return true
    })
  }
})

test('what cannot be cloned is refused with its path, and the pool still works', async (t) => {
  const pool = openWorkers(t)
  const circular = { list: [1, { f: () => {} }] }
  circular.self = circular
  for (const [value, text] of [
    [() => {}, /argument cannot be cloned \(got=function\)/],
    [Symbol('s'), /got=symbol/],
    [{ a: { b: [1, Symbol('s')] } }, /path=a\.b\[1\]/],
    [circular, /path=list\[1\]\.f/],
    [{ 'odd key': new WeakMap() }, /path=\["odd key"\]/],
    [new Map([['k', Promise.resolve()]]), /path=values\(\)\[0\]/],
    [new Promise(() => {}), /got=Promise/],
    [
      {
        get bad() {
          throw new Error('getter')
        },
      },
      /cannot be cloned/,
    ],
  ]) {
    for (const options of [undefined, { priority: 1 }]) {
      const error = await rejection(pool.run(value, options))
      assert.equal(error.code, 'ERR_OFFLOOP_UNSERIALIZABLE')
      assert.match(error.message, text)
    }
  }
  const result = await rejection(pool.exports.makeFunction())
  assert.equal(result.code, 'ERR_OFFLOOP_UNSERIALIZABLE')
  assert.match(result.message, /result cannot be cloned \(path=deep\[0\]\.f\)/)
  assert.equal(await pool.run(1), 1)
})

test('an error that cannot be cloned fails its own task with what can be said of it', async (t) => {
  const pool = openWorkers(t)
  const [odd, fine] = await Promise.allSettled([pool.exports.throwOdd?.(), pool.run(1)])
  assert.equal(fine.value, 1)
  assert.equal(odd.reason.message, 'odd')
  assert.equal(odd.reason.kept, 1)
})

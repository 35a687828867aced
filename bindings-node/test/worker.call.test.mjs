// Calls beyond those of exports: a function that is sent as its source, and one call for each worker.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { move } from '../lib/index.mjs'
import { gate, openWorkers, rejection, until } from './support.mjs'

/** A pool of `n` workers that are there, and the thread of each, by place. */
async function ready(t, n, options) {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: n, minWorkers: n, ...options })
  const door = gate()
  const held = Array.from({ length: n }, () => pool.exports.hold(door.flags))
  await door.started(n)
  door.release()
  await Promise.all(held)
  return pool
}

test('broadcast runs once on each worker, in the order of their places, whatever they have to do', async (t) => {
  const pool = await ready(t, 3)
  const threads = await pool.broadcast(undefined, { name: 'thread' })
  assert.equal(new Set(threads).size, 3)
  const others = Array.from({ length: 500 }, (_, i) => pool.run(i))
  assert.deepEqual(await pool.broadcast(undefined, { name: 'thread', priority: 9 }), threads)
  await Promise.all(others)
  assert.deepEqual(await pool.broadcast({ a: [1] }), [{ a: [1] }, { a: [1] }, { a: [1] }])
  const shared = new SharedArrayBuffer(8)
  await pool.broadcast(shared, { name: 'bump' })
  assert.equal(new Int32Array(shared)[0], 3)
})

test('broadcast waits for a worker that is busy, and nobody else does its part', async (t) => {
  const pool = await ready(t, 2)
  const door = gate()
  const long = pool.exports.hold(door.flags)
  await door.started()
  const all = pool.broadcast(undefined, { name: 'thread' })
  await until(() => pool.stats.completed === 3)
  assert.equal(pool.stats.queued, 1)
  // The idle one goes on meanwhile.
  const idle = await pool.exports.thread()
  assert.equal(pool.stats.queued, 1)
  door.release()
  await long
  const threads = await all
  assert.equal(new Set(threads).size, 2)
  assert.ok(threads.includes(idle))
})

test('broadcast to no worker has no results and starts none', async (t) => {
  const pool = openWorkers(t)
  assert.deepEqual(await pool.broadcast(1), [])
  assert.equal(pool.stats.workers, 0)
})

test('a worker that is lost in its part rejects broadcast, the others go on; with retries it runs again', async (t) => {
  const pool = await ready(t, 3)
  const count = new Int32Array(new SharedArrayBuffer(4))
  const error = await rejection(pool.broadcast({ count, exits: 1 }, { name: 'exitFirst' }))
  assert.deepEqual([error.code, error.exitCode], ['ERR_OFFLOOP_WORKER_LOST', 7])
  await until(() => count[0] === 3)
  await until(() => pool.stats.lost === 1 && pool.stats.running === 0)
  // Its place has another worker when it has something to do.
  const again = await ready(t, 3, { retries: 1 })
  count[0] = 0
  assert.deepEqual(await again.broadcast({ count, exits: 1, value: 'v' }, { name: 'exitFirst' }), ['v', 'v', 'v'])
  assert.equal(count[0], 4)
})

test('what the options of broadcast cannot mean is refused', async (t) => {
  const pool = await ready(t, 2)
  for (const [call, text] of [
    [pool.broadcast(1, { key: 'k' }), /calls of every worker have no key/],
    [pool.options({ key: 'k' }).broadcast(1), /calls of every worker have no key/],
    [
      pool.broadcast(1, { transferList: [] }),
      /option is for a call, not for a pool or for several calls \(option=transferList, belongs_to=run/,
    ],
    [pool.broadcast(move(new Uint8Array(3))), /what is moved cannot be given to several workers/],
    [pool.broadcast(1, 5), /options are not an object/],
  ]) {
    const error = await rejection(call)
    assert.equal(error.code, 'ERR_OFFLOOP_INVALID')
    assert.match(error.message, text)
  }
  await pool.close()
  const closed = await rejection(pool.run(1))
  assert.equal(closed.code, 'ERR_OFFLOOP_CLOSED')
  for (const call of [pool.broadcast(1), pool.options({ timeout: 5 }).broadcast(1), pool.runMany([])]) {
    const error = await rejection(call)
    assert.deepEqual([error.code, error.message], [closed.code, closed.message])
  }
})

test('an aborted broadcast ends for all', async (t) => {
  const pool = await ready(t, 2, { cancelGrace: 1 })
  const abort = new AbortController()
  const door = gate()
  const all = rejection(pool.broadcast(door.flags, { name: 'hold', signal: abort.signal }))
  await door.started(2)
  abort.abort()
  assert.equal((await all).name, 'AbortError')
  await until(() => pool.stats.cancelled === 2)
  assert.equal(await pool.run(1), 1)
})

test('call sends a function: arrows, async ones, with arguments and imports', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  assert.equal(await pool.call((a, b) => a + b, 1, 2), 3)
  assert.equal(
    await pool.call(function twice(n) {
      return n === 0 ? 0 : 2 + twice(n - 1)
    }, 4),
    8,
  )
  assert.equal(await pool.call(async (name) => (await import('node:path')).basename(name), '/a/b.c'), 'b.c')
  assert.deepEqual(await pool.call((...all) => all.length), 0)
  assert.notEqual(await pool.call(() => process.getBuiltinModule?.('node:worker_threads').threadId ?? 1), 0)
  // A comment at its end does not end the expression.
  // biome-ignore format: the comment belongs to the function
  assert.equal(await pool.call((n) => n // the same
  , 5), 5)
})

test('a function is read once per worker and source, not per call', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  // The state of one function object: another one would begin at 1.
  const count = function self() {
    self.n = (self.n ?? 0) + 1
    return self.n
  }
  const results = []
  for (let i = 0; i < 3; i++) results.push(await pool.call(count))
  const make = () => () => 'same source'
  results.push(await pool.call(make()), await pool.call(make()))
  assert.deepEqual(results, [1, 2, 3, 'same source', 'same source'])
})

test('options of a view hold for call, and its errors are those of the function', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, cancelGrace: 1 })
  const late = await rejection(
    pool.options({ timeout: 5 }).call(() => {
      for (;;);
    }),
  )
  assert.equal(late.code, 'ERR_OFFLOOP_TIMEOUT')
  const outside = 5
  const free = await rejection(pool.call(() => outside))
  assert.deepEqual([free.name, /outside is not defined/.test(free.message)], ['ReferenceError', true])
  const thrown = await rejection(
    pool.call((code) => {
      throw Object.assign(new TypeError('mine'), { code })
    }, 'E_MINE'),
  )
  assert.deepEqual([thrown.name, thrown.message, thrown.code], ['TypeError', 'mine', 'E_MINE'])
})

test('what has no source of its own is refused by call, and says why', async (t) => {
  const pool = openWorkers(t)
  const object = {
    method() {},
    async later() {},
    *all() {},
    get value() {
      return 1
    },
  }
  for (const [fn, code, text] of [
    [5, 'ERR_OFFLOOP_INVALID', /no function \(got=number\)/],
    ['() => 1', 'ERR_OFFLOOP_INVALID', /no function \(got=string\)/],
    [Math.max, 'ERR_OFFLOOP_UNSERIALIZABLE', /has no source \(function=max\)/],
    [(() => 1).bind(null), 'ERR_OFFLOOP_UNSERIALIZABLE', /bound function/],
    [class Own {}, 'ERR_OFFLOOP_UNSERIALIZABLE', /class cannot be called \(function=Own\)/],
    [object.method, 'ERR_OFFLOOP_UNSERIALIZABLE', /a method has no source of its own.*function=method/],
    [object.later, 'ERR_OFFLOOP_UNSERIALIZABLE', /a method/],
    [object.all, 'ERR_OFFLOOP_UNSERIALIZABLE', /a method/],
    [Object.getOwnPropertyDescriptor(object, 'value').get, 'ERR_OFFLOOP_UNSERIALIZABLE', /a method/],
  ]) {
    const error = await rejection(pool.call(fn))
    assert.equal(error.code, code)
    assert.match(error.message, text)
  }
  // A name of an export is never taken for a source.
  const error = await rejection(pool.run(1, { name: '\0() => 1' }))
  assert.deepEqual([error.code, /begins with NUL/.test(error.message)], ['ERR_OFFLOOP_INVALID', true])
  assert.throws(() => pool.exports['\0() => 1'], { code: 'ERR_OFFLOOP_INVALID' })
})

// Many calls at once, results as they are taken, and what a running task says.
import assert from 'node:assert/strict'
import { AsyncLocalStorage } from 'node:async_hooks'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { gate, openWorkers, rejection, until } from './support.mjs'

const collect = async (items) => {
  const all = []
  for await (const item of items) all.push(item)
  return all
}
const numbers = (n) => Array.from({ length: n }, (_, i) => i)

test('runMany keeps the order, and is one promise', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2 })
  assert.deepEqual(await pool.runMany(numbers(2000)), numbers(2000))
  assert.deepEqual(await pool.runMany(numbers(50), { name: 'later', timeout: 60_000 }), numbers(50))
  assert.deepEqual(await pool.runMany([]), [])
})

test('runMany rejects with the first error and its index, and cancels the rest', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const door = gate()
  t.after(() => door.release())
  const held = pool.exports.hold(door.flags)
  await door.started()
  const shared = new SharedArrayBuffer(64)
  const tasks = [1, 2, () => {}, 3]
  const error = await rejection(pool.runMany(tasks, { name: 'identity' }))
  assert.deepEqual([error.code, error.index], ['ERR_OFFLOOP_UNSERIALIZABLE', 2])
  await until(() => pool.stats.queued === 0)
  door.release()
  await held
  assert.equal(new Int32Array(shared)[0], 0)
  assert.equal(pool.stats.cancelled, 3)
  const thrown = await rejection(pool.runMany([undefined, undefined], { name: 'fail' }))
  assert.deepEqual([thrown.name, thrown.index], ['Own', 0])
  const abort = new AbortController()
  const aborted = rejection(pool.runMany([0, 1], { name: 'spin', signal: abort.signal }))
  await until(() => pool.stats.running === 1)
  abort.abort('enough')
  assert.deepEqual([(await aborted).name, (await aborted).code], ['AbortError', 'ERR_OFFLOOP_CANCELLED'])
  assert.equal((await rejection(pool.runMany([1], { signal: abort.signal }))).cause, 'enough')
})

test('map takes arrays, iterables and async iterables, and gives results in order', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2 })
  assert.deepEqual(await collect(pool.map(numbers(3000))), numbers(3000))
  assert.deepEqual(await collect(pool.map(new Set(['a', 'b']))), ['a', 'b'])
  assert.deepEqual(await collect(pool.map([])), [])
  assert.deepEqual(await collect(pool.map([Promise.resolve(1), 2])), [1, 2])
  async function* source() {
    for (let i = 0; i < 100; i++) {
      if (i % 10 === 0) await turn()
      yield i
    }
  }
  assert.deepEqual(await collect(pool.map(source(), { name: 'later', concurrency: 7 })), numbers(100))
})

test('map without order gives results as they come', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2, concurrency: 4 })
  const door = gate()
  t.after(() => door.release())
  const results = pool.map([door.flags, ...numbers(50)], { name: 'holdIfShared', ordered: false })
  const first = []
  for (let i = 0; i < 50; i++) first.push((await results.next()).value)
  assert.deepEqual(
    first.sort((a, b) => a - b),
    numbers(50),
  )
  door.release()
  assert.deepEqual(await collect(results), ['held'])
})

test('map takes no more items ahead than its window, and waits beyond a full queue', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, maxQueue: 2 })
  let given = 0
  function* source() {
    while (given < 100) yield given++
  }
  const results = pool.map(source(), { concurrency: 10 })
  for (let taken = 0; taken < 100; taken++) {
    assert.equal((await results.next()).value, taken)
    for (let i = 0; i < 5; i++) await turn()
    assert.ok(given <= taken + 1 + 10, `${given} items given, ${taken + 1} results taken`)
  }
  assert.deepEqual(await results.next(), { done: true, value: undefined })
})

test('leaving the loop cancels what is under way and closes the iterator', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, cancelGrace: 1 })
  let closed = 0
  function* source() {
    try {
      for (let i = 0; ; i++) yield i
    } finally {
      closed++
    }
  }
  for await (const value of pool.map(source(), { concurrency: 50 })) if (value === 20) break
  assert.equal(closed, 1)
  await until(() => pool.stats.queued + pool.stats.running === 0)
  assert.ok(pool.stats.submitted <= 72)
})

test('an error of a task, of the items and of a signal ends map, after the results before it', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2 })
  const seen = []
  const run = async (items, options) => {
    seen.length = 0
    for await (const value of pool.map(items, options)) seen.push(value)
  }
  const failing = await rejection(run([1, 2, null, 4], { name: 'throwIfNull' }))
  assert.deepEqual([failing.message, seen], ['null', [1, 2]])
  function* broken() {
    yield 1
    throw new RangeError('source')
  }
  const source = await rejection(run(broken()))
  assert.deepEqual([source.message, seen], ['source', [1]])
  const abort = new AbortController()
  const aborted = rejection(run([1, 2], { name: 'spin', signal: abort.signal }))
  await until(() => pool.stats.running === 2)
  abort.abort('enough')
  assert.deepEqual([(await aborted).name, seen], ['AbortError', []])
  // Nothing is left.
  assert.deepEqual(await collect(pool.map([1])), [1])
})

test('bad arguments of map and runMany are typed errors', async (t) => {
  const pool = openWorkers(t)
  for (const [items, options, text] of [
    [5, undefined, /items are not iterable \(got=number\)/],
    [null, undefined, /items are not iterable/],
    [[], { concurrency: 0 }, /concurrency.*value=0/],
    [[], { concurrency: 1.5 }, /concurrency/],
    [[], { ordered: 'no' }, /ordered/],
    [[], { nope: 1 }, /unknown option \(option=nope, known=.*name concurrency ordered\)/],
    [[], { timeout: -1 }, /timeout/],
  ]) {
    assert.throws(
      () => pool.map(items, options),
      (error) => {
        assert.equal(error.code, 'ERR_OFFLOOP_INVALID')
        assert.match(error.message, text)
        return true
      },
    )
  }
  assert.match((await rejection(pool.runMany(5))).message, /tasks are not an array/)
  assert.match((await rejection(pool.runMany([1], { ordered: true }))).message, /unknown option/)
})

test('a running task tells how far it is; the latest value arrives, in the caller s context', async (t) => {
  const pool = openWorkers(t, 'current.mjs', { maxWorkers: 1 })
  const seen = []
  const storage = new AsyncLocalStorage()
  const onProgress = (value) => seen.push([value, storage.getStore()])
  assert.equal(await storage.run('ctx', () => pool.run(1000, { name: 'steps', onProgress })), 1000)
  assert.deepEqual(seen.at(-1), [{ step: 1000, of: 1000 }, 'ctx'])
  seen.length = 0
  const door = gate()
  t.after(() => door.release())
  const task = pool.run(door.flags, { name: 'stepAt', onProgress })
  await until(() => seen.length === 1)
  door.release()
  await task
  assert.deepEqual(
    seen.map(([value]) => value),
    [1, 2],
  )
})

test('progress of a task that has ended reaches nobody, and what cannot be cloned is an error of the task', async (t) => {
  const pool = openWorkers(t, 'current.mjs', { maxWorkers: 1 })
  const seen = []
  const view = pool.options({ onProgress: (value) => seen.push(value) })
  await view.exports.keep()
  assert.equal(await view.exports.tellLate(), 'told')
  assert.deepEqual(seen, [])
  const error = await rejection(view.exports.tellFunction())
  assert.deepEqual([error.code, /progress cannot be cloned \(path=f\)/.test(error.message)], ['ERR_OFFLOOP_UNSERIALIZABLE', true])
})

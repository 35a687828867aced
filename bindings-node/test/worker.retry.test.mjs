// Calls that run again when their worker is lost, and when they do not.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { MessageChannel } from 'node:worker_threads'
import { move } from '../lib/index.mjs'
import { gate, openWorkers, rejection, until } from './support.mjs'

/** Memory in which `exitFirst` counts its runs. */
const counter = () => new Int32Array(new SharedArrayBuffer(4))

test('a call whose worker is lost runs again as often as retries says, then it is poison', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  for (const [retries, exits, runs] of [
    [1, 1, 2],
    [3, 3, 4],
  ]) {
    const count = counter()
    assert.equal(await pool.run({ count, exits, value: 'done' }, { name: 'exitFirst', retries }), 'done')
    assert.equal(count[0], runs)
  }
  const before = pool.stats
  assert.deepEqual([before.lost, before.retried, before.completed], [0, 4, 2])
  for (const [retries, poison] of [
    [undefined, false],
    [0, false],
    [2, true],
  ]) {
    const count = counter()
    const error = await rejection(pool.run({ count, exits: 9 }, { name: 'exitFirst', retries }))
    assert.deepEqual([error.code, error.exitCode, error.poison, error.oom], ['ERR_OFFLOOP_WORKER_LOST', 7, poison, false])
    assert.equal(/poison=true/.test(error.message), poison)
    assert.equal(count[0], (retries ?? 0) + 1)
  }
  assert.equal(pool.stats.lost, 3)
})

test('plain values, cloned ones and shared memory reach every run whole', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, retries: 2 })
  for (const value of [{ rows: [1, 'two', new Uint8Array([3])] }, new Map([['k', new Set([1n])]]), 'x'.repeat(200_000)]) {
    assert.deepEqual(await pool.exports.exitFirst({ count: counter(), exits: 2, value }), value)
  }
  // Taken when the call is made, as for a call that runs once.
  const value = { now: 1 }
  const call = pool.exports.exitFirst({ count: counter(), exits: 2, value })
  value.now = 2
  assert.deepEqual(await call, { now: 1 })
  assert.equal(pool.stats.retried, 8)
})

test('what is moved cannot be given twice: the call is refused and nothing is moved', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, retries: 1 })
  const bytes = new Uint8Array([1, 2, 3])
  const { port1 } = new MessageChannel()
  t.after(() => port1.close())
  for (const call of [
    pool.run(bytes, { transferList: [bytes.buffer] }),
    pool.exports.identity(move(bytes)),
    pool.runMany([move(bytes)]),
    pool.run(port1, { transferList: [port1] }),
  ]) {
    const error = await rejection(call)
    assert.equal(error.code, 'ERR_OFFLOOP_INVALID')
    assert.match(error.message, /cannot be run again \(option=retries, value=1\)/)
  }
  assert.equal(bytes.length, 3)
  assert.deepEqual(await pool.options({ retries: 0 }).run(move(bytes)), new Uint8Array([1, 2, 3]))
  assert.equal(bytes.length, 0)
  assert.equal(await pool.run(1, { transferList: [] }), 1)
})

test('retries out of range are refused at the call, at options and at the constructor', async (t) => {
  const pool = openWorkers(t)
  for (const retries of [-1, 1.5, '1', Number.NaN, 2 ** 32]) {
    for (const attempt of [
      () => pool.run(1, { retries }),
      async () => pool.options({ retries }),
      async () => openWorkers(t, 'tasks.mjs', { retries }),
    ]) {
      const error = await rejection(attempt())
      assert.equal(error.code, 'ERR_OFFLOOP_INVALID')
      assert.match(error.message, /option=retries/)
    }
  }
})

test('a call that was aborted or is late does not run again', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, cancelGrace: 1, retries: 5 })
  const door = gate()
  const abort = new AbortController()
  const aborted = rejection(pool.run(door.flags, { name: 'hold', signal: abort.signal }))
  await door.started()
  abort.abort()
  assert.equal((await aborted).name, 'AbortError')
  assert.equal((await rejection(pool.run(door.flags, { name: 'hold', timeout: 1000 }))).code, 'ERR_OFFLOOP_TIMEOUT')
  // Their threads were ended: what runs now has another one.
  assert.equal(await pool.run(1), 1)
  await until(() => pool.stats.overdue === 0)
  assert.deepEqual([Atomics.load(new Int32Array(door.flags), 0), pool.stats.retried], [2, 0])
})

test('one that runs beside the cause of the end runs again, before what waits', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, concurrency: 2 })
  const door = gate()
  const beside = pool.run(door.flags, { name: 'holdSoftly', retries: 1 })
  await door.started()
  const lost = rejection(pool.exports.exit(3))
  const shared = new SharedArrayBuffer(64)
  const behind = [1, 2, 3].map((n) => pool.exports.log(shared, n))
  assert.equal((await lost).exitCode, 3)
  await door.started(2)
  door.release()
  assert.equal(await beside, 'held')
  await Promise.all(behind)
  assert.equal(pool.stats.retried, 1)
})

test('calls of a key stay in order across the loss of their worker', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 3 })
  const keyed = pool.options({ key: 'k', retries: 2 })
  const shared = new SharedArrayBuffer(4096)
  const count = counter()
  const calls = Array.from({ length: 100 }, (_, i) =>
    i === 30 ? keyed.exports.exitFirst({ count, exits: 2, log: [shared, i] }) : keyed.exports.log(shared, i),
  )
  await Promise.all(calls)
  assert.deepEqual([...new Int32Array(shared)].slice(0, 101), [100, ...Array.from({ length: 100 }, (_, i) => i)])
})

test('close lets a call run again, close with a grace ends it', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const count = counter()
  const call = pool.run({ count, exits: 2, value: 'done' }, { name: 'exitFirst', retries: 2 })
  await pool.close()
  assert.equal(await call, 'done')
  const other = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, cancelGrace: 1 })
  const ended = rejection(other.run({ count: counter(), exits: 2 ** 30 }, { name: 'exitFirst', retries: 2 ** 32 - 1 }))
  await until(() => other.stats.retried > 2)
  await other.close({ grace: 0 })
  assert.match((await ended).code, /CANCELLED/)
})

// ProcessPool: calls beyond those of exports: a function that is sent as its source, and one call for each worker.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { TransferBuffer } from '../lib/index.mjs'
import { commonWorker, directory, door, openProcesses } from './processes.mjs'
import { rejection, until, workerFile } from './support.mjs'

/** A pool of `n` processes that are there. */
async function ready(t, n, worker = workerFile('process.mjs'), options = {}) {
  const pool = openProcesses(t, worker, { maxWorkers: n, minWorkers: n, ...options })
  const gate = door(t)
  const held = Array.from({ length: n }, () => pool.exports.hold(gate.at))
  await gate.began(n)
  gate.open()
  await Promise.all(held)
  return pool
}

test('broadcast runs once in each process, in the order of their places, whatever they have to do', async (t) => {
  const pool = await ready(t, 3)
  const pids = await pool.broadcast(undefined, { name: 'pid' })
  assert.equal(new Set(pids).size, 3)
  const others = Array.from({ length: 500 }, (_, i) => pool.run(i))
  assert.deepEqual(await pool.broadcast(undefined, { name: 'pid', priority: 9 }), pids)
  await Promise.all(others)
  const bytes = new Uint8Array(10_000).fill(3)
  assert.deepEqual(await pool.broadcast({ bytes }), [{ bytes }, { bytes }, { bytes }])
})

test('broadcast waits for a process that is busy; without processes it has no results and starts none', async (t) => {
  const pool = await ready(t, 2)
  const gate = door(t)
  const long = pool.exports.hold(gate.at)
  await gate.began()
  const all = pool.broadcast(undefined, { name: 'pid' })
  await until(() => pool.stats.completed === 3)
  assert.equal(pool.stats.queued, 1)
  gate.open()
  await long
  assert.equal(new Set(await all).size, 2)
  const unused = openProcesses(t)
  assert.deepEqual(await unused.broadcast(1), [])
  assert.equal(unused.stats.workers, 0)
})

test('a process that is lost in its part rejects broadcast, the others go on; with retries it runs again', async (t) => {
  const pool = await ready(t, 3)
  const first = path.join(directory(t), 'first')
  const error = await rejection(pool.broadcast(first, { name: 'once' }))
  assert.deepEqual([error.code, error.exitCode], ['ERR_OFFLOOP_WORKER_LOST', 9])
  await until(() => pool.stats.completed === 5)
  assert.equal(pool.stats.lost, 1)
  const again = await ready(t, 3, undefined, { retries: 1 })
  fs.rmSync(first)
  assert.deepEqual(await again.broadcast(first, { name: 'once' }), ['second', 'second', 'second'])
})

test('what the options of broadcast cannot mean is refused', async (t) => {
  const pool = await ready(t, 2)
  for (const [call, text] of [
    [pool.broadcast(1, { key: 'k' }), /calls of every worker have no key/],
    [pool.options({ key: 'k' }).broadcast(1), /calls of every worker have no key/],
    [pool.broadcast({ buffer: TransferBuffer.from(new Uint8Array(3)) }), /what is moved cannot be given to several workers/],
    [pool.broadcast(1, 5), /options are not an object/],
    [pool.broadcast(1, { name: 5 }), /name of an export is not text/],
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

test('broadcast to workers of any language', async (t) => {
  const pool = await ready(t, 2, commonWorker())
  assert.equal(new Set(await pool.broadcast(undefined, { name: 'pid' })).size, 2)
  assert.deepEqual(await pool.broadcast({ a: [1] }, { name: 'default' }), [{ a: [1] }, { a: [1] }])
})

test('call sends a function, which a process reads once per source', async (t) => {
  const pool = openProcesses(t, workerFile('process.mjs'), { maxWorkers: 1 })
  assert.equal(await pool.call((a, b) => a + b, 1, 2), 3)
  assert.equal(
    await pool.call(function twice(n) {
      return n === 0 ? 0 : 2 + twice(n - 1)
    }, 4),
    8,
  )
  assert.equal(await pool.call(async (name) => (await import('node:path')).basename(name), '/a/b.c'), 'b.c')
  assert.notEqual(await pool.call(() => process.pid), process.pid)
  const count = function self() {
    self.n = (self.n ?? 0) + 1
    return self.n
  }
  assert.deepEqual([await pool.call(count), await pool.call(count), await pool.options({ priority: 1 }).call(count)], [1, 2, 3])
  // Long arguments, and many at once.
  assert.equal(await pool.call((bytes) => bytes.length, new Uint8Array(100_000)), 100_000)
  const all = await Promise.all(Array.from({ length: 2000 }, (_, i) => pool.call((n) => n * 2, i)))
  assert.deepEqual(
    all,
    [...Array(2000).keys()].map((n) => n * 2),
  )
})

test('errors of call are those of the function, and of what cannot be sent', async (t) => {
  const pool = openProcesses(t, workerFile('process.mjs'), { maxWorkers: 1, cancelGrace: 1 })
  const outside = 5
  const free = await rejection(pool.call(() => outside))
  assert.deepEqual([free.name, /outside is not defined/.test(free.message)], ['ReferenceError', true])
  const late = await rejection(
    pool.options({ timeout: 5 }).call(() => {
      for (;;);
    }),
  )
  assert.equal(late.code, 'ERR_OFFLOOP_TIMEOUT')
  for (const [fn, code, text] of [
    [5, 'ERR_OFFLOOP_INVALID', /no function \(got=number\)/],
    [Math.max, 'ERR_OFFLOOP_UNSERIALIZABLE', /has no source \(function=max\)/],
    [class Own {}, 'ERR_OFFLOOP_UNSERIALIZABLE', /class cannot be called/],
  ]) {
    const error = await rejection(pool.call(fn))
    assert.equal(error.code, code)
    assert.match(error.message, text)
  }
  const error = await rejection(
    pool.call(
      (a) => a,
      () => {},
    ),
  )
  assert.deepEqual([error.code, /argument cannot be cloned/.test(error.message)], ['ERR_OFFLOOP_UNSERIALIZABLE', true])
})

test('a name is never taken for a source, and a worker in another language has no functions from here', async (t) => {
  const source = '() => process.exit(3)'
  for (const worker of [workerFile('process.mjs'), commonWorker()]) {
    const pool = openProcesses(t, worker, { maxWorkers: 1 })
    for (const name of [source, `\0${source}`]) assert.equal((await rejection(pool.run(1, { name }))).code, 'ERR_OFFLOOP_NOT_FOUND')
  }
  const pool = openProcesses(t, commonWorker(), { maxWorkers: 1 })
  const error = await rejection(pool.call(() => 1))
  assert.deepEqual([error.code, /another language/.test(error.message)], ['ERR_OFFLOOP_UNSUPPORTED', true])
})

test('a call with bytes beside it does not overtake those before it', async (t) => {
  const pool = openProcesses(t, workerFile('process.mjs'), { maxWorkers: 1 })
  const at = path.join(directory(t), 'log')
  await pool.run(0)
  const calls = Array.from({ length: 300 }, (_, i) => pool.exports.log(at, i, i % 7 === 0 ? new Uint8Array(8192) : undefined))
  await Promise.all(calls)
  assert.equal(fs.readFileSync(at, 'utf8'), Array.from({ length: 300 }, (_, i) => `${i}\n`).join(''))
})

// Workers that are replaced because of their tasks or their age, while the pool works.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { gate, openWorkers, until } from './support.mjs'

test('a worker begins no more tasks than maxTasksPerWorker, and no call is lost', async (t) => {
  for (const [limit, n, concurrency] of [
    [1, 4, 1],
    [7, 40, 1],
    [50, 400, 4],
  ]) {
    const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2, maxTasksPerWorker: limit, concurrency })
    const by = new Map()
    for (const thread of await Promise.all(Array.from({ length: n }, () => pool.exports.thread())))
      by.set(thread, (by.get(thread) ?? 0) + 1)
    assert.ok(
      [...by.values()].every((count) => count <= limit),
      `${limit}: ${[...by.values()]}`,
    )
    assert.ok(by.size >= n / limit)
    assert.ok(pool.stats.recycled >= n / limit - 2)
    assert.deepEqual([pool.stats.lost, pool.stats.failed], [0, 0])
    await pool.close()
  }
})

test('the old worker ends by its teardown, with exit code 0, after the next one is ready', async (t) => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'offloop-'))
  t.after(() => fs.rmSync(folder, { recursive: true }))
  const file = path.join(folder, 'teardowns')
  const pool = openWorkers(t, 'hooks.mjs', { maxWorkers: 1, maxWorkerAge: 100, workerData: file, context: { name: 'left' } })
  const events = []
  pool.on('workerReady', ({ threadId }) => events.push(['ready', threadId]))
  const exited = once(pool, 'workerExit')
  pool.on('workerExit', ({ threadId, exitCode }) => events.push(['exit', threadId, exitCode]))
  while (pool.stats.recycled === 0) assert.deepEqual(await pool.run(), { name: 'left' })
  await exited
  const [first, second] = events
  assert.deepEqual([first[0], second[0]], ['ready', 'ready'])
  assert.deepEqual(events[2], ['exit', first[1], 0])
  assert.equal(fs.readFileSync(file, 'utf8'), 'left\n')
})

test('calls of a key keep their order from one worker to the next', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 3, maxTasksPerWorker: 20 })
  const shared = new SharedArrayBuffer(4096)
  const keyed = pool.options({ key: 'k' })
  const threads = await Promise.all(Array.from({ length: 200 }, (_, i) => keyed.exports.log(shared, i)))
  assert.deepEqual([...new Int32Array(shared)].slice(0, 201), [200, ...Array.from({ length: 200 }, (_, i) => i)])
  assert.equal(new Set(threads).size, 10)
})

test('an idle worker is replaced when it is old, one that runs a task when that has ended', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, maxWorkerAge: 20 })
  const first = await pool.exports.thread()
  await until(() => pool.stats.recycled > 0)
  const door = gate()
  const long = pool.exports.hold(door.flags)
  await door.started()
  const before = pool.stats.recycled
  assert.notEqual(await Promise.race([long, once(pool, 'workerReady').then(() => 'ready')]), 'held')
  assert.equal(pool.stats.recycled, before)
  door.release()
  assert.equal(await long, 'held')
  await until(() => pool.stats.recycled > before)
  assert.notEqual(await pool.exports.thread(), first)
  assert.equal(pool.stats.workers, 1)
})

test('close ends a worker that was to take a place', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, maxWorkerAge: 5 })
  for (let round = 0; round < 5; round++) {
    const other = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, maxTasksPerWorker: 20 + round })
    let ready = 0
    let exits = 0
    other.on('workerReady', () => ready++)
    other.on('workerExit', () => exits++)
    await Promise.all(Array.from({ length: 20 }, (_, i) => other.run(i)))
    await other.close()
    assert.ok(exits >= ready && exits >= 1)
    assert.equal(other.stats.workers, 0)
  }
  await pool.run(1)
  await until(() => pool.stats.recycled > 3)
})

test('limits that are nothing are refused by name', (t) => {
  for (const [options, text] of [
    [{ maxTasksPerWorker: 0 }, /maxTasksPerWorker, value=0, min=1/],
    [{ maxTasksPerWorker: 1.5 }, /maxTasksPerWorker/],
    [{ maxTasksPerWorker: -1 }, /maxTasksPerWorker/],
    [{ maxWorkerAge: 0 }, /maxWorkerAge/],
    [{ maxWorkerAge: -1 }, /maxWorkerAge/],
    [{ maxWorkerAge: 'x' }, /maxWorkerAge/],
  ]) {
    assert.throws(() => openWorkers(t, 'tasks.mjs', options), { code: 'ERR_OFFLOOP_INVALID', message: text })
  }
  openWorkers(t, 'tasks.mjs', { maxWorkerAge: Number.POSITIVE_INFINITY })
})

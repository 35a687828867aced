// A limit of 0 means the same in every pool: no time at all.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ThreadPool, TransferBuffer } from '../lib/index.mjs'
import { openProcesses } from './processes.mjs'
import { openPool, openWorkers, rejection, workerFile } from './support.mjs'

const LIMITS = [
  [{ timeout: 0 }, /^timeout: the task has no time to run \(limit_ms=0\)$/],
  [{ queueTimeout: 0 }, /^timeout: the task has no time to wait in the queue \(limit_ms=0\)$/],
]
const late = async (call, text) => {
  const error = await rejection(call)
  assert.deepEqual([error.code, text.test(error.message)], ['ERR_OFFLOOP_TIMEOUT', true], error.message)
}
const collect = async (values) => {
  for await (const _ of values);
}

for (const [kind, open] of [
  ['WorkerPool', (t, options) => openWorkers(t, 'leave.mjs', { maxWorkers: 1, ...options })],
  ['ProcessPool', (t, options) => openProcesses(t, workerFile('leave.mjs'), { maxWorkers: 1, ...options })],
]) {
  test(`${kind}: with a limit of 0 nothing runs, whichever way it is called`, async (t) => {
    const pool = open(t)
    for (const [limit, text] of LIMITS) {
      for (const [view, options] of [
        [pool, limit],
        [pool.options(limit), undefined],
        [open(t, limit), undefined],
      ]) {
        const { submitted } = view.stats
        // Before its workers are there, and afterwards.
        for (let i = 0; i < 20; i++) await late(view.run(i, options), text)
        await late(view.runMany([1, 2], options), text)
        await late(view.runMany([], options), text)
        await late(view.broadcast(1, options), text)
        await late(collect(view.map([1, 2], options)), text)
        await late(collect(view.stream({ n: 1 }, { name: 'stuckAfter', ...options })), text)
        assert.equal(view.stats.submitted, submitted)
        assert.equal(await pool.run(1), 1)
      }
      const plain = pool.options(limit)
      await late(plain.exports.default(1), text)
      await late(
        plain.call(() => 1),
        text,
      )
    }
    // No limit takes one back.
    assert.equal(await open(t, { timeout: 0 }).run(5, { timeout: Number.POSITIVE_INFINITY }), 5)
  })
}

test('ThreadPool: with a limit of 0 nothing runs, and nothing moves', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  for (const [limit, text] of LIMITS) {
    for (let i = 0; i < 20; i++) await late(pool.run('noop', undefined, undefined, limit), text)
    await late(pool.runMany('noop', [new Uint8Array(1), new Uint8Array(1)], undefined, limit), text)
    await late(pool.runMany('noop', [], undefined, limit), text)
    await late(pool.options(limit).run('noop'), text)
    const buffer = TransferBuffer.alloc(8)
    await late(pool.run('sha256', buffer, undefined, limit), text)
    assert.equal(buffer.detached, false)
    const own = new ThreadPool({ maxWorkers: 1, ...limit })
    await late(own.run('noop'), text)
    await own.close()
  }
  assert.equal(pool.stats.submitted, 0)
})

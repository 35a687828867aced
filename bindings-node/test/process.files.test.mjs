// What a closed ProcessPool leaves behind in its program.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import { test } from 'node:test'
import { ProcessPool } from '../lib/index.mjs'
import { rejection, until, workerFile } from './support.mjs'

const file = workerFile('process.mjs')
/** The open files of this process. */
const opened = () =>
  fs.readdirSync('/proc/self/fd').map((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`)
    } catch {
      // That of the directory itself.
      return ''
    }
  })
const hasMemory = () => opened().some((file) => file.includes('memfd:offloop'))

test('a closed pool has no open files, while it is still held', { skip: process.platform !== 'linux' }, async () => {
  const run = async (use) => {
    const pool = new ProcessPool(file, { maxWorkers: 2 })
    if (use) assert.deepEqual(await Promise.all([1, 2, 3].map((i) => pool.run(i))), [1, 2, 3])
    await pool.close()
    return pool
  }
  // What all pools share is there afterwards.
  await run(true)
  await until(() => !hasMemory())
  const before = opened().length
  const pools = [await run(true), await run(true), await run(false)]
  await until(() => !hasMemory() && opened().length <= before)
  // It still says what it did, and that it is closed.
  assert.deepEqual(
    pools.map(({ stats }) => [stats.completed, stats.workers]),
    [
      [3, 0],
      [3, 0],
      [0, 0],
    ],
  )
  for (const pool of pools) {
    const view = pool.options({ priority: 1 })
    for (const call of [pool.run(1), view.run(1), pool.exports.add(1, 2), pool.broadcast(1), pool.stream(1).next()]) {
      const error = await rejection(call)
      assert.deepEqual([error.code, error.message], ['ERR_OFFLOOP_CLOSED', 'closed: the pool is closed (pool=pool)'])
    }
    assert.throws(() => pool.alloc(8), { code: 'ERR_OFFLOOP_CLOSED' })
    await pool.close()
    await view.close({ grace: 0 })
  }
})

test('memory of a buffer that a pool made outlives the pool', async () => {
  const pool = new ProcessPool(file, { maxWorkers: 1 })
  const buffer = pool.alloc(100_000)
  buffer.bytes().fill(7)
  const back = await pool.exports.change(new Uint8Array(100_000).fill(3))
  await pool.close()
  assert.ok(buffer.bytes().every((byte) => byte === 7))
  assert.deepEqual([back[0], back[99_999]], [255, 3])
})

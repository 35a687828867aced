// Calls that name a worker file of their own: of a WorkerPool and of a ProcessPool.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { commonWorker, directory, openProcesses } from './processes.mjs'
import { openWorkers, rejection, workerFile } from './support.mjs'

const other = workerFile('other.mjs')

for (const [kind, open] of [
  ['WorkerPool', (t, options) => openWorkers(t, 'process.mjs', { maxWorkers: 1, ...options })],
  ['ProcessPool', (t, options) => openProcesses(t, workerFile('process.mjs'), { maxWorkers: 1, ...options })],
]) {
  test(`${kind}: a call may name another file, which a worker loads once`, async (t) => {
    const ended = path.join(directory(t), 'ended')
    fs.writeFileSync(ended, '')
    const context = { ended, a: 1 }
    const pool = open(t, { context, concurrency: 4 })
    const filename = fileURLToPath(other)
    assert.deepEqual(
      await Promise.all([1, 2, 3].map((n) => pool.run(n, { filename }))),
      [1, 2, 3].map((n) => ['other', n]),
    )
    assert.deepEqual(await pool.run(4, { filename: other, name: 'add' }), ['other add', 4])
    assert.deepEqual(await pool.run([4], { filename: path.relative('.', filename), name: 'add' }), ['other add', [4]])
    assert.deepEqual(await pool.run(1, { filename: workerFile('other.cjs').href }), ['common', 1])
    // Functions of the pool's own file are who they were.
    assert.deepEqual([await pool.run(7), await pool.exports.add(1, 2)], [7, 3])
    const seen = await pool.run(0, { filename, name: 'seen' })
    assert.deepEqual(seen.slice(0, 3), [1, context, context])
    assert.equal(await pool.run(0, { filename: workerFile('process.mjs'), name: 'pid' }), seen[3])
    await pool.close()
    assert.deepEqual(fs.readFileSync(ended, 'utf8').trim().split('\n').sort(), [String(seen[3]), 'other'].sort())
  })

  test(`${kind}: what a file that a call names cannot be is an error of that call`, async (t) => {
    const at = path.join(directory(t), 'door')
    const pool = open(t, { env: { ...process.env, OFFLOOP_TEST_DOOR: at } })
    for (const [options, code, text] of [
      [{ filename: 'nowhere.mjs' }, 'NOT_FOUND', /worker file is not there \(filename=.*nowhere.mjs\)/],
      [{ filename: 5 }, 'INVALID', /filename is no path and no URL \(got=number\)/],
      [{ filename: 'https://127.0.0.1/w.mjs' }, 'INVALID', /not loaded from the network/],
      [{ filename: other, name: 7 }, 'INVALID', /name of an export is not text/],
      [{ filename: other, name: 'nosuch' }, 'NOT_FOUND', /no function of this name \(name=nosuch, exports=.*add/],
    ]) {
      const error = await rejection(pool.run(1, options))
      assert.deepEqual([error.code, text.test(error.message)], [`ERR_OFFLOOP_${code}`, true], error.message)
    }
    assert.throws(() => pool.map([1], { filename: other }), /option is for a call, .*\(option=filename, belongs_to=run/)
    assert.match((await rejection(pool.run(1, { filename: workerFile('throws.mjs') }))).message, /^this file is broken$/)
    const sometimes = { filename: workerFile('sometimes.cjs') }
    assert.equal((await rejection(pool.run(1, sometimes))).message, 'not yet')
    fs.writeFileSync(at, '')
    assert.equal(await pool.run(1, sometimes), 'now')
    assert.equal(await pool.run(1), 1)
    assert.equal(pool.stats.lost, 0)
  })
}

test('a worker in another language loads no other file', async (t) => {
  const pool = openProcesses(t, commonWorker(), { maxWorkers: 1 })
  const error = await rejection(pool.run(1, { filename: other }))
  assert.deepEqual([error.code, /option=filename/.test(error.message)], ['ERR_OFFLOOP_UNSUPPORTED', true])
})

// Output of threads: to this process, or to streams of their own.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { openWorkers, script, until, workerFile } from './support.mjs'

test('with stdout and stderr the output of a thread goes to the streams of workerReady', async (t) => {
  const pool = openWorkers(t, 'output.mjs', { maxWorkers: 1, stdout: true, stderr: true })
  const ready = once(pool, 'workerReady')
  const call = pool.exports.print('stderr', 'oh\n')
  const [{ stdout, stderr }] = await ready
  let out = ''
  let err = ''
  stdout.setEncoding('utf8').on('data', (text) => {
    out += text
  })
  stderr.setEncoding('utf8').on('data', (text) => {
    err += text
  })
  await call
  await pool.exports.print('stdout', 'second\n')
  await until(() => out === 'first\nsecond\n' && err === 'oh\n')
})

test('without them it goes to this process, and with them and without a listener nowhere', async () => {
  for (const [options, out, err] of [
    ['{ maxWorkers: 1 }', 'first\nout\n', 'err\n'],
    ['{ maxWorkers: 1, stdout: true }', '', 'err\n'],
    ['{ maxWorkers: 1, stdout: true, stderr: true }', '', ''],
  ]) {
    const ended = await script(`
      const { WorkerPool } = await import(offloopUrl)
      const pool = new WorkerPool(${JSON.stringify(workerFile('output.mjs').href)}, ${options})
      await pool.exports.print('stdout', 'out\\n')
      await pool.exports.print('stderr', 'err\\n')
      await pool.close()`)
    assert.deepEqual([ended.out, ended.err, ended.code], [out, err, 0])
  }
})

test('output that nobody takes does not pile up in the thread', async (t) => {
  const pool = openWorkers(t, 'output.mjs', { maxWorkers: 1, stdout: true })
  // Its callback comes when this side has read it.
  for (let i = 0; i < 20; i++) assert.equal(await pool.exports.write('stdout', 'x'.repeat(100_000)), 100_000)
})

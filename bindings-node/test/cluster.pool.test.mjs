// One pool that all workers of a cluster submit to.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Cluster, ProcessPool, ThreadPool, WorkerPool } from '../lib/index.mjs'
import { ask, open, portOf } from './servers.mjs'
import { until, workerFile } from './support.mjs'

const exec = new URL('./clusters/asks.mjs', import.meta.url)

async function asked(cluster, path) {
  const [body, headers] = await ask(portOf(cluster), { path })
  return { ...JSON.parse(body), by: headers['x-pid'] }
}

for (const Pool of [ProcessPool, WorkerPool]) {
  test(`workers submit to a ${Pool.name} that their cluster's process owns`, async (t) => {
    const pool = new Pool(workerFile('asked.mjs'), { maxWorkers: 1, cancelGrace: 60_000 })
    t.after(() => pool.close({ grace: 0 }))
    const cluster = await open(t, { exec, pool })
    const [workers, pids] = [new Set(), new Set()]
    while (workers.size < 2) {
      const { value, by } = await asked(cluster, '/pid')
      workers.add(by)
      pids.add(value)
    }
    assert.deepEqual([...pids], [await pool.exports.pid()], 'it has one worker, for all')
    assert.equal((await asked(cluster, '/add')).value, 42)
    assert.deepEqual((await asked(cluster, '/run')).value, [1, 2, 3])
    assert.equal((await asked(cluster, '/named')).value, 14)
    assert.equal((await asked(cluster, '/bytes')).value, '3,2,1')

    const { name, code, message, user, cause } = await asked(cluster, '/fails')
    assert.deepEqual([name, code, message, user, cause], ['RangeError', 'E_USER', 'no such user', 17, 'root'])
    assert.equal((await asked(cluster, '/missing')).code, 'ERR_OFFLOOP_NOT_FOUND')
    assert.equal((await asked(cluster, '/late')).code, 'ERR_OFFLOOP_TIMEOUT')
    const unknown = await asked(cluster, '/option')
    assert.ok(unknown.code === 'ERR_OFFLOOP_INVALID' && unknown.message.includes('timout'), unknown.message)
    const named = await asked(cluster, '/by-name')
    assert.ok(named.code === 'ERR_OFFLOOP_INVALID' && named.message.includes('task=add'), named.message)
    for (const path of ['/abort', '/aborted']) assert.equal((await asked(cluster, path)).name, 'AbortError')
    // The next call has the one worker, so what was aborted has let it go.
    assert.equal((await asked(cluster, '/add')).value, 42)
  })
}

test('what a worker leaves behind is cancelled, and a reload goes on with the same pool', async (t) => {
  const pool = new ProcessPool(workerFile('asked.mjs'), { maxWorkers: 2 })
  t.after(() => pool.close({ grace: 0 }))
  const cluster = await open(t, { exec, pool, workers: 1 })
  await asked(cluster, '/leaves')
  // Its worker may be starting still.
  await until(() => pool.stats.running === 1)
  const exited = new Promise((resolve) => cluster.once('exit', resolve))
  cluster.kill(0)
  await exited
  await until(() => pool.stats.running === 0)
  assert.equal(pool.stats.cancelled, 1)
  await until(() => cluster.workers.size === 1)
  assert.equal((await asked(cluster, '/add')).value, 42)
  await cluster.reload()
  assert.equal((await asked(cluster, '/add')).value, 42)
  await cluster.stop()
  assert.equal(await pool.exports.add(1, 2), 3, 'the pool is the host’s')
})

test('calls that are aborted while there is no way to the pool are cancelled later', async (t) => {
  const pool = new ProcessPool(workerFile('asked.mjs'), { maxWorkers: 1, cancelGrace: 60_000 })
  t.after(() => pool.close({ grace: 0 }))
  const cluster = await open(t, { exec, pool, workers: 1 })
  assert.equal((await asked(cluster, '/add')).value, 42)
  const answer = asked(cluster, '/full')
  await new Promise((resolve) => setTimeout(resolve, 200))
  // Nobody receives meanwhile.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1500)
  const [refused, aborted] = (await answer).value
  assert.ok(refused > 0 && aborted > 0 && refused + aborted === 1200, `${refused} refused, ${aborted} aborted`)
  await until(() => pool.stats.running === 0 && pool.stats.queued === 0)
  assert.equal((await asked(cluster, '/add')).value, 42, 'the same worker')
  assert.equal(cluster.stats.spawned, 1)
})

test('a cluster without a pool has none, also in a worker of another, and a pool that is none is refused', async (t) => {
  const pool = new ProcessPool(workerFile('asked.mjs'), { maxWorkers: 1 })
  t.after(() => pool.close({ grace: 0 }))
  assert.equal((await asked(await open(t, { exec, workers: 1, pool }), '/inherits')).value, 'nothing')
  assert.throws(() => new Cluster({ exec, pool, uid: process.getuid() + 1 }), {
    code: 'ERR_OFFLOOP_INVALID',
    message: /option=pool, uid=\d+/,
  })
  process.env.OFFLOOP_POOL = 'another'
  t.after(() => delete process.env.OFFLOOP_POOL)
  const cluster = await open(t, { exec, workers: 1 })
  assert.equal((await asked(cluster, '/none')).value, 'null')
  for (const pool of [{}, 4, new ThreadPool({ maxWorkers: 1 })]) {
    assert.throws(() => new Cluster({ exec, pool }), { code: 'ERR_OFFLOOP_INVALID', message: /pool/ })
  }
})

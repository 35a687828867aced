// Spares: they load, listen and wait, and take the place of a worker that has ended.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { test } from 'node:test'
import { Cluster } from '../lib/index.mjs'
import { isAlive } from './processes.mjs'
import { ask, file, open, portOf } from './servers.mjs'
import { until } from './support.mjs'

/** Slot and process of who answers. */
async function who(cluster) {
  const [, headers] = await ask(portOf(cluster))
  const [slot, , pid] = headers['x-worker'].split(' ').map(Number)
  return { slot, pid }
}

/** A cluster of one worker, and its spare, which waits. */
async function withSpare(t, options = {}) {
  const spares = []
  const cluster = new Cluster({ exec: file('spare.mjs'), workers: 1, spares: 1, minReady: 0, ...options })
  t.after(() => cluster.stop({ grace: 0 }))
  cluster.on('spare', (worker) => spares.push(worker))
  await cluster.start()
  await until(() => spares.length === 1)
  return { cluster, spares }
}

for (const balance of ['shared', 'round-robin']) {
  test(`${balance}: a spare answers nothing, and takes the place of the only worker when that is killed`, async (t) => {
    const { cluster, spares } = await withSpare(t, { balance })
    const ready = []
    cluster.on('ready', (worker) => ready.push([worker.slot, worker.pid]))
    const [first, spare] = [cluster.workers.get(0), spares[0]]
    assert.deepEqual([spare.slot, spare.state, cluster.workers.size], [1024, 'spare', 1])
    const { ready: takes, spares: wait, live, wanted } = cluster.stats
    assert.deepEqual({ takes, wait, live, wanted }, { takes: 1, wait: 1, live: 1, wanted: 1 })
    for (let i = 0; i < 100; i++) assert.deepEqual(await who(cluster), { slot: 0, pid: first.pid })
    assert.equal(await cluster.request(1024, 'spare'), true)
    process.kill(first.pid, 'SIGKILL')
    await once(cluster, 'ready')
    assert.deepEqual(ready, [[0, spare.pid]])
    assert.deepEqual(await who(cluster), { slot: 0, pid: spare.pid })
    assert.deepEqual([spare.slot, spare.state, cluster.workers.get(0)], [0, 'ready', spare])
    // The same worker by its new place: what it has to say, and what ends it.
    assert.equal(await cluster.request(0, 'spare'), false)
    assert.equal(await cluster.request(0, 'active'), 'active 0 0')
    await until(() => spares.length === 2)
    cluster.kill(0)
    const [ended] = await once(cluster, 'exit')
    assert.equal(ended, spare)
    assert.deepEqual(await who(cluster), { slot: 0, pid: spares[1].pid })
  })
}

test('what a worker has served that was a spare is read as that of any other', async (t) => {
  const { cluster, spares } = await withSpare(t, { heartbeat: { interval: 100, timeout: 60_000 } })
  cluster.kill(0)
  await once(cluster, 'ready')
  const worker = cluster.workers.get(0)
  assert.equal(worker, spares[0])
  for (let i = 0; i < 3; i++) await who(cluster)
  await until(() => worker.served === 3 && worker.loopDelay >= 0)
  await cluster.stop()
  assert.deepEqual([worker.served, worker.loopDelay], [null, null])
})

test('a spare has the core of the place that it takes, and none before', { skip: availableParallelism() < 2 && 'one core' }, async (t) => {
  const coresOf = (pid) => {
    const states = readdirSync(`/proc/${pid}/task`).map((id) => readFileSync(`/proc/${pid}/task/${id}/status`, 'utf8'))
    return [...new Set(states.map((state) => /^Cpus_allowed_list:\s+(\S+)$/m.exec(state)[1]))]
  }
  const { cluster, spares } = await withSpare(t, { pinCpus: true })
  const first = cluster.workers.get(0).pid
  const cores = coresOf(first)
  assert.equal(cores.length, 1)
  assert.notDeepEqual(coresOf(spares[0].pid), cores)
  process.kill(first, 'SIGKILL')
  await once(cluster, 'ready')
  assert.deepEqual(coresOf(spares[0].pid), cores)
})

test('a reload replaces the spare, one that fails leaves it, and a stop leaves nothing', async (t) => {
  const { cluster, spares } = await withSpare(t)
  await cluster.reload()
  await until(() => spares.length === 2)
  assert.equal(spares[1].generation, 2)
  await assert.rejects(cluster.reload({ env: { VERSION: 'broken' } }), { code: 'ERR_OFFLOOP_START_FAILED' })
  assert.equal(cluster.stats.spares, 1)
  process.kill(cluster.workers.get(0).pid, 'SIGKILL')
  await once(cluster, 'ready')
  assert.deepEqual(await who(cluster), { slot: 0, pid: spares[1].pid })
  await until(() => spares.length === 3)
  await cluster.scale(2)
  assert.equal(cluster.workers.get(1), spares[2])
  await until(() => spares.length === 4)
  const all = [...cluster.workers.values(), spares[3]].map((worker) => worker.pid)
  await cluster.stop()
  assert.ok(all.length === 3 && !all.some(isAlive))
})

test('spares that cannot be are refused', async (t) => {
  const exec = file('server.mjs')
  assert.throws(() => new Cluster({ exec, spares: -1 }), { code: 'ERR_OFFLOOP_INVALID', message: /spares/ })
  assert.throws(() => new Cluster({ exec, spares: 'one' }), { code: 'ERR_OFFLOOP_INVALID', message: /spares/ })
  assert.throws(() => new Cluster({ exec, workers: 2, spares: 1023 }), { message: /option=spares, value=1023, min=0, max=1022/ })
  assert.throws(() => new Cluster({ exec, spares: 1, balance: 'reuseport' }), { message: /option=spares.*balance=reuseport/ })
  const cluster = await open(t, { workers: 1, spares: 1 })
  await assert.rejects(cluster.scale(1024), { message: /value=1024, min=1, max=1023/ })
})

// The `trace` hook: what it is told of the tasks of each kind of pool.
import assert from 'node:assert/strict'
import { AsyncLocalStorage } from 'node:async_hooks'
import { once } from 'node:events'
import { test } from 'node:test'
import { ThreadPool } from '../lib/index.mjs'
import { openProcesses } from './processes.mjs'
import { hold, openPool, openWorkers, rejection, script, until, workerFile } from './support.mjs'

const noop = 'noop'
/** By kind: a pool with one worker, a call that takes `ms`, one that fails, and what both are called. */
const kinds = {
  ThreadPool: {
    open: (t, options) => openPool(t, { maxWorkers: 1, ...options }),
    wait: (pool, ms, options) => pool.run(noop, undefined, { sleepMs: ms }, options),
    fail: (pool) => pool.run('gunzip', Buffer.from('no gzip')),
    names: [noop, 'gunzip'],
  },
  WorkerPool: {
    open: (t, options) => openWorkers(t, 'tasks.mjs', { maxWorkers: 1, cancelGrace: 10, ...options }),
    wait: (pool, ms, options) => pool.options(options ?? {}).exports.later(1, ms),
    fail: (pool) => pool.exports.fail(),
    exit: (pool) => pool.exports.exit(3),
    names: ['later', 'fail'],
  },
  ProcessPool: {
    open: (t, options) => openProcesses(t, workerFile('process.mjs'), { maxWorkers: 1, cancelGrace: 10, ...options }),
    wait: (pool, ms, options) => pool.options(options ?? {}).exports.later(1, ms),
    fail: (pool) => pool.exports.fail(),
    exit: (pool) => pool.exports.kill('SIGKILL'),
    names: ['later', 'fail'],
  },
}

for (const [kind, { open, wait, fail, exit, names }] of Object.entries(kinds)) {
  test(`${kind}: a task is told of once, with its times, in the context of its caller`, async (t) => {
    const storage = new AsyncLocalStorage()
    const told = []
    const pool = open(t, { name: 'mine', trace: (task) => told.push([task, storage.getStore()]) })
    await wait(pool, 0)
    const before = [performance.now(), Date.now()]
    await Promise.all(['a', 'b'].map((who) => storage.run(who, () => wait(pool, 20))))
    const [took, ended] = [performance.now() - before[0], Date.now()]
    const [first, a, b] = told.map(([task]) => task)
    assert.deepEqual([told.length, first.id, a.id, b.id], [3, 1, 2, 3])
    assert.deepEqual(
      told.map(([, context]) => context),
      [undefined, 'a', 'b'],
    )
    for (const task of [a, b]) {
      const { id, submitted, queueTime, runTime, ...rest } = task
      assert.deepEqual(rest, { pool: 'mine', name: names[0], outcome: 'completed', worker: 0 })
      // A timer of a worker may fire a millisecond early.
      assert.ok(runTime >= 19, `${runTime}`)
      assert.ok(queueTime >= 0 && queueTime + runTime <= took, `${queueTime} ${runTime} ${took}`)
      // Date.now() has whole milliseconds.
      assert.ok(submitted >= before[1] - 1 && submitted + queueTime + runTime <= ended + 1, `${submitted} ${ended}`)
    }
    assert.ok(b.submitted + b.queueTime >= a.submitted + 18, 'one after the other')
  })

  test(`${kind}: a task is told of however it ends, with its error`, async (t) => {
    const told = []
    const pool = open(t, { trace: (task) => told.push(task) })
    const error = await rejection(fail(pool))
    assert.deepEqual([told[0].outcome, told[0].error, told[0].name], ['failed', error, names[1]])
    const late = await rejection(wait(pool, 600_000, { timeout: 30 }))
    assert.deepEqual([told[1].outcome, told[1].error, late.code], ['timeout', late, 'ERR_OFFLOOP_TIMEOUT'])
    assert.ok(told[1].runTime >= 30, `${told[1].runTime}`)
    const abort = new AbortController()
    const running = rejection(wait(pool, 600_000, { signal: abort.signal }))
    const behind = rejection(wait(pool, 1, { signal: abort.signal }))
    await until(() => pool.stats.running > 0)
    abort.abort()
    assert.equal((await running).name, 'AbortError')
    assert.equal((await behind).name, 'AbortError')
    assert.deepEqual(
      told.slice(2).map(({ outcome, error }) => [outcome, error.name]),
      [
        ['cancelled', 'AbortError'],
        ['cancelled', 'AbortError'],
      ],
    )
    const { runTime, worker } = told.find(({ id }) => id === 4)
    assert.deepEqual([runTime, worker], [0, null])
    if (exit) {
      const lost = await rejection(exit(pool))
      assert.deepEqual([told[4].outcome, told[4].error, lost.code], ['lost', lost, 'ERR_OFFLOOP_WORKER_LOST'])
    }
  })

  test(`${kind}: a hook that fails is a warning, and the tasks have their results`, async (t) => {
    const sync = open(t, {
      name: 'broken',
      trace: () => {
        throw new RangeError('of the hook')
      },
    })
    const warned = once(process, 'warning')
    await wait(sync, 0)
    const [warning] = await warned
    assert.deepEqual([warning.name, warning.code], ['OffloopWarning', 'OFFLOOP_TRACE'])
    assert.match(warning.message, /pool 'broken' failed: RangeError: of the hook/)
    const later = open(t, { trace: () => Promise.reject(new RangeError('later')) })
    const warnedLater = once(process, 'warning')
    await wait(later, 0)
    assert.match((await warnedLater)[0].message, /pool 'pool' failed: RangeError: later/)
  })

  test(`${kind}: refused calls are not told of, and option trace is a function`, async (t) => {
    const told = []
    const pool = open(t, { trace: (task) => told.push(task) })
    await wait(pool, 0)
    await pool.close()
    assert.equal((await rejection(wait(pool, 0))).code, 'ERR_OFFLOOP_CLOSED')
    assert.equal(told.length, 1)
    assert.throws(() => open(t, { trace: 'console' }), { code: 'ERR_OFFLOOP_INVALID', message: /option=trace, want=function, got=string/ })
  })
}

test('each task of a runMany is told of, those that the first error cancels too', async (t) => {
  const told = []
  const pool = openPool(t, { maxWorkers: 1, trace: (task) => told.push(task) })
  await pool.runMany('sha256', [Buffer.from('a'), Buffer.from('b')])
  assert.deepEqual(
    told.map(({ id, name, outcome }) => [id, name, outcome]),
    [
      [1, 'sha256', 'completed'],
      [2, 'sha256', 'completed'],
    ],
  )
  told.length = 0
  const holder = await hold(pool)
  const many = rejection(pool.runMany('gunzip', [Buffer.from('no'), Buffer.from('gzip')]))
  await holder.release()
  assert.equal((await many).index, 0)
  await until(() => told.length === 3)
  assert.deepEqual(
    told.map(({ id }) => id).sort((a, b) => a - b),
    [3, 4, 5],
  )
  assert.equal(told.find(({ id }) => id === 4).outcome, 'failed')
  assert.ok(['cancelled', 'failed'].includes(told.find(({ id }) => id === 5).outcome))
})

test('an input that is copied in slices is told of as any other', async (t) => {
  const told = []
  const pool = new ThreadPool({ maxWorkers: 1, trace: (task) => told.push(task) })
  t.after(() => pool.close())
  await pool.run('sha256', new Uint8Array(4 << 20))
  assert.deepEqual(
    told.map(({ name, outcome }) => [name, outcome]),
    [['sha256', 'completed']],
  )
})

test('every way to call a WorkerPool is told of, by the name of what it calls', async (t) => {
  const told = []
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, onFull: 'wait', trace: ({ name, outcome }) => told.push([name, outcome]) })
  await pool.run(1)
  await pool.run(new Map([[1, new SharedArrayBuffer(1)]]), { name: 'identity' })
  await pool.runMany([1, 2], { name: 'identity' })
  for await (const _ of pool.map([1], { name: 'identity' }));
  await pool.broadcast(1)
  await pool.call(function twice(x) {
    return 2 * x
  }, 21)
  await pool.call((x) => x, 1)
  await pool.options({ priority: 1 }).exports.large(100_000)
  const same = ['identity', 'completed']
  assert.deepEqual(told, [
    ['default', 'completed'],
    same,
    same,
    same,
    same,
    ['default', 'completed'],
    ['twice', 'completed'],
    ['anonymous', 'completed'],
    ['large', 'completed'],
  ])
})

test('every way to call a ProcessPool is told of, by the name of what it calls', async (t) => {
  const told = []
  const pool = openProcesses(t, workerFile('process.mjs'), { maxWorkers: 1, trace: ({ name, outcome }) => told.push([name, outcome]) })
  await pool.run(new Uint8Array(100_000), { name: 'sum' })
  await pool.runMany([1, 2])
  for await (const _ of pool.map([1], { name: 'add' }));
  await pool.broadcast(1)
  await pool.call(function twice(x) {
    return 2 * x
  }, 21)
  for await (const _ of pool.stream([1, 2], { name: 'yieldAll' }));
  const one = ['default', 'completed']
  assert.deepEqual(told, [['sum', 'completed'], one, one, ['add', 'completed'], one, ['twice', 'completed'], ['yieldAll', 'completed']])
})

test('a call that fails and is not awaited is an unhandled rejection with a hook too', async () => {
  const { code, err } = await script(`
    const { ThreadPool } = await import(offloopUrl)
    const pool = new ThreadPool({ trace() {} })
    pool.run('gunzip', Buffer.from('no gzip'))
  `)
  assert.equal(code, 1)
  assert.match(err, /ERR_OFFLOOP/)
})

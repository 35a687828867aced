// WorkerPool: calls, options of calls, threads that come and go.
import assert from 'node:assert/strict'
import { AsyncLocalStorage } from 'node:async_hooks'
import { once } from 'node:events'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { WorkerPool } from '../lib/index.mjs'
import { gate, openWorkers, rejection, until, workerFile } from './support.mjs'

/** A gate whose task is running. */
async function held(t, pool, name = 'hold', options = {}) {
  const door = gate()
  const task = pool.run(door.flags, { name, ...options })
  // A test that fails waits for nothing.
  task.catch(() => {})
  t.after(() => door.release())
  await door.started()
  return { ...door, task }
}

test('runs the default export, exports by name, and exports as methods', async (t) => {
  const pool = openWorkers(t)
  assert.equal(await pool.run(7), 7)
  assert.equal(await pool.run(), undefined)
  assert.equal(await pool.run(8, { name: 'identity' }), 8)
  assert.equal(await pool.exports.add(1, 2), 3)
  assert.equal(await pool.exports.count(), 0)
  assert.equal(await pool.exports.count(1, undefined, 3), 3)
  assert.equal(await pool.exports.later('x'), 'x')
  assert.equal(pool.exports.add, pool.exports.add)
  assert.equal((await pool.exports) && pool.exports.then, undefined)
})

test('takes ESM and CommonJS files, as path or URL, absolute or from the working directory', async (t) => {
  const esm = workerFile('tasks.mjs')
  for (const file of [esm, esm.href, fileURLToPath(esm), path.relative(process.cwd(), fileURLToPath(esm))]) {
    const pool = new WorkerPool(file, { maxWorkers: 1 })
    t.after(() => pool.close())
    assert.equal(await pool.exports.add(1, 2), 3)
  }
  const cjs = openWorkers(t, 'tasks.cjs')
  assert.deepEqual([await cjs.run(1), await cjs.exports.add(1, 2), await cjs.exports.later(3)], [['cjs', 1], 3, 3])
  const data = new WorkerPool(`data:text/javascript,${encodeURIComponent('export default (x) => x * 2')}`)
  t.after(() => data.close())
  assert.equal(await data.run(21), 42)
})

test('thousands of calls at once come back to their own promises', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 3 })
  const calls = Array.from({ length: 20_000 }, (_, i) =>
    i % 3 === 0 ? pool.exports.later(i, 0) : i % 3 === 1 ? pool.run(i) : pool.exports.add(i, 0),
  )
  const results = await Promise.all(calls)
  for (const [i, value] of results.entries()) assert.equal(value, i)
  assert.equal(pool.stats.completed, 20_000)
})

test('an idle worker has a living event loop', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const before = await pool.exports.tickCount()
  await sleep(50)
  assert.ok((await pool.exports.tickCount()) >= before + 5)
})

test('timers of a worker that is saturated have their turn', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const before = await pool.exports.tickCount()
  let live = true
  const loop = async () => {
    while (live) await pool.run(1)
  }
  const load = Array.from({ length: 200 }, loop)
  await sleep(100)
  const after = await pool.exports.tickCount()
  live = false
  await Promise.all(load)
  assert.ok(after >= before + 10, `${after - before} ticks`)
})

test('runs as many async tasks at once as concurrency says, and no more', async (t) => {
  const one = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  assert.deepEqual(new Set(await Promise.all(Array.from({ length: 20 }, () => one.exports.overlap()))), new Set([1]))
  const eight = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, concurrency: 8 })
  assert.equal(Math.max(...(await Promise.all(Array.from({ length: 64 }, () => eight.exports.overlap())))), 8)
  // With deadlines, too.
  const limited = eight.options({ timeout: 60_000 })
  await Promise.all(Array.from({ length: 64 }, () => limited.exports.overlap()))
  assert.equal(await eight.exports.overlap(), 8)
})

test('a higher priority goes first, and tasks of one priority in order', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const door = await held(t, pool)
  const shared = new SharedArrayBuffer(64)
  const order = [0, 5, 0, -5, 5].map((priority, i) => pool.options({ priority }).exports.log(shared, i + 1))
  door.release()
  await Promise.all(order)
  assert.deepEqual([...new Int32Array(shared)].slice(1, 6), [2, 5, 1, 3, 4])
})

test('tasks of one key run on one worker, in order', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 3 })
  await Promise.all(Array.from({ length: 3 }, () => pool.exports.later(0, 20)))
  for (const key of ['a', 'b', 'c', 'd']) {
    const shared = new SharedArrayBuffer(400)
    const threads = await Promise.all(Array.from({ length: 90 }, (_, i) => pool.options({ key }).exports.log(shared, i)))
    assert.equal(new Set(threads).size, 1)
    assert.deepEqual(
      [...new Int32Array(shared)].slice(1, 91),
      Array.from({ length: 90 }, (_, i) => i),
    )
  }
})

test('a task that waits too long ends, one that has started does not', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const door = await held(t, pool, 'hold', { queueTimeout: 60_000 })
  const error = await rejection(pool.run(1, { queueTimeout: 5 }))
  assert.equal(error.code, 'ERR_OFFLOOP_TIMEOUT')
  assert.match(error.message, /waited too long in the queue \(limit_ms=5/)
  door.release()
  assert.equal(await door.task, 'held')
})

test('a signal that is aborted ends a waiting task at once, and one passed in aborted never starts', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const door = await held(t, pool)
  const reason = new Error('why')
  const abort = new AbortController()
  const shared = new SharedArrayBuffer(64)
  const waiting = rejection(pool.options({ signal: abort.signal }).exports.log(shared, 1))
  const ahead = pool.options({ priority: -1 }).exports.log(shared, 2)
  abort.abort(reason)
  const error = await waiting
  assert.deepEqual([error.name, error.code, error.cause], ['AbortError', 'ERR_OFFLOOP_CANCELLED', reason])
  const late = await rejection(pool.run(1, { signal: abort.signal }))
  assert.deepEqual([late.name, late.cause], ['AbortError', reason])
  door.release()
  await ahead
  assert.deepEqual([...new Int32Array(shared)].slice(0, 3), [1, 2, 0])
})

test('init, teardown and context', async (t) => {
  const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), 'offloop-')), 'ended')
  t.after(() => fs.rmSync(path.dirname(file), { recursive: true }))
  const pool = new WorkerPool(workerFile('hooks.mjs'), {
    context: { name: 'ctx', list: new Map([[1, 2]]) },
    workerData: file,
    maxWorkers: 1,
  })
  assert.deepEqual(await pool.run(), { name: 'ctx', list: new Map([[1, 2]]) })
  await pool.close()
  assert.equal(fs.readFileSync(file, 'utf8'), 'ctx\n')
})

test('workerData, argv, env, execArgv and resourceLimits are those of worker_threads', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', {
    maxWorkers: 1,
    workerData: { mine: [1] },
    argv: ['--flag'],
    env: { OFFLOOP_TEST: 'yes' },
    execArgv: ['--no-warnings'],
    resourceLimits: { maxOldGenerationSizeMb: 64 },
  })
  assert.deepEqual(await pool.exports.data(), [{ mine: [1] }, { mine: [1] }, ['--flag'], 'yes', ['--no-warnings']])
  assert.equal((await pool.exports.limits()).maxOldGenerationSizeMb, 64)
})

test('currentTask is the running one, right under concurrency, and null outside', async (t) => {
  const pool = openWorkers(t, 'current.mjs', { maxWorkers: 1, concurrency: 16, context: 'the context' })
  assert.deepEqual(await pool.run(), [null, 'the context', 'number'])
  assert.ok((await Promise.all(Array.from({ length: 100 }, () => pool.exports.same()))).every(Boolean))
})

test('a full queue refuses, or the call waits, with events', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, maxQueue: 4 })
  const door = await held(t, pool)
  const pressed = once(pool, 'backpressure')
  const settled = await Promise.race([Promise.allSettled(Array.from({ length: 200 }, () => pool.run(1))), pressed.then(() => 'pressed')])
  assert.equal(settled, 'pressed')
  const error = await rejection(pool.run(1))
  assert.equal(error.code, 'ERR_OFFLOOP_FULL')
  assert.match(error.message, /max_queue=4/)
  assert.equal((await rejection(pool.run(1, { priority: 1 }))).code, 'ERR_OFFLOOP_FULL')
  const drained = once(pool, 'drain')
  door.release()
  await drained
  assert.ok(pool.stats.rejected > 0)

  const patient = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, maxQueue: 4, onFull: 'wait' })
  const events = []
  for (const event of ['backpressure', 'drain']) patient.on(event, () => events.push(event))
  const other = await held(t, patient)
  const calls = Array.from({ length: 50 }, (_, i) => patient.run(i))
  await until(() => events.length === 1)
  other.release()
  assert.deepEqual(
    await Promise.all(calls),
    Array.from({ length: 50 }, (_, i) => i),
  )
  await until(() => events.length === 2)
  assert.deepEqual(events, ['backpressure', 'drain'])
})

test('stats count what happened', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const door = await held(t, pool)
  const waiting = [pool.run(1), pool.run(2)]
  assert.deepEqual([pool.stats.running, pool.stats.queued, pool.stats.workers], [1, 2, 1])
  await sleep(5)
  door.release()
  await Promise.all(waiting)
  await rejection(pool.exports.fail())
  const { submitted, completed, failed, running, queued, run, wait } = pool.stats
  assert.deepEqual({ submitted, completed, failed, running, queued }, { submitted: 4, completed: 3, failed: 1, running: 0, queued: 0 })
  assert.deepEqual([run.count, wait.count], [4, 4])
  assert.ok(run.max >= 5 && wait.max >= 5, 'the one that was held ran so long, and the others waited so long')
})

test('workers are started as work waits, up to maxWorkers, and resize changes that', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2 })
  assert.equal(pool.stats.workers, 0)
  const door = gate()
  t.after(() => door.release())
  const tasks = Array.from({ length: 4 }, () => pool.exports.hold(door.flags))
  await door.started(2)
  assert.equal(pool.stats.workers, 2)
  pool.resize({ maxWorkers: 4 })
  await door.started(4)
  assert.equal(pool.stats.workers, 4)
  pool.resize({ maxWorkers: 1 })
  const exits = []
  pool.on('workerExit', ({ exitCode }) => exits.push(exitCode))
  door.release()
  await Promise.all(tasks)
  await until(() => exits.length === 3)
  assert.deepEqual(exits, [0, 0, 0])
  assert.equal(await pool.run(5), 5)
  assert.equal(pool.stats.workers, 1)
})

test('an idle worker above minWorkers leaves, the others stay', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 3, minWorkers: 1, idleTimeout: 20 })
  const door = gate()
  t.after(() => door.release())
  const exits = []
  pool.on('workerExit', (event) => exits.push(event))
  const tasks = Array.from({ length: 3 }, () => pool.exports.hold(door.flags))
  await door.started(3)
  door.release()
  await Promise.all(tasks)
  await until(() => exits.length === 2)
  await sleep(60)
  assert.equal(pool.stats.workers, 1)
  assert.equal(await pool.run(1), 1)
})

test('options() is a view with other defaults, and hears the same events', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const view = pool.options({ name: undefined, timeout: 60_000 }).options({ priority: 3 })
  assert.ok(view instanceof WorkerPool)
  const ready = once(view, 'workerReady')
  assert.equal(await view.exports.add(2, 3), 5)
  assert.equal(typeof (await ready)[0].threadId, 'number')
  assert.equal(view.stats.submitted, pool.stats.submitted)
  assert.throws(() => pool.options({ timeout: -1 }), { code: 'ERR_OFFLOOP_INVALID' })
  assert.throws(() => pool.options({ nope: 1 }), { code: 'ERR_OFFLOOP_INVALID' })
})

test('close lets what waits run, then every call is refused and every thread has ended', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2 })
  let exits = 0
  pool.on('workerExit', () => exits++)
  const calls = Array.from({ length: 500 }, (_, i) => (i % 2 ? pool.run(i) : pool.exports.later(i)))
  const closed = pool.close()
  assert.equal(pool.close(), closed)
  assert.deepEqual(
    await Promise.all(calls),
    Array.from({ length: 500 }, (_, i) => i),
  )
  await closed
  await until(() => exits === 2)
  for (const call of [pool.run(1), pool.run(1, { priority: 1 }), pool.exports.add(1, 2)]) {
    assert.equal((await rejection(call)).code, 'ERR_OFFLOOP_CLOSED')
  }
  assert.equal(pool.stats.workers, 0)
  const unused = new WorkerPool(workerFile('tasks.mjs'))
  await unused[Symbol.asyncDispose]()
})

test('after its grace close cancels what is left', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, cancelGrace: 1 })
  const door = await held(t, pool)
  const ahead = [1, 2, 3].map((i) => rejection(pool.run(i)))
  const running = rejection(door.task)
  await pool.close({ grace: 5 })
  for (const error of [await running, ...(await Promise.all(ahead))]) assert.equal(error.code, 'ERR_OFFLOOP_CANCELLED')
})

test('a pool that closes while its workers start ends them', async () => {
  for (const grace of [undefined, 0]) {
    const pool = new WorkerPool(workerFile('never.mjs'), { maxWorkers: 2, readyTimeout: 300 })
    const calls = [1, 2].map(() => rejection(pool.run(1)))
    await pool.close({ grace })
    for (const error of await Promise.all(calls)) {
      assert.equal(error.code, grace === 0 ? 'ERR_OFFLOOP_CANCELLED' : 'ERR_OFFLOOP_START_FAILED')
    }
  }
})

test('the caller keeps its AsyncLocalStorage, in await and in then', async (t) => {
  const pool = openWorkers(t)
  const storage = new AsyncLocalStorage()
  await Promise.all(
    Array.from({ length: 100 }, (_, i) =>
      storage.run(i, async () => {
        await pool.run(i)
        assert.equal(storage.getStore(), i)
        await pool.run(i, { priority: 1 }).then(() => assert.equal(storage.getStore(), i))
      }),
    ),
  )
})

test('bad options are typed errors that name them', async () => {
  const file = workerFile('tasks.mjs')
  const make =
    (options, filename = file) =>
    () =>
      new WorkerPool(filename, options)
  for (const [call, code, text] of [
    [make({}, workerFile('missing.mjs')), 'NOT_FOUND', /worker file is not there \(filename=.*missing\.mjs\)/],
    [make({}, 7), 'INVALID', /got=number/],
    [make({}, ''), 'INVALID', /filename/],
    [make({}, 'file://host/with/host'), 'INVALID', /filename=file:/],
    [make({ maxWorkers: 0 }), 'INVALID', /maxWorkers.*value=0, min=1/],
    [make({ maxWorkers: -1 }), 'INVALID', /maxWorkers/],
    [make({ maxWorkers: 1.5 }), 'INVALID', /maxWorkers/],
    [make({ maxWorkers: 2, minWorkers: 3 }), 'INVALID', /minWorkers.*value=3, min=0, max=2/],
    [make({ maxQueue: 0 }), 'INVALID', /maxQueue/],
    [make({ concurrency: 0 }), 'INVALID', /concurrency.*value=0, min=1/],
    [make({ idleTimeout: -1 }), 'INVALID', /idleTimeout/],
    [make({ cancelGrace: 'soon' }), 'INVALID', /cancelGrace/],
    [make({ readyTimeout: 0 }), 'INVALID', /readyTimeout/],
    [make({ onFull: 'drop' }), 'INVALID', /onFull.*drop/],
    [make({ timeout: -1 }), 'INVALID', /timeout/],
    [make({ priority: 200 }), 'INVALID', /priority/],
    [make({ concurency: 2 }), 'INVALID', /unknown option \(option=concurency/],
    [make({ workerData: () => {} }), 'UNSERIALIZABLE', /workerData cannot be cloned/],
    [make({ context: { a: Symbol('s') } }), 'UNSERIALIZABLE', /context cannot be cloned \(path=a\)/],
    [make('fast'), 'INVALID', /options/],
  ]) {
    assert.throws(call, (error) => {
      assert.equal(error.code, `ERR_OFFLOOP_${code}`)
      assert.match(error.message, text)
      return true
    })
  }
  const pool = new WorkerPool(file)
  for (const [options, text] of [
    [{ name: 7 }, /name of an export is not text \(got=number\)/],
    [{ nme: 'x' }, /unknown option \(option=nme, did_you_mean=name, known=.* transferList name filename\)/],
    [{ timeout: -5 }, /timeout.*-5/],
    [{ queueTimeout: Number.NaN }, /queueTimeout/],
    [{ priority: 1.5 }, /priority/],
    [{ key: 5 }, /key/],
    [{ signal: {} }, /signal/],
    [7, /options/],
  ]) {
    const error = await rejection(pool.run(1, options))
    assert.equal(error.code, 'ERR_OFFLOOP_INVALID')
    assert.match(error.message, text)
  }
  assert.throws(() => pool.resize({ maxWorkers: 0 }), { code: 'ERR_OFFLOOP_INVALID' })
  assert.equal((await rejection(pool.close({ grace: -1 }))).code, 'ERR_OFFLOOP_INVALID')
  assert.match((await rejection(pool.exports.nothing())).message, /no function of this name \(name=nothing, exports=Own add addToBuffers/)
  await pool.close()
})

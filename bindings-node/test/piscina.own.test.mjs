// `offloop/piscina`: what is ours beneath the API. Its documentation is tested in piscina.docs.test.mjs.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { FixedQueue, Piscina } from '../lib/piscina.mjs'
import { gate, random, rejection, script, workerFile } from './support.mjs'

const file = (name) => fileURLToPath(workerFile(`piscina/${name}`))
const WAYS = { ahead: {}, placed: { workerHistogram: true } }

function open(t, options = {}) {
  const pool = new Piscina({ filename: file('functions.mjs'), maxThreads: 2, ...options })
  const alive = setInterval(() => {}, 1 << 30)
  t.after(async () => {
    clearInterval(alive)
    await pool.destroy()
  })
  return pool
}

function both(name, body) {
  for (const [way, options] of Object.entries(WAYS)) test(`${name} (${way})`, (t) => body(t, options))
}

test('more calls than a WorkerPool queues come back in order, and a forced close ends those that have not begun', async (t) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1 })
  const door = gate()
  const first = pool.run({ flags: door.flags }, { name: 'hold' })
  await door.started()
  const abort = new AbortController()
  const many = Array.from({ length: 70_000 }, (_, i) => pool.run(i, { name: 'echo' }))
  const flags = new SharedArrayBuffer(64)
  const last = rejection(pool.run({ flags, value: 1 }, { name: 'log', signal: abort.signal }))
  assert.equal(pool.queueSize, 70_001)
  abort.abort()
  assert.equal((await last).name, 'AbortError')
  assert.equal(pool.queueSize, 70_000)
  door.release()
  await first
  const results = await Promise.all(many)
  for (let i = 0; i < results.length; i++) assert.equal(results[i], i)
  await pool.run(1, { name: 'echo' })
  assert.equal(new Int32Array(flags)[0], 0)

  const again = gate()
  const held = pool.run({ flags: again.flags }, { name: 'hold' })
  await again.started()
  const { completed } = pool
  const refused = Array.from({ length: 70_000 }, () => rejection(pool.run(1, { name: 'echo' })))
  const closed = pool.close({ force: true })
  for (const error of await Promise.all(refused)) assert.equal(error.name, 'AbortError')
  again.release()
  await Promise.all([held, closed])
  assert.equal(pool.completed, completed + 1)
})

both('calls that are aborted at any time have one outcome each, and the pool goes on', async (t, way) => {
  const pool = open(t, { minThreads: 2, ...way })
  const below = random(7)
  let done = 0
  const calls = Array.from({ length: 300 }, async (_, i) => {
    for (let left = below(20); left > 0; left--) await turn()
    const abort = new AbortController()
    const call = pool.run(i, { name: 'later', signal: below(3) > 0 ? abort.signal : null })
    const outcome = call.then(
      (value) => assert.equal(value, i),
      (error) => assert.equal(error.name, 'AbortError'),
    )
    for (let left = below(10); left > 0; left--) await turn()
    abort.abort()
    await outcome
    done++
  })
  await Promise.all(calls)
  assert.equal(done, 300)
  assert.equal(pool.queueSize, 0)
  assert.equal(await pool.run({ a: 1, b: 2 }), 3)
})

both('a call that waits has a thread when that of an aborted one was the only one', async (t, way) => {
  const pool = open(t, { minThreads: 0, maxThreads: 1, ...way })
  const door = gate()
  const abort = new AbortController()
  const aborted = rejection(pool.run({ flags: door.flags }, { name: 'spin', signal: abort.signal }))
  await door.started()
  const waiting = pool.run({ a: 1, b: 2 })
  abort.abort()
  assert.equal((await aborted).name, 'AbortError')
  assert.equal(await waiting, 3)
})

both('a thread starts for a call while the others are busy, and needsDrain tells that all of them are', async (t, way) => {
  const pool = open(t, { minThreads: 0, maxThreads: 2, ...way })
  const one = gate()
  const two = gate()
  const calls = [pool.run({ flags: one.flags }, { name: 'hold' })]
  await one.started()
  assert.equal(pool.needsDrain, false)
  calls.push(pool.run({ flags: two.flags }, { name: 'hold' }))
  await two.started()
  assert.equal(pool.needsDrain, true)
  const drained = new Promise((resolve) => pool.once('drain', resolve))
  two.release()
  await calls[1]
  await drained
  one.release()
  await calls[0]
})

both('threads that exit lose the calls that they run, no others, and no error event is told', async (t, way) => {
  const pool = open(t, { minThreads: 2, ...way })
  const errors = []
  pool.on('error', (error) => errors.push(error))
  const outcomes = await Promise.allSettled(
    Array.from({ length: 60 }, (_, i) =>
      i % 20 === 7 ? pool.run(9, { name: 'exit' }) : i % 20 === 13 ? pool.run('x', { name: 'uncaught' }) : pool.run(i, { name: 'echo' }),
    ),
  )
  for (const [i, { value, reason }] of outcomes.entries()) {
    if (i % 20 === 7) assert.match(reason.message, /exited with code: 9/)
    else if (i % 20 === 13) assert.equal(reason.name, 'EvalError')
    else assert.equal(value, i)
  }
  assert.deepEqual(errors, [])
})

both('a pool that was destroyed or closed starts again with the next call', async (t, way) => {
  const pool = open(t, way)
  for (const end of ['destroy', 'close']) {
    assert.equal(await pool.run({ a: 1, b: 2 }), 3)
    const ended = pool[end]()
    assert.equal((await rejection(pool.run({ a: 1, b: 2 }))).name, 'AbortError')
    await ended
    assert.equal(pool.threads.length, 0)
  }
  assert.equal(await pool.run({ a: 1, b: 2 }), 3)
})

both('a file with a loader of its own for require is loaded by it', async (t, way) => {
  const pool = open(t, { execArgv: ['--require', file('loader.cjs')], filename: file('greeting.shout'), ...way })
  assert.equal(await pool.run('you'), 'HELLO you'.replace('HELLO ', 'HELLO'))
})

both('a file is loaded once per thread, also one that is named by a call', async (t, way) => {
  const pool = open(t, { filename: null, minThreads: 1, maxThreads: 1, ...way })
  const filename = file('promised.cjs')
  const results = await Promise.all(Array.from({ length: 20 }, () => pool.run({ a: 1, b: 1 }, { filename })))
  for (const [, made] of results) assert.equal(made, 1)
})

both('pools inside of workers', async (t, way) => {
  const pool = open(t, { filename: file('nested.mjs'), maxThreads: 1, idleTimeout: Number.POSITIVE_INFINITY, ...way })
  assert.deepEqual(await pool.run({ a: 1, b: 2 }), [true, 3])
  await pool.run(null, { name: 'leave' })
})

both('a signal that cannot be listened to is refused', async (t, way) => {
  const pool = open(t, way)
  const error = await rejection(pool.run(1, { signal: {} }))
  assert.ok(error instanceof TypeError)
  assert.match(error.message, /signal/)
  assert.equal(await pool.run({ a: 1, b: 2 }), 3)
})

test('a load balancer or a queue that throws rejects the call, and what a balancer makes up is nobody', async (t) => {
  let mode = 'throw'
  const loadBalancer = (_task, workers) => {
    if (mode === 'throw') throw new Error('of the balancer')
    if (mode === 'foreign') return { id: 1 }
    return workers.find(({ currentUsage }) => currentUsage === 0) ?? null
  }
  const pool = open(t, { minThreads: 1, maxThreads: 1, loadBalancer })
  assert.equal((await rejection(pool.run(1))).message, 'of the balancer')
  mode = 'first'
  assert.equal(await pool.run({ a: 1, b: 1 }), 2)
  mode = 'foreign'
  const waiting = pool.run({ a: 1, b: 2 })
  assert.equal(pool.queueSize, 1)
  mode = 'first'
  assert.deepEqual([await pool.run({ a: 3, b: 4 }), await waiting], [7, 3])

  const queue = new FixedQueue()
  const broken = open(t, {
    minThreads: 1,
    maxThreads: 1,
    taskQueue: {
      get size() {
        return queue.size
      },
      push() {
        throw new Error('of the queue')
      },
      shift: () => queue.shift(),
      remove: (task) => queue.remove(task),
    },
  })
  const door = gate()
  const running = broken.run({ flags: door.flags }, { name: 'hold' })
  await door.started()
  assert.equal((await rejection(broken.run(1))).message, 'of the queue')
  door.release()
  await running
})

test('calls that no place was found for keep their order, whatever the queue can do', async (t) => {
  for (const Queue of [FixedQueue, class extends FixedQueue {}]) {
    const taskQueue = new Queue()
    // A queue of the user's need not take back.
    if (Queue !== FixedQueue) taskQueue.unshift = undefined
    let found = false
    const loadBalancer = (_task, workers) => (found ? (workers.find(({ currentUsage }) => currentUsage === 0) ?? null) : null)
    const pool = open(t, { minThreads: 1, maxThreads: 1, taskQueue, loadBalancer })
    const flags = new SharedArrayBuffer(64)
    const calls = [1, 2, 3, 4].map((value) => pool.run({ flags, value }, { name: 'log' }))
    found = true
    calls.push(pool.run({ flags, value: 5 }, { name: 'log' }))
    await Promise.all(calls)
    assert.deepEqual([...new Int32Array(flags, 0, 6)], [5, 1, 2, 3, 4, 5])
  }
})

test('the defaults follow the cores, and give way to what is given', async () => {
  const { out, err } = await script(`
    import os from 'node:os'
    import { syncBuiltinESMExports } from 'node:module'
    os.availableParallelism = () => 8
    syncBuiltinESMExports()
    const { Piscina } = await import(new URL('piscina.mjs', offloopUrl))
    for (const options of [{}, { maxThreads: 2 }, { minThreads: 20 }, { minThreads: 1 }]) {
      const pool = new Piscina(options)
      console.log(pool.minThreads, pool.maxThreads)
      await pool.destroy()
    }
  `)
  assert.deepEqual([out, err], ['4 12\n2 2\n20 20\n1 12\n', ''])
})

test('FixedQueue: pushes, unshifts, shifts and removals in any order', () => {
  const below = random(3)
  const queue = new FixedQueue()
  const model = []
  for (let i = 0; i < 20_000; i++) {
    const what = below(10)
    if (what < 5) {
      queue.push(i)
      model.push(i)
    } else if (what < 6) {
      queue.unshift(i)
      model.unshift(i)
    } else if (what < 9) {
      assert.equal(queue.shift(), model.shift() ?? null)
    } else if (model.length > 0) {
      const at = below(model.length)
      queue.remove(model[at])
      model.splice(at, 1)
    }
    assert.equal(queue.size, model.length)
    assert.equal(queue.isEmpty(), model.length === 0)
  }
  while (model.length > 0) assert.equal(queue.shift(), model.shift())
})

const installed = fileURLToPath(new URL('../../tests/bench/node_modules/piscina/dist/esm-wrapper.mjs', import.meta.url))
test('piscina itself passes the tests of its documentation', {
  skip: !existsSync(installed) && 'piscina is not installed in tests/bench',
}, () => {
  const docs = fileURLToPath(new URL('piscina.docs.test.mjs', import.meta.url))
  const env = { ...process.env, NODE_OPTIONS: '', PISCINA: installed }
  // It would take itself for a part of this run, and run nothing.
  delete env.NODE_TEST_CONTEXT
  const run = spawnSync(process.execPath, ['--test', '--test-reporter=tap', docs], { env, encoding: 'utf8' })
  const [, passed] = /^# pass (\d+)$/m.exec(run.stdout)
  assert.equal(run.status, 0, run.stdout.match(/^ *not ok .*$/gm)?.join('\n'))
  assert.ok(Number(passed) > 80, passed)
})

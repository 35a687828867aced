// Ending tasks that run: cooperative, then by ending their thread; nobody else is harmed.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { gate, openWorkers, rejection, until } from './support.mjs'

test('a running task sees in its signal that it was cancelled or is late, and its worker lives on', async (t) => {
  const pool = openWorkers(t, 'current.mjs', { maxWorkers: 1, cancelGrace: 60_000 })
  let exits = 0
  pool.on('workerExit', () => exits++)
  for (const name of ['untilAborted', 'loopUntilAborted', 'throwIfAborted']) {
    const door = gate()
    const abort = new AbortController()
    const task = rejection(pool.run(door.flags, { name, signal: abort.signal }))
    await door.started()
    abort.abort()
    assert.equal((await task).name, 'AbortError')
    // Behind it on the only worker.
    assert.deepEqual(await pool.exports.seen(), ['ERR_OFFLOOP_CANCELLED'])
    let seen = []
    // One that is late before it has begun may not run at all.
    while (seen.length === 0) {
      const late = await rejection(pool.run(gate().flags, { name, timeout: 5 }))
      assert.deepEqual([late.code, /limit_ms=5/.test(late.message)], ['ERR_OFFLOOP_TIMEOUT', true])
      seen = await pool.exports.seen()
    }
    assert.deepEqual(seen, ['ERR_OFFLOOP_TIMEOUT'])
  }
  await until(() => pool.stats.overdue === 0)
  assert.equal(exits, 0)
})

test('a loop without end is ended with its thread after cancelGrace; what was behind it runs, in order', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, cancelGrace: 5 })
  await pool.run(0)
  for (const how of ['timeout', 'abort']) {
    const abort = new AbortController()
    const door = gate()
    const exited = once(pool, 'workerExit')
    // Long enough for it to spin by then, on a loaded machine too.
    const options = how === 'timeout' ? { timeout: 500 } : { signal: abort.signal }
    const spin = rejection(pool.run(door.flags, { name: 'spin', ...options }))
    const shared = new SharedArrayBuffer(1024)
    const behind = Array.from({ length: 100 }, (_, i) => pool.exports.log(shared, i))
    await door.started()
    if (how === 'abort') abort.abort()
    assert.match((await spin).code, how === 'timeout' ? /TIMEOUT/ : /CANCELLED/)
    await Promise.all(behind)
    assert.deepEqual(
      [...new Int32Array(shared)].slice(1, 101),
      Array.from({ length: 100 }, (_, i) => i),
    )
    assert.equal((await exited)[0].exitCode, 1)
  }
  assert.deepEqual([pool.stats.lost, pool.stats.overdue, pool.stats.workers], [0, 0, 1])
})

test('a blocked thread is ended as well, and so is one that never settles its promise', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, cancelGrace: 1 })
  for (const name of ['hold', 'holdSoftly']) {
    const error = await rejection(pool.run(gate().flags, { name, timeout: 5 }))
    assert.equal(error.code, 'ERR_OFFLOOP_TIMEOUT')
    assert.equal(await pool.run(name), name)
  }
})

test('tasks that a worker had taken ahead of a long one go to an idle worker', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2 })
  // Both are there, and know that tasks are short.
  const both = gate()
  const pair = [pool.exports.hold(both.flags), pool.exports.hold(both.flags)]
  await both.started(2)
  both.release()
  await Promise.all(pair)
  for (let i = 0; i < 20; i++) await Promise.all(Array.from({ length: 2000 }, (_, n) => pool.run(n)))
  const door = gate()
  t.after(() => door.release())
  const calls = Array.from({ length: 1000 }, (_, i) => (i === 500 ? pool.exports.hold(door.flags) : pool.run(i)))
  const [long] = calls.splice(500, 1)
  // All of them, those before it whose results lie in the same board and those behind it.
  await Promise.all(calls)
  assert.equal(pool.stats.running, 1)
  door.release()
  assert.equal(await long, 'held')
})

test('results before a long task do not wait for it', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  for (let i = 0; i < 20; i++) await Promise.all(Array.from({ length: 2000 }, (_, n) => pool.run(n)))
  for (let round = 0; round < 20; round++) {
    const door = gate()
    t.after(() => door.release())
    const before = Array.from({ length: 40 + round }, (_, n) => pool.run(n))
    const long = pool.exports.hold(door.flags)
    assert.deepEqual(
      await Promise.all(before),
      Array.from({ length: 40 + round }, (_, n) => n),
    )
    door.release()
    await long
  }
})

test('a task that was taken ahead can be cancelled, and never runs', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  for (let i = 0; i < 20; i++) await Promise.all(Array.from({ length: 2000 }, (_, n) => pool.run(n)))
  const door = gate()
  const shared = new SharedArrayBuffer(4096)
  const abort = new AbortController()
  const cancellable = pool.options({ signal: abort.signal })
  const long = pool.exports.hold(door.flags)
  const calls = Array.from({ length: 200 }, (_, i) => (i % 2 ? cancellable.exports.log(shared, i) : pool.exports.log(shared, i)))
  const settled = Promise.allSettled(calls)
  await door.started()
  abort.abort()
  await until(() => pool.stats.cancelled === 100)
  door.release()
  await long
  const outcomes = await settled
  assert.ok(outcomes.every(({ status }, i) => (i % 2 ? status === 'rejected' : status === 'fulfilled')))
  const words = new Int32Array(shared)
  assert.deepEqual([...words].slice(0, 101), [100, ...Array.from({ length: 100 }, (_, i) => 2 * i)])
})

test('with concurrency the others that run on an ended thread are lost, those that wait are not', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, concurrency: 2, cancelGrace: 1 })
  const door = gate()
  const abort = new AbortController()
  const stuck = rejection(pool.run(door.flags, { name: 'holdSoftly', signal: abort.signal }))
  const beside = rejection(pool.exports.holdSoftly(door.flags))
  await door.started(2)
  const waiting = [1, 2, 3].map((i) => pool.run(i))
  abort.abort()
  assert.equal((await stuck).code, 'ERR_OFFLOOP_CANCELLED')
  const lost = await beside
  assert.deepEqual([lost.code, lost.exitCode], ['ERR_OFFLOOP_WORKER_LOST', 1])
  assert.deepEqual(await Promise.all(waiting), [1, 2, 3])
})

test('aborts at any moment: every call has one outcome, and the pool is whole afterwards', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2, concurrency: 4, cancelGrace: 2 })
  let done = 0
  const calls = Array.from({ length: 3000 }, (_, i) => {
    const abort = new AbortController()
    const options =
      i % 4 === 0 ? { signal: abort.signal } : i % 4 === 1 ? { timeout: i % 7 } : i % 4 === 2 ? { queueTimeout: i % 20 } : undefined
    const call =
      i % 101 === 0 ? pool.run(0, { name: 'spin', timeout: 3 }) : pool.run(i, { name: i % 5 === 0 ? 'later' : 'identity', ...options })
    if (i % 4 === 0) setTimeout(() => abort.abort(), i % 30)
    return call.then(
      (value) => {
        done++
        assert.equal(value, i)
      },
      (error) => {
        done++
        assert.match(error.code, /^ERR_OFFLOOP_(TIMEOUT|CANCELLED|WORKER_LOST)$/)
      },
    )
  })
  await Promise.all(calls)
  assert.equal(done, 3000)
  assert.deepEqual(await Promise.all([1, 2, 3].map((i) => pool.run(i))), [1, 2, 3])
  await until(() => pool.stats.overdue === 0 && pool.stats.running === 0 && pool.stats.queued === 0)
})

// Streams: values of generators over there, as they are taken.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { move } from '../lib/index.mjs'
import { gate, openWorkers, rejection, script, until, workerFile } from './support.mjs'

const counter = () => new Int32Array(new SharedArrayBuffer(4))
async function collect(stream, to = []) {
  for await (const value of stream) to.push(value)
  return to
}
const upTo = (n) => Array.from({ length: n }, (_, i) => i)

test('a stream gives what a generator yields, in order, async or not, and ends with it', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2 })
  for (const name of ['numbers', 'numbersLater']) {
    for (const n of [0, 1, 100]) {
      for (const window of [1, 2, 16, 1000]) assert.deepEqual(await collect(pool.stream({ n }, { name, window })), upTo(n))
    }
  }
  assert.deepEqual(await collect(pool.stream({ n: 20_000 }, { name: 'numbers' })), upTo(20_000))
  assert.deepEqual(await collect(pool.stream(['any', { iterable: 1 }], { name: 'identity' })), ['any', { iterable: 1 }])
  assert.deepEqual([pool.stats.completed, pool.stats.failed], [26, 0])
  const both = await Promise.all([1, 2, 3, 4].map((k) => collect(pool.stream({ n: 50 * k }, { name: 'numbersLater' }))))
  assert.deepEqual(both, [upTo(50), upTo(100), upTo(150), upTo(200)])
})

test('values of a stream arrive as results do', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const [map, shared, moved, large, error, settled, ...rest] = await collect(pool.stream(undefined, { name: 'yieldOdd' }))
  assert.deepEqual([map, shared.byteLength, moved], [new Map([['k', 1n]]), 8, new Uint8Array([1, 2])])
  assert.ok(shared instanceof SharedArrayBuffer)
  assert.deepEqual([large.length, large[99_999]], [100_000, 3])
  assert.deepEqual([error.message, error.code, settled, rest], ['kept whole', 'E_KEPT', 'settled', []])
  const values = [1, 'two', { three: [4n] }, new Error('five'), undefined, new Uint8Array([6])]
  assert.deepEqual(await collect(pool.stream(values, { name: 'yieldAll' })), values)
  const bytes = new Uint8Array([7])
  assert.deepEqual(await collect(pool.stream(move([bytes], [bytes.buffer]), { name: 'yieldAll' })), [new Uint8Array([7])])
  assert.equal(bytes.length, 0)
})

test('a generator is not asked for more than the window beyond what was taken', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  for (const [name, window] of [
    ['numbers', 1],
    ['numbers', 8],
    ['numbersLater', 4],
  ]) {
    const made = counter()
    const stream = pool.stream({ n: 1000, made }, { name, window })
    await turn()
    assert.equal(made[0], 0)
    for (let i = 0; i < 50; i++) {
      assert.deepEqual(await stream.next(), { done: false, value: i })
      assert.ok(made[0] <= i + 1 + window, `${made[0]} made, ${i + 1} taken`)
    }
    // It makes what the window allows, and then waits.
    await until(() => made[0] >= 50 + Math.floor(window / 2))
    for (let i = 0; i < 20; i++) await turn()
    assert.ok(made[0] <= 50 + window)
    await stream.return()
  }
})

test('leaving the loop runs the finally of the generator before it goes on', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  for (const name of ['numbers', 'numbersLater']) {
    const ended = counter()
    for await (const value of pool.stream({ n: 1e9, ended }, { name })) if (value === 20) break
    assert.equal(ended[0], 1)
    const stream = pool.stream({ n: 1e9, ended }, { name })
    await stream.next()
    await assert.rejects(stream.throw(new Error('mine')), /mine/)
    assert.equal(ended[0], 2)
    // One that never began has nothing to end.
    await pool.stream({ n: 1, ended }, { name }).return()
    assert.equal(ended[0], 2)
  }
  const stream = pool.stream(undefined, { name: 'throwAtEnd', window: 1 })
  await stream.next()
  assert.deepEqual([(await rejection(stream.return())).message, pool.stats.failed], ['from finally', 1])
  // The worker is free.
  assert.equal(await pool.run(1), 1)
  assert.equal(pool.stats.running, 0)
})

test('an error of the generator comes whole, after the values before it', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  for (const name of ['numbers', 'numbersLater']) {
    for (const fail of [0, 1, 40]) {
      const got = []
      const error = await rejection(collect(pool.stream({ n: 100, fail }, { name }), got))
      assert.deepEqual([error.name, error.message, error.code], ['RangeError', `at ${fail}`, 'E_AT'])
      assert.deepEqual(got, upTo(fail))
    }
  }
  assert.equal(pool.stats.failed, 6)
  const ended = counter()
  const got = []
  const error = await rejection(collect(pool.stream(ended, { name: 'yieldFunction' }), got))
  assert.deepEqual([error.code, got, ended[0]], ['ERR_OFFLOOP_UNSERIALIZABLE', [1], 1])
  assert.match((await rejection(collect(pool.stream(5)))).message, /nothing to iterate over \(got=number\)/)
  assert.equal((await rejection(collect(pool.stream(5, { name: 'nope' })))).code, 'ERR_OFFLOOP_NOT_FOUND')
  assert.equal(await rejection(collect(pool.stream(5, { name: 'throwValue' }))), 5)
  assert.equal((await rejection(collect(pool.stream(() => {})))).code, 'ERR_OFFLOOP_UNSERIALIZABLE')
})

test('a worker that is lost in the middle ends the stream with its exit code, after the values that it sent', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  for (const n of [0, 5, 100]) {
    const got = []
    const error = await rejection(collect(pool.stream(n, { name: 'exitAt' }), got))
    assert.deepEqual([error.code, error.exitCode], ['ERR_OFFLOOP_WORKER_LOST', 9])
    // What was not sent when it ended is lost with it.
    assert.deepEqual(got, upTo(got.length))
    assert.ok(got.length <= n)
  }
  assert.equal(await pool.run(1), 1)
})

test('abort and timeout end a stream, also one whose values nobody takes and one that spins', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, cancelGrace: 1 })
  for (const [name, task] of [
    ['numbersLater', { n: 1e9, ended: counter() }],
    ['numbers', { n: 1e9, ended: counter() }],
    ['spinAfter', 5],
  ]) {
    const abort = new AbortController()
    const stream = pool.stream(task, { name, signal: abort.signal })
    assert.equal((await stream.next()).value, 0)
    abort.abort(new Error('enough'))
    const error = await rejection(collect(stream))
    assert.deepEqual([error.name, error.cause.message], ['AbortError', 'enough'])
    assert.deepEqual(await stream.next(), { done: true, value: undefined })
    const late = await rejection(collect(pool.stream(task, { name, timeout: 20 })))
    assert.equal(late.code, 'ERR_OFFLOOP_TIMEOUT')
    // Nobody takes the second value of it.
    const idle = pool.stream(task, { name, timeout: 20 })
    await idle.next()
    await until(() => pool.stats.running === 0)
    assert.equal((await rejection(collect(idle))).code, 'ERR_OFFLOOP_TIMEOUT')
    assert.equal(await pool.run(1), 1)
  }
  const aborted = AbortSignal.abort()
  assert.equal((await rejection(collect(pool.stream({ n: 1 }, { name: 'numbers', signal: aborted })))).name, 'AbortError')
  await until(() => pool.stats.overdue === 0)
})

test('what the options of a stream cannot mean is refused at the call', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { retries: 2 })
  for (const [options, text] of [
    [{ window: 0 }, /window.*value=0/],
    [{ window: 1.5 }, /window/],
    [{ retries: 1 }, /cannot be run again: some of it was taken/],
    [{ nope: 1 }, /unknown option/],
    [{ timeout: -1 }, /timeout/],
  ]) {
    assert.throws(() => pool.stream(1, options), { code: 'ERR_OFFLOOP_INVALID', message: text })
  }
  // Those of the pool are for calls that can run again.
  assert.deepEqual(await collect(pool.stream({ n: 3 }, { name: 'numbers' })), [0, 1, 2])
  await pool.close()
  assert.equal((await rejection(collect(pool.stream({ n: 3 }, { name: 'numbers' })))).code, 'ERR_OFFLOOP_CLOSED')
})

test('a function of a stream has its task: progress, and a signal that is aborted', async (t) => {
  const pool = openWorkers(t, 'current.mjs', { maxWorkers: 1 })
  const seen = []
  assert.deepEqual(await collect(pool.stream(3, { name: 'tellEach', onProgress: (n) => seen.push(n) })), [true, true, true])
  assert.ok(seen.length > 0 && seen.every((n, i) => n > (seen[i - 1] ?? 0) && n <= 3), `${seen}`)
  const abort = new AbortController()
  const door = gate()
  const stream = pool.stream(door.flags, { name: 'yieldUntilAborted', signal: abort.signal })
  await stream.next()
  await door.started()
  abort.abort()
  assert.equal((await rejection(collect(stream))).name, 'AbortError')
  assert.deepEqual(await pool.exports.seen(), ['ERR_OFFLOOP_CANCELLED'])
})

test('a stream keeps the process alive until it ends, and its ports do not afterwards', async () => {
  const { code, out, err } = await script(`
    const { WorkerPool } = await import(offloopUrl)
    const pool = new WorkerPool(${JSON.stringify(workerFile('tasks.mjs').href)})
    let sum = 0
    for await (const n of pool.stream({ n: 50, ms: 1 }, { name: 'numbersLater' })) sum += n
    for await (const n of pool.stream({ n: 50 }, { name: 'numbers' })) if (n === 3) break
    console.log(sum)
  `)
  assert.deepEqual([code, out, err], [0, '1225\n', ''])
})

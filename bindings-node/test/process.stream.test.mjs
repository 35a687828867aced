// Streams of a ProcessPool: values of generators in other processes, as they are taken.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { commonWorker, directory, openProcesses } from './processes.mjs'
import { rejection, script, until, workerFile } from './support.mjs'

const file = workerFile('process.mjs')
async function collect(stream, to = []) {
  for await (const value of stream) to.push(value)
  return to
}
const upTo = (n) => Array.from({ length: n }, (_, i) => i)

test('a stream gives what a generator yields, in order, async or not, and ends with it', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 2 })
  for (const name of ['numbers', 'numbersLater']) {
    for (const n of [0, 1, 100]) {
      for (const window of [1, 2, 16, 1000]) assert.deepEqual(await collect(pool.stream({ n }, { name, window })), upTo(n))
    }
  }
  assert.deepEqual(await collect(pool.stream({ n: 20_000 }, { name: 'numbers' })), upTo(20_000))
  assert.deepEqual(await collect(pool.stream(['any', { iterable: 1 }])), ['any', { iterable: 1 }])
  assert.deepEqual([pool.stats.completed, pool.stats.failed], [26, 0])
  const both = await Promise.all([1, 2, 3, 4].map((k) => collect(pool.stream({ n: 50 * k }, { name: 'numbersLater' }))))
  assert.deepEqual(both, [upTo(50), upTo(100), upTo(150), upTo(200)])
})

test('several streams of one process, and calls beside them', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1, concurrency: 8 })
  const streams = Array.from({ length: 6 }, (_, k) => collect(pool.stream({ n: 300 + k }, { name: k % 2 ? 'numbers' : 'numbersLater' })))
  const calls = Promise.all(Array.from({ length: 1000 }, (_, i) => pool.run(i)))
  assert.deepEqual(
    await Promise.all(streams),
    Array.from({ length: 6 }, (_, k) => upTo(300 + k)),
  )
  assert.deepEqual(await calls, upTo(1000))
})

test('values of a stream arrive as results do', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const [map, buffer, error, settled, ...rest] = await collect(pool.stream(undefined, { name: 'yieldOdd' }))
  assert.deepEqual([map, buffer.bytes()], [new Map([['k', 1n]]), new Uint8Array([1, 2])])
  assert.deepEqual([error.message, error.code, settled, rest], ['kept whole', 'E_KEPT', 'settled', []])
  const values = [
    1,
    'two',
    { three: [4n] },
    new Error('five'),
    undefined,
    new Uint8Array(6),
    new Uint8Array(100_000).fill(3),
    'x'.repeat(50_000),
  ]
  for (const window of [1, 16]) assert.deepEqual(await collect(pool.stream(values, { name: 'yieldAll', window })), values)
  // Each value is as it was when it was yielded.
  const seen = await collect(pool.stream(400, { name: 'yieldChanged' }))
  assert.ok(seen.every(({ i, bytes }, at) => i === at && bytes.length === 10_000 && bytes.every((byte) => byte === i % 251)))
  assert.equal(seen.length, 400)
})

test('a generator is not asked for more than the window beyond what was taken', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1, concurrency: 2 })
  for (const [name, window] of [
    ['numbers', 1],
    ['numbers', 2],
    ['numbers', 8],
    ['numbersLater', 4],
  ]) {
    const [before] = await pool.exports.counts()
    const made = async () => (await pool.exports.counts())[0] - before
    const stream = pool.stream({ n: 1000 }, { name, window })
    await turn()
    assert.equal(await made(), 0)
    for (let i = 0; i < 50; i++) {
      assert.deepEqual(await stream.next(), { done: false, value: i })
      const n = await made()
      assert.ok(n <= i + 1 + window, `${n} made, ${i + 1} taken`)
    }
    // It makes values ahead, and then waits.
    while ((await made()) < 50 + Math.floor(window / 2));
    for (let i = 0; i < 20; i++) await turn()
    assert.ok((await made()) <= 50 + window)
    await stream.return()
  }
})

test('leaving the loop runs the finally of the generator before it goes on', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const ended = async () => (await pool.exports.counts())[1]
  for (const name of ['numbers', 'numbersLater']) {
    const before = await ended()
    for await (const value of pool.stream({ n: 1e9 }, { name })) if (value === 20) break
    assert.equal(await ended(), before + 1)
    const stream = pool.stream({ n: 1e9 }, { name })
    await stream.next()
    await assert.rejects(stream.throw(new Error('mine')), /mine/)
    assert.equal(await ended(), before + 2)
    // One that never began has nothing to end.
    await pool.stream({ n: 1 }, { name }).return()
    assert.equal(await ended(), before + 2)
  }
  const { failed } = pool.stats
  const stream = pool.stream(undefined, { name: 'throwAtEnd', window: 1 })
  await stream.next()
  assert.deepEqual([(await rejection(stream.return())).message, pool.stats.failed - failed], ['from finally', 1])
  assert.equal(pool.stats.running, 0)
})

test('an error of the generator comes whole, after the values before it', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  for (const name of ['numbers', 'numbersLater']) {
    for (const fail of [0, 1, 40]) {
      const got = []
      const error = await rejection(collect(pool.stream({ n: 100, fail }, { name }), got))
      assert.deepEqual([error.name, error.message, error.code], ['RangeError', `at ${fail}`, 'E_AT'])
      assert.deepEqual(got, upTo(fail))
    }
  }
  assert.equal(pool.stats.failed, 6)
  const got = []
  const error = await rejection(collect(pool.stream(undefined, { name: 'yieldFunction' }), got))
  assert.deepEqual([error.code, got, (await pool.exports.counts())[1]], ['ERR_OFFLOOP_UNSERIALIZABLE', [1], 7])
  assert.match((await rejection(collect(pool.stream(5)))).message, /nothing to iterate over \(got=number\)/)
  assert.equal((await rejection(collect(pool.stream(5, { name: 'nope' })))).code, 'ERR_OFFLOOP_NOT_FOUND')
  assert.equal((await rejection(collect(pool.stream(() => {})))).code, 'ERR_OFFLOOP_UNSERIALIZABLE')
})

test('a process that is lost in the middle ends the stream with its exit code, after the values that it sent', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  for (const n of [0, 5, 100]) {
    const got = []
    const error = await rejection(collect(pool.stream(n, { name: 'exitAt' }), got))
    assert.deepEqual([error.code, error.exitCode], ['ERR_OFFLOOP_WORKER_LOST', 9])
    // What was not sent when it ended is lost with it.
    assert.deepEqual(got, upTo(got.length))
    assert.ok(got.length <= n && (n === 0 || got.length > 0))
  }
  assert.equal(await pool.run(1), 1)
})

test('abort and timeout end a stream, also one whose values nobody takes and one that spins', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1, cancelGrace: 1 })
  await pool.run(0)
  for (const [name, task] of [
    ['numbersLater', { n: 1e9 }],
    ['numbers', { n: 1e9 }],
    ['spinAfter', 5],
  ]) {
    const abort = new AbortController()
    const stream = pool.stream(task, { name, signal: abort.signal })
    assert.equal((await stream.next()).value, 0)
    abort.abort(new Error('enough'))
    const error = await rejection(collect(stream))
    assert.deepEqual([error.name, error.cause.message], ['AbortError', 'enough'])
    assert.deepEqual(await stream.next(), { done: true, value: undefined })
    const late = await rejection(collect(pool.stream(task, { name, timeout: 50 })))
    assert.equal(late.code, 'ERR_OFFLOOP_TIMEOUT')
    // Nobody takes the second value of it.
    const idle = pool.stream(task, { name, timeout: 50 })
    await idle.next().catch(() => {})
    await until(() => pool.stats.running === 0)
    assert.equal(await pool.run(1), 1)
  }
  const aborted = AbortSignal.abort()
  assert.equal((await rejection(collect(pool.stream({ n: 1 }, { name: 'numbers', signal: aborted })))).name, 'AbortError')
  await until(() => pool.stats.overdue === 0)
})

test('what the options of a stream cannot mean is refused at the call', async (t) => {
  const pool = openProcesses(t, file, { retries: 2 })
  for (const [options, text] of [
    [{ window: 0 }, /window.*value=0/],
    [{ window: 1.5 }, /window/],
    [{ retries: 1 }, /cannot be run again: some of it was taken/],
    [{ nope: 1 }, /unknown option/],
    [{ timeout: -1 }, /timeout/],
  ]) {
    assert.throws(() => pool.stream(1, options), { code: 'ERR_OFFLOOP_INVALID', message: text })
  }
  assert.deepEqual(await collect(pool.stream({ n: 3 }, { name: 'numbers' })), [0, 1, 2])
  await pool.close()
  assert.equal((await rejection(collect(pool.stream({ n: 3 }, { name: 'numbers' })))).code, 'ERR_OFFLOOP_CLOSED')
})

test('a function of a stream has its task: progress, and a signal that is aborted', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const seen = []
  assert.deepEqual(await collect(pool.stream(3, { name: 'tellEach', onProgress: (n) => seen.push(n) })), [1, 2, 3])
  assert.ok(
    seen.every((n, i) => n > (seen[i - 1] ?? 0) && n <= 3),
    `${seen}`,
  )
  const at = path.join(directory(t), 'why')
  const abort = new AbortController()
  const stream = pool.stream(at, { name: 'yieldUntilAborted', signal: abort.signal })
  await stream.next()
  abort.abort()
  assert.equal((await rejection(collect(stream))).name, 'AbortError')
  assert.equal(await pool.run(1), 1)
  assert.equal(fs.readFileSync(at, 'utf8'), 'ERR_OFFLOOP_CANCELLED')
})

test('streams of a worker of any language', async (t) => {
  const pool = openProcesses(t, commonWorker(), { maxWorkers: 1 })
  for (const name of ['numbers', 'numbersLater']) {
    assert.deepEqual(await collect(pool.stream({ n: 500 }, { name })), upTo(500))
    const got = []
    const error = await rejection(collect(pool.stream({ n: 100, fail: 70 }, { name }), got))
    assert.deepEqual([error.name, error.message, got], ['RangeError', 'at 70', upTo(70)])
  }
  const values = [1, 'two', { three: [4] }, new Uint8Array(100_000).fill(3), new Float64Array([1.5])]
  assert.deepEqual(await collect(pool.stream(values, { name: 'yieldAll' })), values)
  for await (const value of pool.stream({ n: 1e9 }, { name: 'numbers' })) if (value === 200) break
  assert.equal((await rejection(collect(pool.stream(undefined, { name: 'yieldFunction' })))).code, 'ERR_OFFLOOP_UNSERIALIZABLE')
  assert.equal((await rejection(collect(pool.stream(5, { name: 'exitAt' })))).code, 'ERR_OFFLOOP_WORKER_LOST')
})

test('a stream keeps the process alive until it ends', async () => {
  const { code, out, err } = await script(`
    const { ProcessPool } = await import(offloopUrl)
    const pool = new ProcessPool(${JSON.stringify(file.href)})
    let sum = 0
    for await (const n of pool.stream({ n: 50, ms: 1 }, { name: 'numbersLater' })) sum += n
    for await (const n of pool.stream({ n: 50 }, { name: 'numbers' })) if (n === 3) break
    console.log(sum)
  `)
  assert.deepEqual([code, out, err], [0, '1225\n', ''])
})

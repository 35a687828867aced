// Values that only a message can carry, and those that cannot be read where they come: of a WorkerPool and of a ProcessPool.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { OffloopError } from '../lib/index.mjs'
import { openProcesses } from './processes.mjs'
import { openWorkers, rejection, workerFile } from './support.mjs'
import { tooDeep } from './workers/unread.mjs'

const EMPTY = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0)
const MODULE = new WebAssembly.Module(EMPTY)
const DEEP = 8000

/** That of its task, which went the other way: typed, with what the runtime said. */
function isUnread(error, what) {
  assert.ok(error instanceof OffloopError, String(error))
  assert.equal(error.code, 'ERR_OFFLOOP_UNSERIALIZABLE')
  assert.match(error.message, new RegExp(`: ${what} cannot be read \\(why=Maximum call stack`))
  assert.equal(error.cause.name, 'RangeError')
}

test('a WebAssembly.Module comes and goes between threads as structuredClone has it', async (t) => {
  const pool = openWorkers(t, 'unread.mjs', { maxWorkers: 1 })
  assert.equal(await pool.run({ module: MODULE, again: MODULE }, { name: 'isModule' }), true)
  assert.equal(await pool.exports.isModule({ module: MODULE, again: MODULE }), true)
  assert.equal(await pool.run({ module: MODULE, again: MODULE }, { name: 'isModule', retries: 1 }), true)
  const [{ module }] = await pool.exports.compile(EMPTY)
  assert.ok(module instanceof WebAssembly.Module)
  assert.deepEqual(WebAssembly.Module.exports(module), [])
  const mapped = []
  for await (const value of pool.map([MODULE, 1, MODULE], { name: 'identity' })) mapped.push(value instanceof WebAssembly.Module)
  assert.deepEqual(mapped, [true, false, true])
})

test('what cannot leave its process is refused at the call, and as a result, with its path', async (t) => {
  const pool = openProcesses(t, workerFile('unread.mjs'), { maxWorkers: 1 })
  for (const kept of [MODULE, new SharedArrayBuffer(8), new Uint8Array(new SharedArrayBuffer(8)), new Blob(['x'])]) {
    const error = await rejection(pool.run({ rows: [1, kept] }, { name: 'identity' }))
    assert.deepEqual([error.code, /argument cannot be cloned \(path=rows\[1\]\)/.test(error.message)], ['ERR_OFFLOOP_UNSERIALIZABLE', true])
  }
  const whole = await rejection(pool.exports.identity(MODULE))
  assert.deepEqual([whole.code, /path=\[0\]|got=Module/.test(whole.message)], ['ERR_OFFLOOP_UNSERIALIZABLE', true])
  const result = await rejection(pool.exports.compile(EMPTY))
  assert.ok(result instanceof OffloopError)
  assert.deepEqual(
    [result.code, /result cannot be cloned \(path=\[0\]\.module\)/.test(result.message)],
    ['ERR_OFFLOOP_UNSERIALIZABLE', true],
  )
  assert.equal(await pool.exports.identity(1), 1)
  assert.equal(pool.stats.lost, 0)
})

for (const [kind, open] of [
  // Threads have a larger stack than this one, or a smaller one.
  ['WorkerPool', (t, small) => openWorkers(t, 'unread.mjs', { maxWorkers: 1, resourceLimits: { stackSizeMb: small ? 0.5 : 4 } })],
  [
    'ProcessPool',
    (t, small) => openProcesses(t, workerFile('unread.mjs'), { maxWorkers: 1, execArgv: [`--stack-size=${small ? 200 : 3900}`] }),
  ],
]) {
  test(`${kind}: a result or a value of a stream that cannot be read is a typed error of its task`, async (t) => {
    const pool = open(t, false)
    isUnread(await rejection(pool.run(DEEP, { name: 'tooDeep' })), 'result')
    isUnread(await rejection(pool.run(DEEP, { name: 'throwsDeep' })), 'result')
    const ways = kind === 'WorkerPool' ? [false, true] : [false]
    for (const beside of ways) {
      const stream = pool.stream([DEEP, beside], { name: 'tooDeepAfter' })
      assert.deepEqual(await stream.next(), { done: false, value: 'one' })
      isUnread(await rejection(stream.next()), 'yielded value')
      if (!beside) continue
      isUnread(await rejection(pool.run(DEEP, { name: 'tooDeepBeside' })), 'result')
      // The next ones are their own.
      const [value, shared] = await pool.run(3, { name: 'tooDeepBeside' })
      assert.deepEqual([value, shared.byteLength], [[[[0]]], 1])
    }
    assert.equal(await pool.exports.identity(1), 1)
    assert.deepEqual([pool.stats.running, pool.stats.lost], [0, 0])
  })

  test(`${kind}: an argument that cannot be read is a typed error of its task`, async (t) => {
    const pool = open(t, true)
    const value = tooDeep(2500)
    isUnread(await rejection(pool.run(value, { name: 'depth' })), 'argument')
    isUnread(await rejection(pool.stream(value, { name: 'tooDeepAfter' }).next()), 'argument')
    if (kind === 'WorkerPool') isUnread(await rejection(pool.exports.depth(value, new SharedArrayBuffer(1))), 'argument')
    assert.equal(await pool.run([[1]], { name: 'depth' }), 2)
    assert.equal(pool.stats.lost, 0)
  })
}

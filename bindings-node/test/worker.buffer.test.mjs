// TransferBuffers as arguments and results: they move, and nobody keeps bytes that nobody will take.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import { test } from 'node:test'
import { move, TransferBuffer } from '../lib/index.mjs'
import { gate, openWorkers, rejection, until } from './support.mjs'

function filled(bytes, options) {
  const buffer = TransferBuffer.alloc(bytes.length, options)
  buffer.bytes().set(bytes)
  return buffer
}
const fds = () => fs.readdirSync('/proc/self/fd').length
/** Waits until so many memory files are open as before; what is collected is closed. */
async function untilFds(n) {
  await until(() => {
    globalThis.gc()
    return fds() <= n
  })
}

test('a TransferBuffer moves to the worker and back, without a copy, among plain data', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  for (const shared of [false, true]) {
    const one = filled([1, 2, 3], { shared })
    const view = one.bytes()
    const two = filled(new Uint8Array(1 << 20).fill(7), { shared })
    const call = pool.exports.addToBuffers({ all: [one, two], plain: 'text' }, 1)
    // At once, as any value is taken at the call.
    assert.deepEqual([one.detached, one.byteLength, view.length, two.detached], [true, 0, 0, true])
    const { all, sum, kept } = await call
    assert.deepEqual([sum, kept], [6 + 7 * (1 << 20), 'text'])
    assert.ok(all.every((buffer) => buffer instanceof TransferBuffer && !buffer.detached))
    assert.deepEqual([...all[0].bytes()], [2, 3, 4])
    assert.deepEqual([all[1].byteLength, all[1].bytes()[99], all[1].fd !== null], [1 << 20, 8, shared])
    // The worker's own handles are detached.
    assert.deepEqual(await pool.exports.lastBuffers(), [0, 0])
  }
  const whole = await pool.run(filled([5]), { key: 'k', timeout: 5000 })
  assert.deepEqual([...whole.bytes()], [5])
  const listed = filled([6])
  assert.deepEqual([...(await pool.run(listed, { transferList: [listed] })).bytes()], [6])
  assert.deepEqual([...(await pool.run(move(filled([7])))).bytes()], [7])
  assert.equal((await pool.run(TransferBuffer.alloc(0))).byteLength, 0)
  const many = await pool.runMany(Array.from({ length: 100 }, (_, i) => filled([i])))
  assert.deepEqual(
    many.map((buffer) => buffer.bytes()[0]),
    Array.from({ length: 100 }, (_, i) => i),
  )
})

test('a refused call moves nothing', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, maxQueue: 1 })
  const buffer = filled([1, 2, 3])
  const bytes = new Uint8Array(3)
  const gone = filled([9])
  gone.transfer()
  const aborted = AbortSignal.abort()
  for (const [call, code] of [
    [() => pool.run([buffer, gone]), 'DETACHED'],
    [() => pool.run([buffer, buffer]), 'UNSERIALIZABLE'],
    [() => pool.run(new Map([['k', buffer]])), 'UNSERIALIZABLE'],
    [() => pool.run([buffer, () => {}]), 'UNSERIALIZABLE'],
    [() => pool.run([buffer, new SharedArrayBuffer(8)]), 'UNSERIALIZABLE'],
    [() => pool.run([new Uint8Array(new SharedArrayBuffer(8)), buffer]), 'UNSERIALIZABLE'],
    [() => pool.run([bytes, buffer], { transferList: [bytes.buffer] }), 'UNSERIALIZABLE'],
    [() => pool.run(buffer, { retries: 1 }), 'INVALID'],
    [() => pool.options({ retries: 1 }).exports.identity(buffer), 'INVALID'],
    [() => pool.run(buffer, { signal: aborted }), 'CANCELLED'],
    [() => pool.run(buffer, { priority: 1000 }), 'INVALID'],
    [() => pool.stream([buffer], { name: 'yieldAll' }).next(), 'UNSERIALIZABLE'],
  ]) {
    assert.equal((await rejection(call())).code, `ERR_OFFLOOP_${code}`)
    assert.deepEqual([buffer.detached, ...buffer.bytes()], [false, 1, 2, 3])
  }
  const door = gate()
  const held = pool.exports.hold(door.flags)
  await door.started()
  assert.equal((await rejection(pool.broadcast(buffer))).code, 'ERR_OFFLOOP_INVALID')
  const waits = pool.run(1)
  assert.equal((await rejection(pool.run(buffer))).code, 'ERR_OFFLOOP_FULL')
  assert.deepEqual([...buffer.bytes()], [1, 2, 3])
  door.release()
  await Promise.all([held, waits])
  assert.deepEqual([...(await pool.run(buffer)).bytes()], [1, 2, 3])
  await pool.close()
  const late = filled([4])
  assert.equal((await rejection(pool.run(late))).code, 'ERR_OFFLOOP_CLOSED')
  assert.deepEqual([...late.bytes()], [4])
})

test('a result that cannot move is an error of its task', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  for (const how of ['twice', 'detached', 'inMap', 'besideShared', 'inError']) {
    const error = await rejection(pool.exports.badBuffers(how))
    if (how === 'inError') assert.equal(error.message, 'has a buffer')
    else assert.equal(error.code, 'ERR_OFFLOOP_UNSERIALIZABLE', how)
  }
  assert.equal(await pool.run(1), 1)
})

test('bytes of calls that never ran, ran too long, or lost their worker are freed', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, cancelGrace: 1 })
  await pool.run(1)
  const shared = () => filled([1], { shared: true })
  const door = gate()
  await untilFds(fds())
  const before = fds()
  const held = pool.exports.hold(door.flags)
  await door.started()
  const abort = new AbortController()
  const waiting = Array.from({ length: 50 }, (_, i) =>
    rejection(pool.run(shared(), i % 2 === 0 ? { signal: abort.signal } : { queueTimeout: 1 })),
  )
  assert.ok(fds() >= before + 25)
  abort.abort()
  await Promise.all(waiting)
  await untilFds(before)
  door.release()
  await held
  // Taken by a worker that ends; results of calls that nobody waits for.
  for (let i = 0; i < 5; i++) {
    assert.equal((await rejection(pool.exports.exitWithBuffer(shared()))).code, 'ERR_OFFLOOP_WORKER_LOST')
    assert.equal((await rejection(pool.run(shared(), { name: 'spinWithBuffer', timeout: 5 }))).code, 'ERR_OFFLOOP_TIMEOUT')
  }
  assert.equal(await pool.run(1), 1)
  const soft = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, concurrency: 10 })
  const late = gate()
  const calls = Array.from({ length: 10 }, () => rejection(soft.run(late.flags, { name: 'lateBuffer', timeout: 20 })))
  for (const error of await Promise.all(calls)) assert.equal(error.code, 'ERR_OFFLOOP_TIMEOUT')
  assert.equal(soft.stats.overdue, 10)
  late.release()
  await until(() => soft.stats.overdue === 0)
  await soft.close()
  await pool.close()
  await untilFds(before)
})

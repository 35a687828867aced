// What calls and results give away instead of copying it.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { MessageChannel } from 'node:worker_threads'
import { move } from '../lib/index.mjs'
import { gate, openWorkers, rejection } from './support.mjs'

test('transferList and move give buffers away at the call, and results give them back', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const listed = new Uint8Array([1, 2, 3])
  const call = pool.run(listed, { transferList: [listed.buffer] })
  assert.equal(listed.length, 0)
  assert.deepEqual(await call, new Uint8Array([1, 2, 3]))
  const marked = new Uint8Array([1, 2, 3])
  const { inside } = await pool.exports.giveBack(move(marked))
  assert.equal(marked.length, 0)
  assert.deepEqual(inside, [new Uint8Array([9, 2, 3])])
  const deep = new Uint8Array(5)
  assert.deepEqual(await pool.run(new Map([['k', [{ deep: move(deep) }]]])), new Map([['k', [{ deep: new Uint8Array(5) }]]]))
  assert.equal(deep.length, 0)
  assert.equal((await pool.exports.wasMoved(7)).length, 7)
  assert.equal(await pool.exports.lastLength(), 0)
  // Marked once; what it was not given with is copied.
  const other = new Uint8Array(3)
  await pool.run(other)
  assert.equal(other.length, 3)
})

test('a MessagePort goes along, among several arguments', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const { port1, port2 } = new MessageChannel()
  const message = once(port1, 'message')
  await pool.exports.usePort(move(port2), 'hello')
  assert.match((await message)[0], /^hello from \d+$/)
})

test('what was moved into a task that never runs is gone, and nothing waits for it', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const door = gate()
  t.after(() => door.release())
  const held = pool.exports.hold(door.flags)
  await door.started()
  const { port1, port2 } = new MessageChannel()
  const closed = once(port1, 'close')
  const error = await rejection(pool.run(port2, { transferList: [port2], queueTimeout: 1 }))
  assert.equal(error.code, 'ERR_OFFLOOP_TIMEOUT')
  await closed
  door.release()
  await held
})

test('what cannot be moved is a typed error', async (t) => {
  const pool = openWorkers(t)
  assert.throws(() => move(5), { code: 'ERR_OFFLOOP_INVALID', message: /no object \(got=number\)/ })
  assert.throws(() => move({}, 5), { code: 'ERR_OFFLOOP_INVALID', message: /not an array/ })
  assert.equal((await rejection(pool.run(1, { transferList: 5 }))).code, 'ERR_OFFLOOP_INVALID')
  const { port1 } = new MessageChannel()
  t.after(() => port1.close())
  for (const call of [pool.run(port1), pool.run({}, { transferList: [{}] }), pool.run(move({ a: 1 }))]) {
    assert.equal((await rejection(call)).code, 'ERR_OFFLOOP_UNSERIALIZABLE')
  }
  // A slice of Node's own pool, which is copied or refused as the release has it.
  const pooled = Buffer.from('text')
  await Promise.allSettled([pool.run(move(pooled))])
  assert.equal(pooled.toString(), 'text')
})

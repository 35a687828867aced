// What calls of a ProcessPool and their results give away: copied, and detached where it was.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { MessageChannel } from 'node:worker_threads'
import { move, TransferBuffer } from '../lib/index.mjs'
import { commonWorker, openProcesses } from './processes.mjs'
import { rejection, workerFile } from './support.mjs'

const file = workerFile('moves.mjs')

for (const [kind, worker] of [
  ['a worker file', file],
  ['a worker of any language', commonWorker('moves.mjs')],
]) {
  test(`${kind}: transferList and move detach here, in arguments and in results`, async (t) => {
    const pool = openProcesses(t, worker, { maxWorkers: 1 })
    for (const length of [3, 5000]) {
      const listed = new Uint8Array(length).fill(7)
      const call = pool.run(listed, { name: 'sum', transferList: [listed.buffer] })
      assert.equal(listed.length, 0)
      assert.equal(await call, 7 * length)
      const marked = new Uint8Array(length).fill(2)
      const other = new Uint8Array(length)
      assert.equal(await pool.exports.sum(move(marked)), 2 * length)
      assert.equal(await pool.exports.sum(other), 0)
      assert.deepEqual([marked.length, other.length], [0, length])
      const many = [1, 2, 3].map((n) => move(new Uint8Array(length).fill(n)))
      assert.deepEqual(await pool.runMany(many, { name: 'sum' }), [length, 2 * length, 3 * length])
      assert.deepEqual(
        many.map((one) => one.length),
        [0, 0, 0],
      )
      assert.deepEqual(await pool.run(length, { name: 'give' }), new Uint8Array(length).fill(9))
      assert.equal(await pool.exports.given(), 0)
      for await (const value of pool.stream(length, { name: 'yields' })) assert.deepEqual(value, new Uint8Array(length).fill(9))
      assert.equal(await pool.exports.given(), 0)
    }
    // With the bytes that were copied it can run again.
    const again = new Uint8Array(8).fill(1)
    assert.equal(await pool.run(again, { name: 'sum', retries: 2, transferList: [again.buffer] }), 8)
    assert.equal(again.length, 0)
    // What came is given back, and what nobody can take away is copied.
    const pooled = Buffer.from('text')
    assert.equal(await pool.run(move(pooled), { name: 'sum' }), 453)
    assert.equal(pooled.toString(), 'text')
    assert.deepEqual(await pool.run(new Uint8Array(9000).fill(4), { name: 'back' }), new Uint8Array(9000).fill(4))
  })

  test(`${kind}: what cannot be given away is refused by its place, and nothing is detached`, async (t) => {
    const pool = openProcesses(t, worker, { maxWorkers: 1 })
    const bytes = new Uint8Array(8)
    const { port1, port2 } = new MessageChannel()
    t.after(() => port1.close())
    for (const [element, got] of [
      [port2, 'MessagePort'],
      [bytes.buffer, 'ArrayBuffer'],
      [new SharedArrayBuffer(1), 'SharedArrayBuffer'],
      [bytes, 'Uint8Array'],
      [5, 'number'],
    ]) {
      const error = await rejection(pool.run(bytes, { name: 'sum', transferList: [bytes.buffer, element] }))
      assert.equal(error.code, 'ERR_OFFLOOP_UNSERIALIZABLE')
      assert.match(error.message, new RegExp(`cannot leave its process, or is there twice \\(at=1, got=${got}\\)`))
    }
    for (const call of [
      () => pool.run(move(port2), { name: 'sum' }),
      () => pool.exports.sum(move({ bytes })),
      () => pool.run({ f: () => {}, bytes }, { name: 'sum', transferList: [bytes.buffer] }),
      () => pool.run(1, { name: 'givesPort' }),
    ]) {
      assert.equal((await rejection(call())).code, 'ERR_OFFLOOP_UNSERIALIZABLE')
    }
    const wrong = await rejection(pool.run(bytes, { name: 'sum', transferList: bytes.buffer }))
    assert.deepEqual([wrong.code, /option=transferList, want=array/.test(wrong.message)], ['ERR_OFFLOOP_INVALID', true])
    await pool.run(bytes, { name: 'sum' })
    assert.match((await rejection(pool.broadcast(move(new Uint8Array(1)), { name: 'sum' }))).message, /cannot be given to several workers/)
    await pool.close()
    assert.equal((await rejection(pool.run(bytes, { name: 'sum', transferList: [bytes.buffer] }))).code, 'ERR_OFFLOOP_CLOSED')
    assert.equal(bytes.length, 8)
  })
}

test('a TransferBuffer that is listed moves as it does anyway', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const buffer = TransferBuffer.from(Uint8Array.of(1, 2, 3))
  assert.equal(await pool.run(buffer, { name: 'sumOf', transferList: [buffer] }), 6)
  assert.equal(buffer.detached, true)
})

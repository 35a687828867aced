// ProcessPool: what travels, and how.
import assert from 'node:assert/strict'
import path from 'node:path'
import { test } from 'node:test'
import { MessageChannel } from 'node:worker_threads'
import { TransferBuffer } from '../lib/index.mjs'
import { commonWorker, directory, openProcesses } from './processes.mjs'
import { rejection, workerFile } from './support.mjs'

const file = workerFile('process.mjs')

test('values come back as structuredClone gives them', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const cyclic = { name: 'a' }
  cyclic.self = cyclic
  const shared = { x: 1 }
  for (const value of [
    undefined,
    null,
    -0,
    2 ** 40,
    Number.NaN,
    10n ** 30n,
    'text',
    'ünï\u{1F600}',
    'x'.repeat(100_000),
    new Date(5),
    /x/g,
    new Map([[{ a: 1 }, new Set([1, 2])]]),
    Object.assign(new Array(3), { 0: 1, 2: 3 }),
    { a: { b: [1, 'x', null, undefined] } },
    new Float64Array([1.5, -2]),
    new Uint8Array([1, 2, 3]),
    new Uint8Array(0),
    new ArrayBuffer(10_000),
    cyclic,
    [shared, shared],
  ]) {
    assert.deepStrictEqual(await pool.run(value), structuredClone(value))
  }
  const pair = await pool.run([shared, shared])
  assert.equal(pair[0], pair[1])
})

test('byte arrays of every length arrive, each with memory of its own', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  for (const length of [1, 2000, 2024, 2032, 4095, 4096, 4097, 65_536, 1_000_003, 16 << 20]) {
    const bytes = Uint8Array.from({ length }, (_, i) => (i * 7) % 251)
    const [one, two, small] = await pool.run([bytes, bytes.subarray(1).slice(), new Uint8Array([length % 251])])
    assert.ok(Buffer.compare(one, bytes) === 0 && Buffer.compare(two, bytes.subarray(1)) === 0, `${length} bytes`)
    assert.equal(small[0], length % 251)
    assert.ok(one.buffer !== two.buffer && one.buffer.byteLength === length)
    assert.equal(
      await pool.exports.sum(bytes),
      bytes.reduce((a, b) => a + b, 0),
    )
  }
  assert.deepEqual(await pool.exports.kind(Buffer.alloc(10_000)), ['[object Uint8Array]', 'Uint8Array'])
  // The caller's is a copy of what the worker changes.
  const mine = new Uint8Array(10_000)
  const changed = await pool.exports.change(mine)
  assert.deepEqual([mine[0], changed[0]], [0, 255])
  // Two views of one memory are two views of one memory there.
  const memory = new Uint8Array(20_000)
  assert.equal(await pool.exports.sameMemory(memory.subarray(0, 8000), memory.subarray(8000)), true)
  assert.equal(await pool.exports.sameMemory(memory, new Uint8Array(8000)), false)
})

test('long values that are kept stay as they are, on both sides', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  for (let i = 0; i < 200; i++) assert.equal(await pool.exports.keep(new Uint8Array(6000).fill(i % 251)), true, `${i} kept`)
  const kept = []
  for (let i = 0; i < 200; i++) kept.push(await pool.run(new Uint8Array(6000).fill(i % 251)))
  for (const [i, bytes] of kept.entries()) assert.ok(bytes.length === 6000 && bytes.every((b) => b === i % 251))
  const many = await Promise.all(Array.from({ length: 300 }, (_, i) => pool.run(new Uint8Array(5000).fill(i % 251))))
  for (const [i, bytes] of many.entries()) assert.ok(bytes.every((b) => b === i % 251))
})

test('a TransferBuffer moves to the worker and back', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  for (const length of [10, 5000, 1 << 20]) {
    for (const shared of [false, true]) {
      const buffer = TransferBuffer.alloc(length, { shared })
      buffer.bytes().fill(7)
      const view = buffer.bytes()
      const back = await pool.run({ buffer })
      assert.deepEqual([buffer.detached, view.length, buffer.byteLength], [true, 0, 0])
      assert.ok(back.buffer instanceof TransferBuffer)
      assert.ok(back.buffer.byteLength === length && back.buffer.bytes().every((b) => b === 7))
    }
  }
  const gone = TransferBuffer.alloc(10)
  gone.transfer()
  assert.equal((await rejection(pool.run(gone))).code, 'ERR_OFFLOOP_DETACHED')
  // A result moves as well.
  assert.equal((await pool.exports.giveKept()).byteLength, 10)
  assert.equal(await pool.exports.keptIsGone(), true)
  const beside = TransferBuffer.alloc(10)
  const refused = await rejection(pool.run({ beside, map: new Map() }))
  assert.deepEqual([refused.code, beside.detached], ['ERR_OFFLOOP_UNSERIALIZABLE', false])
  assert.match(refused.cause.message, /a TransferBuffer moves in plain data only/)
  const kept = TransferBuffer.alloc(10)
  assert.equal((await rejection(pool.run(kept, { timeout: -1 }))).code, 'ERR_OFFLOOP_INVALID')
  assert.equal(kept.detached, false)
})

/** Bytes of mappings of this name that are in memory, in the process that it is sent to. */
async function resident(name) {
  const { readFileSync } = await import('node:fs')
  let sum = 0
  for (const part of readFileSync('/proc/self/smaps', 'utf8').split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)) {
    if (part.includes(name)) sum += Number(/^Rss:\s+(\d+) kB/m.exec(part)[1]) * 1024
  }
  return sum
}

test('a buffer in memory of the pool moves to a worker and back without a copy', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const size = 64 << 20
  let buffer = pool.alloc(size)
  assert.ok(buffer.bytes().every((byte) => byte === 0))
  const before = await resident('offloop-shared')
  assert.ok(before >= size)
  for (let i = 0; i < 5; i++) {
    const sent = buffer
    const view = sent.bytes()
    view[i] = i + 1
    buffer = await pool.exports.touch(buffer, i)
    assert.deepEqual([sent.detached, view.length], [true, 0])
    assert.deepEqual([buffer.byteLength, buffer.bytes()[i], buffer.bytes()[size - 1 - i]], [size, i + 1, i + 1])
  }
  assert.ok((await resident('offloop-shared')) < before + (8 << 20))
  const there = await pool.call(resident, 'offloop-replies')
  assert.ok(there < 8 << 20, `${there}`)
})

test('what a worker does not give back with its call is a copy, or gone with the call', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const filled = (length, byte) => {
    const buffer = pool.alloc(length)
    buffer.bytes().fill(byte)
    return buffer
  }
  for (const length of [0, 10, 5000, 100_000]) {
    const back = await pool.run({ deep: [filled(length, 1), filled(length, 2)] })
    assert.deepEqual(
      back.deep.map((one) => one.bytes()),
      [new Uint8Array(length).fill(1), new Uint8Array(length).fill(2)],
    )
  }
  // Kept, and given with another call; its memory is not given to anybody else meanwhile.
  await pool.exports.keepBuffer(filled(10_000, 3))
  const others = Array.from({ length: 20 }, () => filled(10_000, 4))
  const kept = await pool.exports.giveBuffer()
  assert.ok(kept.bytes().every((byte) => byte === 3) && others.every((one) => one.bytes().every((byte) => byte === 4)))
  await rejection(pool.exports.throwWith(filled(10_000, 5)))
  // A stream yields copies.
  const streamed = pool.stream([filled(10_000, 6), filled(10_000, 7)], { name: 'yieldAll' })
  for (const byte of [6, 7]) assert.ok((await streamed.next()).value.bytes().every((one) => one === byte))
  // In another pool it is like any buffer.
  const other = openProcesses(t, file, { maxWorkers: 1 })
  assert.ok((await other.run(filled(10_000, 8))).bytes().every((byte) => byte === 8))
  // So are many that a worker keeps.
  for (let i = 0; i < 200; i++) await pool.exports.keepAllBuffers(filled(5000, i))
  assert.equal(await pool.exports.sameBuffers(), true)
})

test('a call that runs again has its buffer as it was', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const buffer = pool.alloc(10_000)
  buffer.bytes().fill(9)
  const at = path.join(directory(t), 'first')
  const back = await pool.options({ retries: 1 }).exports.touchOnce(buffer, at)
  assert.ok(back.bytes().every((byte) => byte === 9))
  assert.equal(pool.stats.retried, 1)
})

test('what alloc cannot give is a typed error', async (t) => {
  const pool = openProcesses(t)
  for (const [length, code] of [
    [-1, 'ERR_OFFLOOP_INVALID'],
    [1.5, 'ERR_OFFLOOP_INVALID'],
    ['many', 'ERR_OFFLOOP_INVALID'],
    [2 ** 45, 'ERR_OFFLOOP_TOO_LARGE'],
  ]) {
    assert.throws(() => pool.alloc(length), { code })
  }
})

test('what cannot leave a process is an error of its own task, and says where it is', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const pid = await pool.exports.pid()
  const { port1, port2 } = new MessageChannel()
  t.after(() => port1.close())
  for (const value of [() => {}, { rows: [1, { f() {} }] }, new SharedArrayBuffer(8), port2, Symbol('s')]) {
    const error = await rejection(pool.run(value))
    assert.equal(error.code, 'ERR_OFFLOOP_UNSERIALIZABLE')
  }
  assert.match((await rejection(pool.run({ rows: [1, { f() {} }] }))).message, /argument cannot be cloned \(path=rows\[1\]\.f\)/)
  const result = await rejection(pool.exports.giveFunction())
  assert.deepEqual([result.code, /path=rows\[1\]/.test(result.message)], ['ERR_OFFLOOP_UNSERIALIZABLE', true])
  assert.equal(await pool.exports.pid(), pid)
})

test('errors arrive whole', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const error = await rejection(pool.exports.fail())
  assert.ok(error instanceof Error)
  assert.deepEqual([error.name, error.message, error.code, error.details], ['Own', 'outer', 'E_OUTER', { rows: [1, 2] }])
  assert.ok(error.cause instanceof TypeError && error.cause.message === 'inner')
  assert.match(error.stack, /process\.mjs:\d+/)
  assert.deepEqual(await rejection(pool.exports.failOddly()), { code: 5 })
  const missing = await rejection(pool.exports.nothing())
  assert.equal(missing.code, 'ERR_OFFLOOP_NOT_FOUND')
  assert.match(missing.message, /name=nothing, exports=.*add/)
})

test('calls in the common form: values of any language, and errors', async (t) => {
  const pool = openProcesses(t, commonWorker(), { maxWorkers: 1, context: { limit: 5 } })
  for (const value of [
    null,
    true,
    5,
    1.5,
    10n ** 30n,
    'text',
    [1, ['x']],
    { a: { b: 1 } },
    new Date(5),
    new Uint8Array([1, 2]),
    new Float64Array([1.5, -2]),
    new Int32Array(100_000).fill(-3),
    new Uint8Array(1 << 20).fill(9),
    new Map([[1, 'x']]),
  ]) {
    assert.deepStrictEqual(await pool.run(value), value)
  }
  assert.equal(await pool.exports.add(1, 2), 3)
  assert.deepEqual((await pool.exports.seen()).slice(0, 2), [{ limit: 5 }, { limit: 5 }])
  const error = await rejection(pool.exports.fail())
  assert.deepEqual([error.name, error.message, error.code, error.details], ['Own', 'outer', 'E_OUTER', { rows: [1, 2] }])
  assert.ok(error.cause instanceof TypeError)
  assert.match((await rejection(pool.exports.failOddly())).message, /thrown: \[object Object\]/)
  assert.equal((await rejection(pool.exports.giveFunction())).code, 'ERR_OFFLOOP_UNSERIALIZABLE')
  assert.equal((await rejection(pool.run(() => {}))).code, 'ERR_OFFLOOP_UNSERIALIZABLE')
  assert.equal((await rejection(pool.exports.nothing())).code, 'ERR_OFFLOOP_NOT_FOUND')
  const told = []
  const task = pool.exports.steps
  assert.equal(typeof task, 'function')
  const late = await rejection(pool.run('/no/door', { name: 'steps', timeout: 200, onProgress: (value) => told.push(value) }))
  assert.equal(late.code, 'ERR_OFFLOOP_TIMEOUT')
  assert.deepEqual(told[0], { step: 1 })
})

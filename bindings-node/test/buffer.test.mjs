import assert from 'node:assert/strict'
import { once } from 'node:events'
import fs from 'node:fs'
import { createRequire } from 'node:module'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { OffloopError, revokeToken, TransferBuffer } from '../lib/index.mjs'
import { entryUrl, openPool, rejection, script } from './support.mjs'

const native = createRequire(import.meta.url)('../lib/native.cjs')
const throws = (call, code, message = /./) =>
  assert.throws(call, (error) => {
    assert.ok(error instanceof OffloopError, error.stack)
    assert.equal(error.code, code, error.message)
    assert.match(error.message, message)
    return true
  })

test('alloc is zeroed and bytes() is the same view each time, without a copy', () => {
  for (const options of [undefined, { shared: true }]) {
    const buffer = TransferBuffer.alloc(100_000, options)
    assert.equal(buffer.byteLength, 100_000)
    assert.ok(buffer.bytes().every((byte) => byte === 0))
    buffer.bytes()[7] = 9
    assert.equal(buffer.bytes()[7], 9)
    assert.equal(buffer.bytes(), buffer.bytes())
    assert.equal(buffer.detached, false)
  }
})

test('a value that holds one list many times is bounded', () => {
  let many = []
  for (let depth = 0; depth < 40; depth++) many = [many, many]
  throws(() => native.roundTrip(many), 'ERR_OFFLOOP_TOO_LARGE', /max_items=262144/)
  throws(() => native.roundTrip(new Array(262_144).fill(0)), 'ERR_OFFLOOP_TOO_LARGE', /items=262144/)
  assert.equal(native.roundTrip(new Array(262_143).fill(0)).length, 262_143)
})

test('transfer detaches the handle and every view; the token is one-shot', () => {
  const buffer = TransferBuffer.from(Buffer.from('hello'))
  const view = buffer.bytes()
  const part = view.subarray(1, 3)
  const token = buffer.transfer()
  assert.equal(typeof token, 'string')
  assert.deepEqual([buffer.detached, buffer.byteLength, view.length, part.length, view.buffer.byteLength], [true, 0, 0, 0, 0])
  const received = TransferBuffer.receive(token)
  assert.equal(Buffer.from(received.bytes()).toString(), 'hello')
  throws(() => TransferBuffer.receive(token), 'ERR_OFFLOOP_DETACHED')
  throws(() => buffer.transfer(), 'ERR_OFFLOOP_DETACHED')
  throws(() => buffer.bytes(), 'ERR_OFFLOOP_DETACHED')
  const kept = received.transfer()
  revokeToken(kept)
  throws(() => TransferBuffer.receive(kept), 'ERR_OFFLOOP_DETACHED')
  throws(() => revokeToken(kept), 'ERR_OFFLOOP_DETACHED')
})

test('bad sizes, tokens and descriptors are typed errors', () => {
  throws(() => new TransferBuffer(), 'ERR_OFFLOOP_INVALID')
  throws(() => TransferBuffer.alloc(-1), 'ERR_OFFLOOP_INVALID', /-1/)
  throws(() => TransferBuffer.alloc(1.5), 'ERR_OFFLOOP_INVALID', /1\.5/)
  throws(() => TransferBuffer.alloc('8'), 'ERR_OFFLOOP_INVALID')
  throws(() => TransferBuffer.alloc(Number.NaN), 'ERR_OFFLOOP_INVALID', /NaN/)
  throws(() => TransferBuffer.alloc(2 ** 53), 'ERR_OFFLOOP_INVALID')
  throws(() => TransferBuffer.alloc(2 ** 52), 'ERR_OFFLOOP_TOO_LARGE', /max_len/)
  throws(() => TransferBuffer.alloc(8, { shared: 1 }), 'ERR_OFFLOOP_INVALID', /shared/)
  throws(() => TransferBuffer.alloc(2 ** 49, { shared: true }), 'ERR_OFFLOOP_OS')
  throws(() => TransferBuffer.from('text'), 'ERR_OFFLOOP_INVALID', /string/)
  throws(() => TransferBuffer.receive('no token'), 'ERR_OFFLOOP_INVALID', /no token/)
  throws(() => TransferBuffer.receive(7), 'ERR_OFFLOOP_INVALID')
  throws(() => TransferBuffer.receive(`olt-${'0'.repeat(16)}-1-${'0'.repeat(32)}`), 'ERR_OFFLOOP_INVALID', /another process/)
  throws(() => TransferBuffer.attach(-1), 'ERR_OFFLOOP_INVALID', /-1/)
  throws(() => TransferBuffer.attach(2 ** 40), 'ERR_OFFLOOP_INVALID')
  throws(() => TransferBuffer.attach(1_000_000), 'ERR_OFFLOOP_INVALID', /fd=1000000/)
  const nul = fs.openSync('/dev/null')
  throws(() => TransferBuffer.attach(nul), 'ERR_OFFLOOP_INVALID')
  fs.closeSync(nul)
  const detached = new Uint8Array(8)
  structuredClone(detached, { transfer: [detached.buffer] })
  throws(() => TransferBuffer.from(detached), 'ERR_OFFLOOP_DETACHED')
  assert.throws(
    () => TransferBuffer.alloc(2 ** 49, { shared: true }),
    (error) => Number.isInteger(error.errno) && typeof error.syscall === 'string',
  )
})

test('an empty buffer is a buffer', async (t) => {
  const buffer = TransferBuffer.alloc(0)
  assert.equal(buffer.bytes().length, 0)
  const token = buffer.transfer()
  assert.equal(buffer.detached, true)
  assert.equal(TransferBuffer.receive(token).byteLength, 0)
  const pool = openPool(t, { maxWorkers: 1 })
  assert.equal((await pool.run('noop', TransferBuffer.alloc(0))).length, 0)
})

test('an input buffer is moved, its view detached, and the result needs no copy of it', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const buffer = TransferBuffer.alloc(8 << 20)
  buffer.bytes()[12345] = 77
  const view = buffer.bytes()
  const task = pool.run('noop', buffer)
  assert.deepEqual([buffer.detached, view.length], [true, 0], 'moved before run returns')
  const result = await task
  assert.equal(result.length, 8 << 20)
  assert.equal(result[12345], 77)
  result[12345] = 1
})

test('code of the user that runs in a call never leaves a buffer with two owners', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const refused = async (act) => {
    const buffer = TransferBuffer.from(Buffer.from('one owner'))
    buffer.bytes()
    assert.equal((await rejection(act(buffer))).code, 'ERR_OFFLOOP_DETACHED')
  }
  const getter = (act) => ({
    get sleepMs() {
      act()
      return 0
    },
  })
  let token
  await refused((buffer) => {
    const params = getter(() => {
      token = buffer.transfer()
    })
    return pool.runMany('noop', [buffer, Buffer.from('x')], params)
  })
  assert.equal(Buffer.from(TransferBuffer.receive(token).bytes()).toString(), 'one owner')

  let inner
  await refused((buffer) => {
    const params = getter(() => {
      inner = pool.run('noop', buffer)
    })
    return pool.run('noop', buffer, params)
  })
  assert.equal(Buffer.from(await inner).toString(), 'one owner')

  await refused((buffer) => {
    const ownKeys = () => {
      buffer.transfer()
      return []
    }
    return pool.run('noop', buffer, new Proxy({}, { ownKeys }))
  })
  await refused((buffer) => {
    const signal = { aborted: false, addEventListener: () => buffer.transfer(), removeEventListener() {} }
    return pool.run('noop', buffer, undefined, { signal })
  })
  await refused((buffer) => {
    const inputs = [buffer]
    const get = () => {
      buffer.transfer()
      return Buffer.from('x')
    }
    return pool.runMany('noop', Object.defineProperty(inputs, 1, { get }))
  })

  // What a view says of itself is not believed.
  const buffer = TransferBuffer.from(Buffer.from('one owner'))
  const view = buffer.bytes()
  Object.defineProperty(view, 'length', { value: 0 })
  Object.defineProperty(view, 'buffer', { value: new ArrayBuffer(1) })
  await pool.run('noop', buffer)
  assert.equal(view.byteLength, 0)
})

test('params are read once for all inputs, before run returns', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  let reads = 0
  const params = {
    get sleepMs() {
      return reads++
    },
  }
  await pool.runMany('noop', [Buffer.from('a'), Buffer.from('b')], params)
  assert.equal(reads, 1)
  const changed = { sleepMs: 0 }
  const task = pool.run('noop', new Uint8Array(4 << 20), changed)
  changed.sleepMs = -1
  await task
})

test('a view that somebody moved away by ArrayBuffer.transfer no longer reaches the bytes', {
  skip: !ArrayBuffer.prototype.transfer && 'no ArrayBuffer.prototype.transfer on this Node',
}, () => {
  const buffer = TransferBuffer.from(Buffer.from('secret'))
  const stolen = new Uint8Array(buffer.bytes().buffer.transfer())
  const received = TransferBuffer.receive(buffer.transfer())
  stolen.fill(0)
  assert.equal(Buffer.from(received.bytes()).toString(), 'secret')
})

test('a shared buffer is mapped through its descriptor', () => {
  const buffer = TransferBuffer.alloc(4096, { shared: true })
  assert.equal(TransferBuffer.alloc(8).fd, null)
  const other = TransferBuffer.attach(buffer.fd)
  buffer.bytes().set(Buffer.from('seen'), 4000)
  assert.equal(Buffer.from(other.bytes().subarray(4000, 4004)).toString(), 'seen')
})

test('a shared buffer crosses processes by descriptor', async () => {
  const buffer = TransferBuffer.alloc(4096, { shared: true })
  const { spawn } = await import('node:child_process')
  const code = `import { TransferBuffer } from ${JSON.stringify(entryUrl)}
    const b = TransferBuffer.attach(3); b.bytes().set(Buffer.from('from the child'), 100)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', code], { stdio: ['ignore', 'inherit', 'inherit', buffer.fd] })
  const [exit] = await once(child, 'close')
  assert.equal(exit, 0)
  assert.equal(Buffer.from(buffer.bytes().subarray(100, 114)).toString(), 'from the child')
})

test('a worker_thread takes the bytes by token, and sends them back', async () => {
  const code = `import { parentPort } from 'node:worker_threads'
    import { TransferBuffer } from ${JSON.stringify(entryUrl)}
    parentPort.on('message', (token) => {
      const buffer = TransferBuffer.receive(token)
      buffer.bytes()[0]++
      parentPort.postMessage(buffer.transfer())
    })`
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`))
  let buffer = TransferBuffer.alloc(16 << 20)
  for (let i = 1; i <= 5; i++) {
    worker.postMessage(buffer.transfer())
    const [token] = await once(worker, 'message')
    buffer = TransferBuffer.receive(token)
    assert.equal(buffer.bytes()[0], i)
  }
  await worker.terminate()
})

test('where the runtime refuses external memory, results and views are copies with the same meaning', async () => {
  const { code, err } = await script(`
    import assert from 'node:assert/strict'
    import { createRequire } from 'node:module'
    const { ThreadPool, TransferBuffer } = await import(offloopUrl)
    createRequire(offloopUrl)('./native.cjs').forbidExternal()
    const pool = new ThreadPool({ maxWorkers: 1 })
    const big = new Uint8Array(100_000).fill(5)
    assert.deepEqual(await pool.run('noop', big), big)
    const buffer = TransferBuffer.alloc(50_000)
    const view = buffer.bytes()
    view[3] = 8
    const received = TransferBuffer.receive(buffer.transfer())
    assert.equal(view.length, 0)
    assert.equal(received.bytes()[3], 8)
    received.bytes()[4] = 9
    const result = await pool.run('noop', received)
    assert.deepEqual([result[3], result[4]], [8, 9])
  `)
  assert.equal(code, 0, err)
})

test('garbage buffers, views and results return their memory', async () => {
  const { code, err } = await script(
    `
    import assert from 'node:assert/strict'
    const { ThreadPool, TransferBuffer } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 1 })
    const size = 4 << 20
    const used = () => process.memoryUsage()
    async function settle(limit, read) {
      for (let i = 0; i < 1000; i++) {
        globalThis.gc()
        await new Promise(setImmediate)
        if (read() < limit) return
      }
      assert.fail(JSON.stringify(used()))
    }
    const before = used()
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < 20; i++) {
        TransferBuffer.alloc(size).bytes()[0] = 1
        TransferBuffer.alloc(size)
        TransferBuffer.receive(TransferBuffer.from(new Uint8Array(size)).transfer()).bytes()
        await pool.run('noop', new Uint8Array(size))
        await pool.run('noop', TransferBuffer.alloc(size))
      }
      await settle(before.arrayBuffers + 3 * size, () => used().arrayBuffers)
      await settle(before.external + 3 * size, () => used().external)
    }
    // What is left of the resident set is the core's reuse cache (64 MiB) and the collector's own.
    await settle(before.rss + (300 << 20), () => used().rss)
  `,
    { args: ['--expose-gc'] },
  )
  assert.equal(code, 0, err)
})

test('values go there and back', () => {
  const same = (value) => assert.deepEqual(native.roundTrip(value), value)
  for (const value of [
    null,
    true,
    false,
    0,
    1,
    -1,
    0.5,
    2 ** 53 - 1,
    -(2 ** 53 - 1),
    2 ** 53,
    1e300,
    Number.POSITIVE_INFINITY,
    '',
    'text',
    'zwölf 🦀',
    [],
    [1, [2]],
    {},
  ]) {
    same(value)
  }
  assert.ok(Object.is(native.roundTrip(-0), -0))
  assert.ok(Number.isNaN(native.roundTrip(Number.NaN)))
  assert.equal(native.roundTrip(undefined), null)
  for (const big of [2n ** 53n, -(2n ** 53n), 2n ** 63n - 1n, -(2n ** 63n), 2n ** 63n, 2n ** 64n, -(2n ** 64n), 2n ** 200n + 7n]) same(big)
  for (const [big, number] of [
    [0n, 0],
    [7n, 7],
    [-7n, -7],
  ]) {
    assert.equal(native.roundTrip(big), number)
  }
  same(new Date(1_700_000_000_123))
  same({ a: 1, nested: { list: [1, 'two', null], when: new Date(0) } })
  same(Uint8Array.of(1, 2, 3))
  for (const Type of [Int8Array, Uint16Array, Int16Array, Uint32Array, Int32Array, Float32Array, Float64Array]) same(Type.of(1, 2, 3))
  same(BigInt64Array.of(-1n, 2n))
  same(BigUint64Array.of(1n, 2n ** 64n - 1n))
  assert.deepEqual(native.roundTrip(Uint8ClampedArray.of(1, 255)), Uint8Array.of(1, 255))
  same(
    new Map([
      [1, 'one'],
      [[2], new Map([[null, true]])],
    ]),
  )
  assert.deepEqual(native.roundTrip(new Map([['a', 1]])), { a: 1 })
  assert.deepEqual(native.roundTrip({ a: undefined, b: 1 }), { b: 1 })
  assert.deepEqual(native.roundTrip(Object.create(null, { x: { value: 1, enumerable: true } })), { x: 1 })
  const proto = native.roundTrip(JSON.parse('{"__proto__": {"polluted": 1}}'))
  assert.equal(proto.polluted, undefined)
  assert.deepEqual(Object.keys(proto), ['__proto__'])
  assert.deepEqual(native.roundTrip(new SharedArrayBuffer(2)), new Uint8Array(2))
  assert.deepEqual(native.roundTrip(new ArrayBuffer(2)), new Uint8Array(2))
  assert.deepEqual(native.roundTrip(new DataView(new ArrayBuffer(4), 1, 2)), new Uint8Array(2))
  assert.deepEqual(native.roundTrip(TransferBuffer.from(Uint8Array.of(4))), Uint8Array.of(4))
  const error = native.roundTrip(new RangeError('too far'))
  assert.ok(error instanceof Error)
  assert.deepEqual([error.name, error.message], ['RangeError', 'too far'])
  const cycle = {}
  cycle.self = cycle
  for (const bad of [() => 1, Symbol('s'), new Set(), new (class Thing {})(), { f() {} }]) {
    throws(() => native.roundTrip(bad), 'ERR_OFFLOOP_UNSERIALIZABLE')
  }
  throws(() => native.roundTrip(cycle), 'ERR_OFFLOOP_TOO_LARGE')
  const trap = new TypeError('getter')
  assert.throws(
    () =>
      native.roundTrip({
        get bad() {
          throw trap
        },
      }),
    trap,
  )
})

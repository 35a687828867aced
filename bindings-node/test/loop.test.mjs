// What the event loop and the collector see of a busy pool.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { OffloopError, ThreadPool, TransferBuffer } from '../lib/index.mjs'
import { hold, openPool, rejection, script, until } from './support.mjs'

/** Keeps `inFlight` calls going until `enough()`. */
function saturate(call, inFlight, enough) {
  const next = async () => {
    while (!enough()) await call()
  }
  return Promise.all(Array.from({ length: inFlight }, next))
}

test('the loop turns between two drains, however fast the results come', async (t) => {
  const pool = openPool(t)
  let [turns, inThisTurn, most] = [0, 0, 0]
  const tick = () => {
    most = Math.max(most, inThisTurn)
    inThisTurn = 0
    if (turns++ < 300) setImmediate(tick)
  }
  setImmediate(tick)
  await saturate(
    async () => {
      await pool.run('noop')
      inThisTurn++
    },
    1000,
    () => turns > 300,
  )
  // One drain by the wake and one by the immediate, of at most 512 results each.
  assert.ok(most <= 1024, `${most} results in one turn`)
})

test('slow continuations make the drains smaller', async (t) => {
  const pool = openPool(t)
  let timers = 0
  let results = 0
  const timer = setInterval(() => timers++, 1)
  await saturate(
    async () => {
      await pool.run('noop')
      results++
      for (const end = performance.now() + 0.2; performance.now() < end; );
    },
    1000,
    () => timers >= 20,
  )
  clearInterval(timer)
  // 1,000 calls that take 0.2 ms each are in flight: without a bound on the time of a turn, 500 and more settle per timer.
  assert.ok(results < 1000 + 20 * 128, `${results} results while 20 timers fired`)
})

test('sequential calls do not hold up timers either', async (t) => {
  const pool = openPool(t)
  let fired = false
  setTimeout(() => {
    fired = true
  }, 1)
  while (!fired) await pool.run('noop')
})

test('submits that are collected copy their inputs before run returns, and keep their order', async (t) => {
  const pool = openPool(t, { maxWorkers: 2 })
  const input = new Uint8Array(200)
  const calls = []
  for (let i = 0; i < 2000; i++) {
    const length = i % 5 === 4 ? 0 : 1 + (i % 200)
    calls.push(pool.run('noop', input.fill(i).subarray(0, length)))
    if (i % 100 === 50) calls.push(pool.run('sha256', input), pool.run('noop', input, undefined, { priority: 1 }))
  }
  input.fill(255)
  const results = await Promise.all(calls)
  let at = 0
  for (let i = 0; i < 2000; i++) {
    const length = i % 5 === 4 ? 0 : 1 + (i % 200)
    assert.deepEqual(results[at++], new Uint8Array(length).fill(i))
    if (i % 100 === 50) {
      assert.equal(results[at++].length, 32)
      assert.deepEqual(results[at++], new Uint8Array(200).fill(i))
    }
  }
})

test('collected submits run in the order of their calls, also beside calls with options and large inputs', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const held = await hold(pool)
  const order = []
  const calls = []
  for (let i = 0; i < 300; i++) {
    const [input, options] =
      i % 10 === 7 ? [new Uint8Array(5000), undefined] : [Uint8Array.of(i), i % 10 === 3 ? { timeout: 60_000 } : undefined]
    calls.push(pool.run('noop', input, undefined, options).then(() => order.push(i)))
  }
  await held.release()
  await Promise.all(calls)
  assert.deepEqual(
    order,
    Array.from({ length: 300 }, (_, i) => i),
  )
})

test('of collected submits the queue takes as many as fit, and the others are Full', async (t) => {
  const pool = openPool(t, { maxWorkers: 1, maxQueue: 100 })
  const held = await hold(pool)
  const outcomes = []
  const calls = []
  for (let i = 0; i < 180; i++) {
    calls.push(
      pool.run('noop', Uint8Array.of(i)).then(
        ([n]) => {
          outcomes[i] = n
        },
        (error) => {
          outcomes[i] = error.code
        },
      ),
    )
  }
  assert.deepEqual([pool.stats.queued, pool.stats.rejected], [100, 80])
  await held.release()
  await Promise.all(calls)
  assert.deepEqual(
    outcomes,
    Array.from({ length: 180 }, (_, i) => (i < 100 ? i : 'ERR_OFFLOOP_FULL')),
  )
  assert.deepEqual(await pool.run('noop', Uint8Array.of(1)), Uint8Array.of(1))
})

test('bad calls among collected ones fail alone', async (t) => {
  const [pool, other] = [openPool(t, { maxWorkers: 1 }), openPool(t, { maxWorkers: 1 })]
  await pool.run('sha256', new Uint8Array(1))
  await rejection(pool.run('no such op', new Uint8Array(1)))
  const detached = new Uint8Array(8)
  structuredClone(detached, { transfer: [detached.buffer] })
  const lying = new Uint8Array(2000).fill(9)
  Object.defineProperty(lying, 'byteLength', { value: 3 })
  Object.defineProperty(lying, 'length', { value: 3 })
  const wrong = []
  const calls = []
  const expect = (want, call) => {
    const outcome = call.then(
      ([n]) => n,
      (error) => error.code,
    )
    calls.push(outcome.then((got) => got === want || wrong.push({ got, want })))
  }
  for (let i = 0; i < 100; i++) {
    expect(i, pool.run('noop', Uint8Array.of(i)))
    if (i < 80) continue
    expect('ERR_OFFLOOP_INVALID', pool.run('sha256'))
    expect('ERR_OFFLOOP_NOT_FOUND', pool.run('no such op', new Uint8Array(1)))
    expect('ERR_OFFLOOP_DETACHED', pool.run('noop', detached))
    expect(i, other.run('noop', Uint8Array.of(i)))
    expect(9, pool.run('noop', lying))
  }
  await Promise.all(calls)
  assert.deepEqual(wrong, [])
})

test('a pool that is closed right after its calls runs the collected ones', async () => {
  const pool = new ThreadPool({ maxWorkers: 1 })
  const calls = Array.from({ length: 200 }, (_, i) => pool.run('noop', Uint8Array.of(i)))
  const closed = pool.close()
  const late = await rejection(pool.run('noop', Uint8Array.of(1)))
  assert.equal(late.code, 'ERR_OFFLOOP_CLOSED')
  assert.deepEqual(
    (await Promise.all(calls)).map(([n]) => n),
    Array.from({ length: 200 }, (_, i) => i),
  )
  await closed
})

test('calls from any kind of callback are submitted without another event', async () => {
  const { code, out, err } = await script(`
    const { ThreadPool } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 1 })
    let left = 0
    const many = () => { for (let i = 0; i < 100; i++) { left++; pool.run('noop', Uint8Array.of(1)).then(() => left--) } }
    many()
    process.nextTick(many)
    queueMicrotask(many)
    setTimeout(many)
    setImmediate(many)
    Promise.reject().catch(many)
    process.on('exit', () => console.log(left))
  `)
  assert.deepEqual([code, out, err], [0, '0\n', ''])
})

test('fake timers of a test framework do not stop the results', async () => {
  const { code, out, err } = await script(`
    const { ThreadPool } = await import(offloopUrl)
    globalThis.setImmediate = globalThis.setTimeout = () => 0
    const pool = new ThreadPool({ maxWorkers: 1 })
    for (let i = 0; i < 20; i++) await Promise.all(Array.from({ length: 200 }, () => pool.run('noop', Uint8Array.of(1))))
    console.log((await pool.run('noop', new Uint8Array(3 << 20))).length)
    const stuck = pool.run('noop', new Uint8Array(64 << 20), { sleepMs: 600_000 }).catch((error) => error.code)
    await pool.close({ grace: 1 })
    console.log(['ERR_OFFLOOP_CLOSED', 'ERR_OFFLOOP_CANCELLED'].includes(await stuck))
  `)
  assert.deepEqual([code, out, err], [0, `${3 << 20}\ntrue\n`, ''])
})

test('a signal whose getters throw while results arrive costs nobody a result', async () => {
  const { code, out, err } = await script(`
    const { ThreadPool } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 1 })
    const uncaught = []
    process.on('uncaughtException', (error) => uncaught.push(error.message))
    const codes = []
    for (const name of ['aborted', 'reason']) {
      let armed = false
      let abort
      const signal = {
        get aborted() { if (armed && name === 'aborted') throw new Error('aborted'); return armed },
        get reason() { throw new Error('reason') },
        addEventListener(_, listener) { abort = listener },
        removeEventListener() {},
      }
      for (const input of [new Uint8Array(8), new Uint8Array(4 << 20)]) {
        armed = false
        const tasks = [
          pool.run('noop', input, { sleepMs: 600000 }, { signal }),
          pool.run('noop', new Uint8Array(8)),
        ]
        armed = true
        abort()
        for (const { reason } of await Promise.allSettled(tasks)) codes.push(reason?.code)
      }
    }
    process.on('exit', () => console.log(codes.map(String).join(' '), '|', uncaught.join(' ')))
  `)
  assert.deepEqual([code, err], [0, ''])
  const each = 'ERR_OFFLOOP_CANCELLED undefined'
  assert.equal(out, `${each} ${each} ${each} ${each} | aborted aborted reason reason\n`)
})

test('an idle pool that was busy does not keep the process, nor does it spin', async () => {
  const { code, out, err } = await script(`
    const { ThreadPool } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 2, minWorkers: 2 })
    await Promise.all(Array.from({ length: 5000 }, () => pool.run('noop')))
    const before = performance.eventLoopUtilization()
    const held = pool.run('noop', undefined, { sleepMs: 200 })
    await held
    const { idle, active } = performance.eventLoopUtilization(before)
    console.log(idle > active)
  `)
  assert.deepEqual([code, out, err], [0, 'true\n', ''])
})

test('a buffer that goes to and fro weighs once', () => {
  const length = 8 << 20
  let buffer = TransferBuffer.alloc(length)
  buffer.bytes().fill(1)
  const before = process.memoryUsage().external
  let most = 0
  for (let i = 0; i < 200; i++) {
    buffer = TransferBuffer.receive(buffer.transfer())
    buffer.bytes()[0]++
    most = Math.max(most, process.memoryUsage().external - before)
  }
  assert.ok(most < 2 * length, `${most} bytes`)
})

test('buffers that were moved into tasks press the collector until it has taken their views', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const length = 16 << 20
  globalThis.gc()
  const before = process.memoryUsage().rss
  for (let i = 0; i < 100; i++) {
    const buffer = TransferBuffer.alloc(length)
    buffer.bytes().fill(i)
    await pool.run('xxh3', buffer)
  }
  const grown = process.memoryUsage().rss - before
  assert.ok(grown < 40 * length, `${grown} bytes`)
})

test('anything in the wrong place of any call is a typed error', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const good = new Uint8Array(8)
  const detached = new ArrayBuffer(8)
  const view = new DataView(detached)
  structuredClone(detached, { transfer: [detached] })
  const revoked = Proxy.revocable({}, {})
  const nasty = {
    get constructor() {
      throw new Error('constructor')
    },
  }
  const odd = [
    5,
    'text',
    true,
    Symbol('s'),
    5n,
    [],
    [1],
    () => {},
    new Map([[1, 2]]),
    new Date(0),
    new Uint8Array(2),
    Promise.resolve(),
    new (class A {})(),
  ]
  const failure = async (call) => {
    try {
      return await call()
    } catch (error) {
      return error
    }
  }
  const invalid = async (what, call, also = []) => {
    const error = await failure(call)
    assert.ok(error instanceof OffloopError, `${what}: ${error?.stack ?? String(error)}`)
    assert.ok(['ERR_OFFLOOP_INVALID', 'ERR_OFFLOOP_UNSERIALIZABLE', ...also].includes(error.code), `${what}: ${error.code}`)
  }
  const isPlain = (value) => Object.prototype.toString.call(value) === '[object Object]'
  for (const value of odd) {
    const name = typeof value === 'symbol' ? 'symbol' : `${typeof value} ${String(value).slice(0, 20)}`
    if (typeof value !== 'string') {
      await invalid(`run op ${name}`, () => pool.run(value, good))
      await invalid(`receive ${name}`, () => TransferBuffer.receive(value))
      await invalid(`load ${name}`, () => pool.load(value))
    }
    if (!(value instanceof Uint8Array) && !(Array.isArray(value) && value.length === 0)) {
      await invalid(`input ${name}`, () => pool.run('sha256', value))
      await invalid(`from ${name}`, () => TransferBuffer.from(value))
    }
    if (value !== 5) await invalid(`alloc ${name}`, () => TransferBuffer.alloc(value))
    if (!isPlain(value)) {
      await invalid(`alloc options ${name}`, () => TransferBuffer.alloc(8, value))
      await invalid(`run options ${name}`, () => pool.run('noop', good, undefined, value))
      await invalid(`pool options ${name}`, () => new ThreadPool(value))
      await invalid(`view options ${name}`, () => pool.options(value))
      await invalid(`resize ${name}`, () => pool.resize(value))
      await invalid(`close ${name}`, () => pool.close(value))
      await invalid(`params ${name}`, () => pool.run('noop', good, value))
    }
    if (!Array.isArray(value)) await invalid(`inputs ${name}`, () => pool.runMany('noop', value))
    for (const option of ['timeout', 'queueTimeout', 'priority', 'key', 'signal', 'onProgress', 'retries']) {
      if (
        typeof value === 'number' ||
        (option === 'key' && typeof value === 'string') ||
        (option === 'onProgress' && typeof value === 'function')
      )
        continue
      await invalid(`${option} ${name}`, () => pool.run('noop', good, undefined, { [option]: value }))
    }
  }
  for (const unknown of [{ share: true }, { shared: 1 }]) await invalid('alloc', () => TransferBuffer.alloc(8, unknown))
  for (const gone of [detached, view]) {
    await invalid('detached', () => pool.run('noop', gone), ['ERR_OFFLOOP_DETACHED'])
    await invalid('detached', () => TransferBuffer.from(gone), ['ERR_OFFLOOP_DETACHED'])
  }
  await invalid('nasty input', () => pool.run('noop', nasty))
  revoked.revoke()
  assert.ok((await failure(() => pool.run('noop', revoked.proxy))) instanceof Error)
  await until(() => pool.stats.queued === 0)
  assert.deepEqual(await pool.run('noop', Uint8Array.of(1)), Uint8Array.of(1))
})

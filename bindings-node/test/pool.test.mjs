import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { defaultPool, metrics, OffloopError, ops, ThreadPool, TransferBuffer } from '../lib/index.mjs'
import { hold, openPool, rejection, script, until } from './support.mjs'

const bytes = (text) => Buffer.from(text)

test('runs an op and returns its bytes in memory of their own', async (t) => {
  const pool = openPool(t, { maxWorkers: 2 })
  const input = bytes('hello')
  const [a, b] = await Promise.all([pool.run('noop', input), pool.run('noop', input)])
  assert.deepEqual(Buffer.from(a), input)
  a.fill(0)
  assert.deepEqual(Buffer.from(b), input)
  assert.equal(a.buffer.byteLength, 5)
})

test('copies the input before run returns', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  for (const length of [5, 64, 65, 4096, 100_000, 1 << 20]) {
    const input = new Uint8Array(length).fill(1)
    const task = pool.run('noop', input)
    input.fill(2)
    assert.deepEqual(await task, new Uint8Array(length).fill(1))
    const detached = new Uint8Array(length).fill(3)
    const other = pool.run('noop', detached)
    structuredClone(detached, { transfer: [detached.buffer] })
    assert.deepEqual(await other, new Uint8Array(length).fill(3))
  }
})

test('takes every kind of byte source', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const raw = Uint8Array.of(0, 1, 2, 3, 4, 5, 6, 7)
  const shared = new SharedArrayBuffer(8)
  new Uint8Array(shared).set(raw)
  for (const [source, want] of [
    [raw, raw],
    [raw.subarray(2, 5), [2, 3, 4]],
    [raw.buffer, raw],
    [new DataView(raw.buffer, 1, 2), [1, 2]],
    [new Uint16Array(raw.buffer, 2, 2), [2, 3, 4, 5]],
    [new Float64Array(raw.buffer), raw],
    [shared, raw],
    [new Uint8Array(shared, 4), [4, 5, 6, 7]],
    [Buffer.from(raw), raw],
    [new Uint8Array(0), []],
    [undefined, []],
    [TransferBuffer.from(raw), raw],
  ]) {
    assert.deepEqual([...(await pool.run('noop', source))], [...want])
    if (source !== undefined)
      assert.deepEqual([...(await pool.runMany('noop', [source instanceof TransferBuffer ? raw : source]))[0]], [...want])
  }
})

test('delivers many results of many sizes without mixing them up', async (t) => {
  const pool = openPool(t, { maxWorkers: 4 })
  const sizes = Array.from({ length: 3000 }, (_, i) => (i % 7 === 0 ? (i * 37) % 9000 : i % 200))
  const results = await Promise.all(sizes.map((size, i) => pool.run('noop', new Uint8Array(size).fill(i & 255))))
  results.forEach((result, i) => {
    assert.equal(result.length, sizes[i])
    assert.ok(result.every((byte) => byte === (i & 255)))
  })
})

test('runMany keeps the order and is one promise', async (t) => {
  const pool = openPool(t, { maxWorkers: 4 })
  const inputs = Array.from({ length: 1000 }, (_, i) => bytes(`item ${i}`))
  const results = await pool.runMany('noop', inputs)
  assert.deepEqual(
    results.map((r) => Buffer.from(r).toString()),
    inputs.map(String),
  )
  assert.deepEqual(await pool.runMany('noop', []), [])
})

test('runMany rejects with the first error and its index, and cancels the rest', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const held = await hold(pool)
  const error = await rejection(pool.runMany('noop', [bytes('a'), bytes('b')], undefined, { queueTimeout: 1 }))
  assert.equal(error.code, 'ERR_OFFLOOP_TIMEOUT')
  assert.ok(error.index === 0 || error.index === 1)
  await held.release()
  const all = await rejection(pool.runMany('noop', [bytes('a'), bytes('b')], { panic: true }))
  assert.equal(all.code, 'ERR_OFFLOOP_PANIC')
  assert.equal(all.index, 0)
})

test('bad input is a typed error that names the value, and the pool still works', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const detached = new Uint8Array(8)
  structuredClone(detached, { transfer: [detached.buffer] })
  const gone = TransferBuffer.alloc(4)
  gone.transfer()
  const twice = TransferBuffer.alloc(4)
  const run =
    (...args) =>
    () =>
      pool.run(...args)
  const cases = [
    [run('no_such_op', bytes('x')), 'ERR_OFFLOOP_NOT_FOUND', /no_such_op/],
    [run('', bytes('x')), 'ERR_OFFLOOP_NOT_FOUND', /op/],
    [run(7, bytes('x')), 'ERR_OFFLOOP_INVALID', /op name.*number/],
    [run('n\ud800', bytes('x')), 'ERR_OFFLOOP_NOT_FOUND', /\ufffd/],
    [run('noop', 'text'), 'ERR_OFFLOOP_INVALID', /no bytes.*got=string/],
    [run('noop', null), 'ERR_OFFLOOP_INVALID', /got=null/],
    [run('noop', { length: 3 }), 'ERR_OFFLOOP_INVALID', /got=Object/],
    [run('noop', [bytes('a'), bytes('b')]), 'ERR_OFFLOOP_INVALID', /inputs=2, min=0, max=1/],
    [run('noop', detached), 'ERR_OFFLOOP_DETACHED', /detached/],
    [run('noop', gone), 'ERR_OFFLOOP_DETACHED', /transferred/],
    [run('noop', [twice, twice]), 'ERR_OFFLOOP_DETACHED', /twice/],
    [run('noop', bytes('x'), { nope: 1 }), 'ERR_OFFLOOP_INVALID', /unknown option.*nope/],
    [run('noop', bytes('x'), { sleepMs: -1 }), 'ERR_OFFLOOP_INVALID', /sleepMs.*-1/],
    [run('noop', bytes('x'), { sleepMs: 'long' }), 'ERR_OFFLOOP_INVALID', /sleepMs.*string/],
    [run('noop', bytes('x'), { sleepMs: Number.NaN }), 'ERR_OFFLOOP_INVALID', /sleepMs/],
    [run('noop', bytes('x'), { sleepMs: 2n ** 80n }), 'ERR_OFFLOOP_INVALID', /sleepMs/],
    [run('noop', bytes('x'), 'fast'), 'ERR_OFFLOOP_INVALID', /params.*string/],
    [run('noop', bytes('x'), { sleepMs: () => 1 }), 'ERR_OFFLOOP_UNSERIALIZABLE', /function/],
    [run('noop', bytes('x'), undefined, 'fast'), 'ERR_OFFLOOP_INVALID', /options.*string/],
    [run('noop', bytes('x'), undefined, { timeOut: 1 }), 'ERR_OFFLOOP_INVALID', /unknown option \(option=timeOut.*timeout/],
    ...['timeout', 'queueTimeout'].flatMap((option) =>
      [
        [Number.NaN, 'NaN, min=0, max=2592000000'],
        [Number.NEGATIVE_INFINITY, '-inf'],
        [-1, '-1'],
        [1e300, '1e300'],
        [2_592_000_001, '2592000001'],
        ['5', "'5', want=milliseconds from 0"],
        [true, 'neither a number nor text'],
        [5n, 'neither a number nor text'],
      ].flatMap(([value, shown]) => {
        const message = new RegExp(`option=${option}, value=${shown}`)
        return [
          [run('noop', bytes('x'), undefined, { [option]: value }), 'ERR_OFFLOOP_INVALID', message],
          [async () => pool.options({ [option]: value }), 'ERR_OFFLOOP_INVALID', message],
        ]
      }),
    ),
    [async () => new ThreadPool({ idleTimeout: 1e300 }), 'ERR_OFFLOOP_INVALID', /idleTimeout.*1e300/],
    [run('noop', bytes('x'), undefined, { priority: 128 }), 'ERR_OFFLOOP_INVALID', /priority.*128.*min=-128.*max=127/],
    [run('noop', bytes('x'), undefined, { priority: 0.5 }), 'ERR_OFFLOOP_INVALID', /priority.*0.5/],
    [run('noop', bytes('x'), undefined, { key: 7 }), 'ERR_OFFLOOP_INVALID', /key.*7/],
    [run('noop', bytes('x'), undefined, { retries: -1 }), 'ERR_OFFLOOP_INVALID', /retries.*-1/],
    [run('noop', bytes('x'), undefined, { signal: {} }), 'ERR_OFFLOOP_INVALID', /signal.*AbortSignal/],
    [run('noop', bytes('x'), undefined, { onProgress: 1 }), 'ERR_OFFLOOP_INVALID', /onProgress.*number/],
    [run('noop', bytes('x'), { panic: true }), 'ERR_OFFLOOP_PANIC', /panic/],
    [() => pool.runMany('noop', 'abc'), 'ERR_OFFLOOP_INVALID', /not an array.*string/],
    [() => pool.runMany('noop', [bytes('a'), 1]), 'ERR_OFFLOOP_INVALID', /got=number/],
    [() => pool.runMany('nope', []), 'ERR_OFFLOOP_NOT_FOUND', /op=nope/],
    [() => pool.runMany('noop', [], { sleep: 1 }), 'ERR_OFFLOOP_INVALID', /sleep/],
    [() => pool.runMany('noop', [], undefined, { timeout: -1 }), 'ERR_OFFLOOP_INVALID', /timeout.*-1/],
    [() => pool.runMany('noop', [], undefined, { key: 7 }), 'ERR_OFFLOOP_INVALID', /key.*7/],
    [async () => new ThreadPool({ maxWorkers: 0 }), 'ERR_OFFLOOP_INVALID', /maxWorkers.*value=0, min=1/],
    [async () => new ThreadPool({ maxWorkers: -1 }), 'ERR_OFFLOOP_INVALID', /maxWorkers.*-1/],
    [async () => new ThreadPool({ maxWorkers: 1.5 }), 'ERR_OFFLOOP_INVALID', /maxWorkers.*1.5/],
    [async () => new ThreadPool({ maxWorkers: 1e12 }), 'ERR_OFFLOOP_INVALID', /maxWorkers.*1000000000000/],
    [async () => new ThreadPool({ maxQueue: 0 }), 'ERR_OFFLOOP_INVALID', /maxQueue.*value=0/],
    [async () => new ThreadPool({ nice: 99 }), 'ERR_OFFLOOP_INVALID', /nice.*99/],
    [async () => new ThreadPool({ name: 7 }), 'ERR_OFFLOOP_INVALID', /name.*7/],
    [async () => new ThreadPool({ onFull: 'overwrite' }), 'ERR_OFFLOOP_INVALID', /onFull.*overwrite/],
    [async () => new ThreadPool({ workers: 2 }), 'ERR_OFFLOOP_INVALID', /unknown option.*workers/],
    [
      async () => new ThreadPool({ maxWorker: 2 }),
      'ERR_OFFLOOP_INVALID',
      /unknown option \(option=maxWorker, did_you_mean=maxWorkers, known=/,
    ],
    [async () => new ThreadPool([]), 'ERR_OFFLOOP_INVALID', /options.*Array/],
    [run('noop', bytes('x'), undefined, []), 'ERR_OFFLOOP_INVALID', /options.*Array/],
    [run('noop', bytes('x'), []), 'ERR_OFFLOOP_INVALID', /params.*Array/],
    [() => pool.close({ grace: '1' }), 'ERR_OFFLOOP_INVALID', /grace.*1/],
    [async () => new ThreadPool(null), 'ERR_OFFLOOP_INVALID', /options.*null/],
    [async () => pool.options({ threads: 2 }), 'ERR_OFFLOOP_INVALID', /unknown option.*threads/],
    [async () => pool.resize({ maxWorkers: 0 }), 'ERR_OFFLOOP_INVALID', /maxWorkers/],
    [async () => pool.resize({ workers: 1 }), 'ERR_OFFLOOP_INVALID', /unknown option.*workers/],
    [async () => pool.load(7), 'ERR_OFFLOOP_INVALID', /plugin path.*number/],
    [() => pool.close({ grace: -1 }), 'ERR_OFFLOOP_INVALID', /grace.*-1/],
    [async () => metrics('xml'), 'ERR_OFFLOOP_INVALID', /xml/],
    [() => defaultPool().close(), 'ERR_OFFLOOP_INVALID', /default pool/],
  ]
  for (const [call, code, message] of cases) {
    const error = await rejection(call())
    assert.ok(error instanceof OffloopError, `${error.stack}`)
    assert.equal(error.code, code, error.message)
    assert.match(error.message, message)
    assert.equal(typeof error.status, 'number')
    assert.ok(['never', 'now', 'later', 'maybe'].includes(error.retry))
    assert.equal(error.name, 'OffloopError')
  }
  assert.equal(twice.byteLength, 4, 'a refused call leaves its buffers alone')
  assert.deepEqual(await pool.run('noop', bytes('still works')), new Uint8Array(bytes('still works')))
})

test('an aborted signal rejects with AbortError and the reason, before, while queued and while running', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const reason = new Error('no longer wanted')
  const check = (error) => {
    assert.equal(error.name, 'AbortError')
    assert.equal(error.code, 'ERR_OFFLOOP_CANCELLED')
    assert.equal(error.cause, reason)
    assert.ok(error instanceof OffloopError)
  }
  check(await rejection(pool.run('noop', bytes('x'), undefined, { signal: AbortSignal.abort(reason) })))

  const running = new AbortController()
  const task = pool.run('noop', bytes('x'), { sleepMs: 600_000 }, { signal: running.signal })
  await until(() => pool.stats.running === 1)
  const queued = new AbortController()
  const waiting = pool.run('noop', bytes('x'), undefined, { signal: queued.signal })
  queued.abort(reason)
  check(await rejection(waiting))
  running.abort(reason)
  check(await rejection(task))
  assert.deepEqual(await pool.run('noop', bytes('x')), new Uint8Array(bytes('x')))
  assert.equal(pool.stats.cancelled, 2)
})

test('a signal that comes too late changes nothing, and its listener is gone', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const abort = new AbortController()
  let listeners = 0
  const { signal } = abort
  const { addEventListener, removeEventListener } = signal
  signal.addEventListener = function (...args) {
    listeners++
    return addEventListener.apply(this, args)
  }
  signal.removeEventListener = function (...args) {
    listeners--
    return removeEventListener.apply(this, args)
  }
  const tasks = Array.from({ length: 100 }, () => pool.run('noop', bytes('x'), undefined, { signal }))
  assert.equal(listeners, 1, 'tasks of one signal share a listener')
  await Promise.all(tasks)
  assert.equal(listeners, 0)
  await rejection(pool.run('nope', bytes('x'), undefined, { signal }))
  assert.equal(listeners, 0)
  abort.abort()
  await turn()
})

test('timeout ends a running task and queueTimeout a waiting one', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const late = await rejection(pool.run('noop', bytes('x'), { sleepMs: 600_000 }, { timeout: 5 }))
  assert.equal(late.code, 'ERR_OFFLOOP_TIMEOUT')
  assert.equal(late.retry, 'maybe')
  const held = await hold(pool)
  assert.equal((await rejection(pool.run('noop', bytes('x'), undefined, { queueTimeout: 5 }))).code, 'ERR_OFFLOOP_TIMEOUT')
  await held.release()
  assert.equal(pool.stats.timedOut, 2)
  const view = pool.options({ timeout: 1, queueTimeout: 600_000 })
  await view.run('noop', bytes('x'), { sleepMs: 30 }, { timeout: Number.POSITIVE_INFINITY, queueTimeout: Number.POSITIVE_INFINITY })
})

test('a full queue rejects, or waits where the pool says so', async (t) => {
  const pool = openPool(t, { maxWorkers: 1, maxQueue: 2 })
  const held = await hold(pool)
  const queued = [pool.run('noop', bytes('1')), pool.run('noop', bytes('2'))]
  const kept = TransferBuffer.from(bytes('kept'))
  for (const call of [pool.run('noop', bytes('3')), pool.run('noop', bytes('3'), {}), pool.run('noop', kept)]) {
    const error = await rejection(call)
    assert.equal(error.code, 'ERR_OFFLOOP_FULL')
    assert.equal(error.retry, 'now')
    assert.match(error.message, /max_queue=2/)
  }
  const batch = await rejection(pool.runMany('noop', [kept, bytes('1'), bytes('2')]))
  assert.equal(batch.code, 'ERR_OFFLOOP_FULL')
  assert.match(batch.message, /longer than the pool's queue .*max_queue=2, batch=3/)
  assert.equal(Buffer.from(kept.bytes()).toString(), 'kept', 'a refused call gives the buffer back')
  await held.release()
  await Promise.all(queued)

  const patient = openPool(t, { maxWorkers: 1, maxQueue: 2, onFull: 'wait' })
  const other = await hold(patient)
  const all = Array.from({ length: 20 }, (_, i) => patient.run('noop', bytes(`${i}`)))
  const many = patient.runMany('noop', Array(20).fill(bytes('x')))
  await other.release()
  assert.deepEqual(
    (await Promise.all(all)).map((r) => Buffer.from(r).toString()),
    all.map((_, i) => `${i}`),
  )
  assert.equal((await many).length, 20, 'a batch that is longer than the queue too')
})

test('higher priority goes first, equal priority in order', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const held = await hold(pool)
  const order = []
  const tasks = [
    ['low', -5],
    ['a', 0],
    ['b', 0],
    ['high', 100],
  ].map(([name, priority]) => pool.run('noop', bytes(name), undefined, { priority }).then(() => order.push(name)))
  await held.release()
  await Promise.all(tasks)
  assert.deepEqual(order, ['high', 'a', 'b', 'low'])
})

test('tasks with one key run in order, also when a large input is still being copied', async (t) => {
  const pool = openPool(t, { maxWorkers: 4 })
  const order = []
  const small = (i) => pool.run('noop', bytes(`${i}`), { sleepMs: i % 3 }, { key: 'k' }).then(() => order.push(i))
  const large = (i) => pool.run('noop', new Uint8Array(3 << 20), undefined, { key: 'k' }).then(() => order.push(i))
  const many = (i) => pool.runMany('noop', [bytes('a'), bytes('b')], undefined, { key: 'k' }).then(() => order.push(i))
  const tasks = []
  for (let i = 0; i < 24; i++) tasks.push(i % 8 === 0 ? large(i) : i % 8 === 1 ? many(i) : small(i))
  await Promise.all(tasks)
  assert.deepEqual(
    order,
    Array.from({ length: 24 }, (_, i) => i),
  )
})

test('options() is a view with other defaults', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const quick = pool.options({ timeout: 5 })
  assert.ok(quick instanceof ThreadPool)
  class Named extends ThreadPool {
    hello() {
      return 'hello'
    }
  }
  const named = new Named({ maxWorkers: 1 })
  t.after(() => named.close())
  assert.equal(named.options({ timeout: 600_000 }).hello(), 'hello', 'a view is of its pool’s class')
  assert.equal((await rejection(quick.run('noop', bytes('x'), { sleepMs: 600_000 }))).code, 'ERR_OFFLOOP_TIMEOUT')
  assert.equal(pool.stats.timedOut, 1)
  assert.equal(quick.stats.timedOut, 1)
  await quick.run('noop', bytes('x'), undefined, { timeout: 600_000 })
  const born = openPool(t, { maxWorkers: 1, timeout: 5 })
  assert.equal((await rejection(born.run('noop', bytes('x'), { sleepMs: 600_000 }))).code, 'ERR_OFFLOOP_TIMEOUT')
})

test('a closed pool rejects with Closed; close drains, and cancels after the grace', async () => {
  const pool = new ThreadPool({ maxWorkers: 1 })
  const held = await hold(pool)
  const queued = pool.run('noop', bytes('drained'))
  const closing = pool.close()
  assert.equal(pool.close(), closing)
  for (const call of [
    pool.run('noop', bytes('x')),
    pool.run('noop', bytes('x'), {}),
    pool.runMany('noop', [bytes('x')]),
    pool.options({}).run('noop'),
  ]) {
    assert.equal((await rejection(call)).code, 'ERR_OFFLOOP_CLOSED')
  }
  await held.release()
  assert.equal(Buffer.from(await queued).toString(), 'drained')
  await closing

  const hasty = new ThreadPool({ maxWorkers: 1 })
  const stuck = hasty.run('noop', bytes('x'), { sleepMs: 600_000 })
  const waiting = hasty.run('noop', bytes('x'))
  const outcomes = Promise.allSettled([stuck, waiting])
  await hasty.close({ grace: 1 })
  for (const { status, reason } of await outcomes) {
    assert.equal(status, 'rejected')
    assert.ok(['ERR_OFFLOOP_CANCELLED', 'ERR_OFFLOOP_CLOSED'].includes(reason.code), reason.code)
  }
  await new ThreadPool().close()
})

test('close lets tasks run whose input is still being copied, and refuses new ones meanwhile', async () => {
  const large = () => new Uint8Array(8 << 20)
  const pool = new ThreadPool({ maxWorkers: 1 })
  const tasks = [pool.run('noop', large()), pool.runMany('noop', [large(), bytes('x')])]
  const abort = new AbortController()
  const dropped = rejection(pool.run('noop', large(), undefined, { signal: abort.signal }))
  const keyed = [pool.run('noop', large(), undefined, { key: 'k' }), pool.run('noop', bytes('x'), undefined, { key: 'k' })]
  const closing = pool.close()
  assert.equal(pool.close(), closing)
  for (const call of [pool.run('noop', bytes('x')), pool.run('noop', large()), pool.options({ priority: 1 }).run('noop')]) {
    const error = await rejection(call)
    assert.equal(error.code, 'ERR_OFFLOOP_CLOSED')
    assert.match(error.message, /the pool is closed/)
  }
  abort.abort()
  assert.equal((await dropped).name, 'AbortError')
  await closing
  const [one, [many]] = await Promise.all(tasks)
  assert.deepEqual([one.length, many.length, (await Promise.all(keyed)).length], [8 << 20, 8 << 20, 2])
  assert.equal(pool.stats.submitted, 5)

  const disposed = new ThreadPool({ maxWorkers: 1 })
  const task = disposed.run('noop', large())
  await disposed[Symbol.asyncDispose]()
  assert.equal((await task).length, 8 << 20)

  // The grace counts from the call: copies that do not end in it are given up.
  const hasty = new ThreadPool({ maxWorkers: 1 })
  const lost = Array.from({ length: 64 }, () => rejection(hasty.run('noop', large(), { sleepMs: 600_000 })))
  await hasty.close({ grace: 1 })
  for (const error of await Promise.all(lost)) assert.ok(['ERR_OFFLOOP_CLOSED', 'ERR_OFFLOOP_CANCELLED'].includes(error.code), error.code)
  assert.ok(hasty.stats.submitted < 64)
})

test('a signal whose methods throw fails its own task only', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const trap = new TypeError('on purpose')
  const throwing = (nth) => ({
    aborted: false,
    calls: 0,
    addEventListener() {
      if (++this.calls === nth) throw trap
    },
    removeEventListener() {},
  })
  for (const [nth, length] of [
    [1, 8],
    [1, 4 << 20],
    [2, 4 << 20],
  ]) {
    const call = pool.run('noop', new Uint8Array(length), undefined, { signal: throwing(nth) })
    assert.equal(await rejection(call), trap)
    assert.equal((await pool.run('noop', new Uint8Array(4 << 20))).length, 4 << 20)
  }
  const deaf = { aborted: false, addEventListener() {} }
  assert.equal((await rejection(pool.run('noop', bytes('x'), undefined, { signal: deaf }))).code, 'ERR_OFFLOOP_INVALID')
})

test('a pool is an async disposable', async () => {
  const pool = new ThreadPool({ maxWorkers: 1 })
  const task = pool.run('noop', bytes('x'))
  await pool[Symbol.asyncDispose]()
  assert.equal(Buffer.from(await task).toString(), 'x')
  assert.equal((await rejection(pool.run('noop', bytes('x')))).code, 'ERR_OFFLOOP_CLOSED')
})

test('stats count outcomes and hold histograms in milliseconds', async (t) => {
  const pool = openPool(t, { maxWorkers: 2, name: 'counted' })
  await pool.runMany('noop', Array(10).fill(bytes('x')))
  await rejection(pool.run('noop', bytes('x'), { panic: true }))
  await pool.run('noop', bytes('x'), { sleepMs: 20 })
  // A promise may settle a moment before its worker has counted.
  await until(() => pool.stats.run.count === 12 && pool.stats.completed + pool.stats.failed === 12)
  const { stats } = pool
  assert.equal(stats.submitted, 12)
  assert.equal(stats.completed, 11)
  assert.equal(stats.failed, 1)
  assert.equal(stats.run.count, 12)
  assert.ok(stats.run.max >= 19 && stats.run.max < 600_000, `${stats.run.max}`)
  assert.ok(stats.utilization > 0 && stats.utilization <= 1)
  assert.match(metrics(), /counted/)
  assert.ok(JSON.parse(metrics('json')))
})

test('resize lets more workers start', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const first = await hold(pool)
  pool.resize({ maxWorkers: 2 })
  const second = await hold(pool)
  assert.equal(pool.stats.running, 2)
  await Promise.all([first.release(), second.release()])
})

test('ops is one typed wrapper per op, on the default pool', async () => {
  assert.equal(Buffer.from(await ops.noop(bytes('x'))).toString(), 'x')
  assert.equal(defaultPool(), defaultPool())
  const before = defaultPool().stats.submitted
  await ops.noop(bytes('x'), { sleepMs: 1 }, { priority: 3 })
  assert.ok(defaultPool().stats.submitted > before)
})

test('large inputs are copied in slices while the loop turns', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const input = new Uint8Array(9 << 20)
  for (let i = 0; i < input.length; i += 4096) input[i] = i >> 12
  const task = pool.run('noop', input)
  assert.equal(pool.stats.submitted, 0, 'the copy is still under way when run returns')
  assert.deepEqual(await task, input)
})

test('one signal for many large inputs and waits on rings has one listener', async () => {
  const { code, out, err } = await script(`
    const { ThreadPool, RingBuffer } = await import(offloopUrl)
    const pool = new ThreadPool({ maxWorkers: 1 })
    const consumer = RingBuffer.create({ kind: 'spsc' }).consumer()
    const abort = new AbortController()
    const { signal } = abort
    let [listeners, most] = [0, 0]
    const { addEventListener, removeEventListener } = signal
    signal.addEventListener = (...args) => {
      most = Math.max(most, ++listeners)
      addEventListener.apply(signal, args)
    }
    signal.removeEventListener = (...args) => {
      listeners--
      removeEventListener.apply(signal, args)
    }
    const input = new Uint8Array(2 << 20)
    const copy = () => pool.run('crc32', input, undefined, { signal })
    await Promise.all(Array.from({ length: 20 }, copy))
    console.log(listeners)
    const all = Array.from({ length: 20 }, () => [copy(), consumer.pop({ signal }), pool.run('noop', undefined, { sleepMs: 600_000 }, { signal })])
    abort.abort()
    const names = new Set((await Promise.allSettled(all.flat())).map(({ reason }) => reason?.name))
    console.log(listeners, most, ...names)
    await pool.close()
  `)
  assert.deepEqual([code, out, err], [0, '0\n0 1 AbortError\n', ''])
})

test('ops reject where the default pool cannot be made', async () => {
  const { code, out, err } = await script(
    `
    const { ops } = await import(offloopUrl)
    const task = ops.sha256(new Uint8Array(1))
    const { code, message } = await task.catch((error) => error)
    console.log(code, message.includes('OFFLOOP_THREADS') && message.includes('value=abc'))
    console.log(await ops.noop().catch((error) => error.code))
  `,
    { env: { OFFLOOP_THREADS: 'abc' } },
  )
  assert.deepEqual([code, out, err], [0, 'ERR_OFFLOOP_INVALID true\nERR_OFFLOOP_INVALID\n', ''])
})

test('a name that no pool knows is not found and leaves no trace', async () => {
  const { code, out, err } = await script(`
    import { createRequire } from 'node:module'
    const { ThreadPool } = await import(offloopUrl)
    const native = createRequire(offloopUrl)('./native.cjs')
    const pool = new ThreadPool({ maxWorkers: 1 })
    const codes = new Set()
    for (let i = 0; i < 100; i++) await pool.run('nope' + i, new Uint8Array(1)).catch((error) => codes.add(error.code))
    for (let i = 0; i < 100; i++) await pool.runMany('nope' + i, []).catch((error) => codes.add(error.code))
    console.log(...codes)
    const handle = native.poolNew({ maxWorkers: 1 })
    console.log(...['crc32', 'sha256', 'crc32'].map((name) => native.poolIntern(handle, name)))
    await pool.close()
  `)
  assert.deepEqual([code, out, err], [0, 'ERR_OFFLOOP_NOT_FOUND\n0 1 0\n', ''])
})

test('errors name options as users of Node.js type them', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const x = bytes('x')
  const cases = [
    [async () => new ThreadPool({ maxWorkers: 0 }), 'option=maxWorkers, value=0'],
    [async () => new ThreadPool({ maxQueue: 0 }), 'option=maxQueue, value=0'],
    [async () => pool.resize({ minWorkers: 5, maxWorkers: 2 }), 'option=minWorkers, value=5'],
    [() => pool.run('gunzip', x, { maxOutput: -1 }), 'op=gunzip, option=maxOutput, value=-1'],
    [() => pool.run('unzstd', x, { maxOut_put: 1 }), 'op=unzstd, option=maxOut_put, known=maxOutput maxWindowLog dictionary'],
    // Not an option's name.
    [() => pool.run('csv.to_arrow', bytes('a_b\n1\n'), { columns: ['c_d'] }), 'option=columns, column=c_d, known=a_b'],
    [() => pool.run('csv.nope'), 'known=csv.to_arrow '],
  ]
  for (const [call, text] of cases) {
    const { message } = await rejection(call())
    assert.ok(message.includes(text), message)
  }
})

test('copies take turns: a short input waits neither for a long one of another pool nor for one of its own', async (t) => {
  const [pool, other] = [openPool(t, { maxWorkers: 1 }), openPool(t, { maxWorkers: 1 })]
  const settled = []
  const run = (on, name, size, options) => on.run('crc32', new Uint8Array(size << 20), undefined, options).then(() => settled.push(name))
  const tasks = [run(pool, 'long', 16), run(pool, 'short', 2), run(other, 'of another pool', 2)]
  await until(() => other.stats.submitted === 1)
  assert.ok(pool.stats.submitted < 2, 'the long input is still being copied')
  await Promise.all(tasks)
  assert.ok(settled.indexOf('short') < settled.indexOf('long'))

  // Those with one key keep their order.
  settled.length = 0
  await Promise.all(['a', 'b', 'c'].map((name, i) => run(pool, name, 6 - 2 * i, { key: 'k' })))
  assert.deepEqual(settled, ['a', 'b', 'c'])
})

test('queueTimeout counts from the call, also while the input is copied', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const buffer = TransferBuffer.from(bytes('back'))
  const error = await rejection(pool.runMany('noop', [buffer, new Uint8Array(64 << 20)], undefined, { queueTimeout: 1 }))
  assert.equal(error.code, 'ERR_OFFLOOP_TIMEOUT')
  assert.match(error.message, /^timeout: the task waited too long in the queue \(limit_ms=1, waited_ms=[1-9]/)
  assert.equal(Buffer.from(buffer.bytes()).toString(), 'back')
  assert.equal(pool.stats.submitted, 0)

  const held = await hold(pool)
  const { message } = await rejection(pool.run('noop', new Uint8Array(8 << 20), undefined, { queueTimeout: 100 }))
  const [, left] = /limit_ms=([0-9.]+)/.exec(message)
  assert.ok(pool.stats.submitted === 1 || Number(left) < 100, `what the copy took is gone (${message})`)
  await held.release()

  const invalid = rejection(pool.run('noop', new Uint8Array(8 << 20), undefined, { queueTimeout: -1 }))
  assert.match((await invalid).message, /option=queueTimeout, value=-1/)
  await pool.run('noop', new Uint8Array(2 << 20), undefined, { queueTimeout: 600_000 })
})

test('an input that is detached, shrunk or grown while it is copied fails its task', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  const moved = new Uint8Array(8 << 20)
  const detached = rejection(pool.run('noop', moved))
  structuredClone(moved, { transfer: [moved.buffer] })
  assert.equal((await detached).code, 'ERR_OFFLOOP_DETACHED')

  for (const size of [0, 1 << 20, 9 << 20]) {
    const resizable = new ArrayBuffer(8 << 20, { maxByteLength: 16 << 20 })
    const tracking = rejection(pool.run('noop', new Uint8Array(resizable)))
    resizable.resize(size)
    const error = await tracking
    assert.equal(error.code, 'ERR_OFFLOOP_INVALID')
    assert.match(error.message, /changed its length.*len_at_call=8388608/)
  }
  const fixed = new ArrayBuffer(8 << 20, { maxByteLength: 8 << 20 })
  const outOfBounds = rejection(pool.run('noop', new Uint8Array(fixed, 0, 8 << 20)))
  fixed.resize(1 << 20)
  assert.equal((await outOfBounds).code, 'ERR_OFFLOOP_INVALID')

  const aborted = new AbortController()
  const dropped = rejection(pool.run('noop', new Uint8Array(8 << 20), undefined, { signal: aborted.signal }))
  aborted.abort()
  assert.equal((await dropped).name, 'AbortError')
  const overwritten = new Uint8Array(8 << 20).fill(1)
  const mixed = pool.run('noop', overwritten)
  overwritten.fill(2)
  assert.ok((await mixed).every((byte) => byte === 1 || byte === 2))
  assert.equal(pool.stats.submitted, 1)
})

test('a buffer behind a copy is moved when run returns, and comes back when the call is refused', async (t) => {
  const pool = openPool(t, { maxWorkers: 2 })
  const big = new Uint8Array(4 << 20)
  const check = async (call, text) => {
    const buffer = TransferBuffer.from(bytes(text))
    const view = buffer.bytes()
    const result = call(buffer)
    assert.deepEqual([buffer.detached, buffer.byteLength, view.length], [true, 0, 0])
    assert.throws(() => buffer.bytes(), { code: 'ERR_OFFLOOP_DETACHED' })
    return result
  }
  const first = pool.run('noop', big, undefined, { key: 'k' })
  const behind = await check((buffer) => pool.run('noop', buffer, undefined, { key: 'k' }), 'keyed')
  assert.equal(Buffer.from(behind).toString(), 'keyed')
  await first
  const many = await check((buffer) => pool.runMany('noop', [big, buffer]), 'beside')
  assert.equal(Buffer.from(many[1]).toString(), 'beside')

  const abort = new AbortController()
  const kept = TransferBuffer.from(bytes('kept'))
  const dropped = rejection(pool.runMany('noop', [kept, big], undefined, { signal: abort.signal }))
  assert.equal(kept.detached, true)
  abort.abort()
  assert.equal((await dropped).name, 'AbortError')
  assert.equal(Buffer.from(kept.bytes()).toString(), 'kept')
  const again = TransferBuffer.from(bytes('again'))
  assert.equal((await rejection(pool.runMany('noop', [again, big, again]))).code, 'ERR_OFFLOOP_DETACHED')
  assert.equal(Buffer.from(again.bytes()).toString(), 'again')
})

test('a close that is refused closes nothing, also beside one that is not', async () => {
  const pool = new ThreadPool({ maxWorkers: 1 })
  const refused = rejection(pool.close({ grace: -1 }))
  const closing = pool.close()
  assert.equal((await refused).code, 'ERR_OFFLOOP_INVALID')
  await closing
  assert.equal((await rejection(pool.close({ grace: 'x' }))).code, 'ERR_OFFLOOP_INVALID')
  assert.equal((await rejection(pool.run('noop'))).code, 'ERR_OFFLOOP_CLOSED')
})

test('run and runMany reject instead of throwing, whatever the input is', async (t) => {
  const pool = openPool(t, { maxWorkers: 1 })
  await pool.run('noop')
  const own = Object.defineProperty(new Uint8Array(4), 'byteLength', {
    get() {
      throw new Error('on purpose')
    },
  })
  assert.equal((await pool.run('noop', own)).length, 4)
  const { proxy, revoke } = Proxy.revocable([], {})
  revoke()
  assert.ok((await rejection(pool.run('noop', proxy))) instanceof TypeError)
  assert.ok((await rejection(pool.runMany('noop', proxy))) instanceof TypeError)
})

test('a later close shortens the grace of an earlier one', async () => {
  for (const length of [8, 64 << 20]) {
    const pool = new ThreadPool({ maxWorkers: 1 })
    const stuck = rejection(pool.run('noop', bytes('x'), { sleepMs: 600_000 }))
    const other = rejection(pool.run('noop', new Uint8Array(length), { sleepMs: 600_000 }))
    const closing = pool.close()
    assert.equal(pool.close({ grace: 1 }), closing)
    await closing
    for (const error of [await stuck, await other]) {
      assert.ok(['ERR_OFFLOOP_CANCELLED', 'ERR_OFFLOOP_CLOSED'].includes(error.code), error.code)
    }
    await pool.close({ grace: 0 })
  }
})

test('defaults are checked as options of a call are, and a closed pool takes no empty runMany', async () => {
  const pool = new ThreadPool({ maxWorkers: 1 })
  for (const options of [{ priority: 1000 }, { timeout: -1 }, { key: 5 }, { queueTimeout: 'z' }, { retries: -1 }]) {
    assert.throws(() => new ThreadPool(options), { code: 'ERR_OFFLOOP_INVALID' })
    assert.throws(() => pool.options(options), { code: 'ERR_OFFLOOP_INVALID' })
  }
  await pool.options({ priority: 1, key: 'k', timeout: 600_000 }).run('noop')
  await pool.close()
  assert.equal((await rejection(pool.runMany('noop', []))).code, 'ERR_OFFLOOP_CLOSED')
  assert.equal((await rejection(pool.options({ priority: 1 }).run('noop'))).code, 'ERR_OFFLOOP_CLOSED')
})

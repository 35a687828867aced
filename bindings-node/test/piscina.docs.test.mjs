// `offloop/piscina` by the sections of piscina's documentation (its README and docs/api-reference): each test names its section. With
// PISCINA=…/piscina/dist/esm-wrapper.mjs the same tests run against piscina itself; those with `ours` show what is documented as different.

import assert from 'node:assert/strict'
import { AsyncLocalStorage } from 'node:async_hooks'
import { EventEmitter, once } from 'node:events'
import fs from 'node:fs'
import { createRequire } from 'node:module'
import os from 'node:os'
import { test } from 'node:test'
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { BroadcastChannel, MessageChannel, Worker } from 'node:worker_threads'
import { gate, rejection, script, until, workerFile } from './support.mjs'

const entry = process.env.PISCINA ?? new URL('../lib/piscina.mjs', import.meta.url).href
const peer = process.env.PISCINA !== undefined
const Piscina = (await import(entry)).default
const file = (name) => fileURLToPath(workerFile(`piscina/${name}`))
const functions = file('functions.mjs')

/** What decides how calls are run: by the core's queue, or by a queue of the class with calls placed on threads. */
const WAYS = { ahead: {}, placed: { workerHistogram: true } }

/** A pool that ends with its test. */
function open(t, options = {}) {
  const pool = new Piscina({ filename: functions, ...options })
  const alive = setInterval(() => {}, 1 << 30)
  t.after(async () => {
    clearInterval(alive)
    await pool.destroy()
  })
  return pool
}

/** A test for each of the ways. `other` is what node:test takes. */
function both(name, body, other = {}) {
  for (const [way, options] of Object.entries(WAYS)) test(`${name} (${way})`, other, (t) => body(t, options))
}
const ours = { skip: peer && 'documented as different' }

/** Calls of `hold` that run. */
async function held(t, pool, n = 1, options = {}) {
  const door = gate()
  t.after(() => door.release())
  const calls = Array.from({ length: n }, () => pool.run({ flags: door.flags }, { name: 'hold', ...options }))
  for (const call of calls) call.catch(() => {})
  await door.started(n)
  return { ...door, calls }
}

// ─── README: Example

test('Example: CommonJS by require, functions and async functions, ESM by a file URL', async (t) => {
  const require = createRequire(import.meta.url)
  const Required = peer ? Piscina : require('../lib/piscina.cjs')
  assert.equal(Required, Piscina)
  const cjs = new Required({ filename: file('several.cjs') })
  t.after(() => cjs.destroy())
  assert.equal(await cjs.run({ a: 4, b: 6 }), 10)
  const esm = open(t, { filename: workerFile('piscina/functions.mjs').href })
  assert.equal(await esm.run({ a: 4, b: 6 }), 10)
  assert.equal(await esm.run('x', { name: 'later' }), 'x')
})

test('Example: named and default exports of the module', async () => {
  const module = await import(entry)
  assert.equal(module.Piscina, module.default)
  for (const name of ['FixedQueue', 'ArrayTaskQueue', 'move', 'transferableSymbol', 'valueSymbol', 'queueOptionsSymbol', 'version']) {
    assert.ok(module[name] !== undefined, name)
    if (name !== 'move') assert.equal(module[name], Piscina[name], name)
  }
  assert.equal(Piscina.Piscina, Piscina)
  assert.equal(module.isWorkerThread, false)
})

both('Example: thousands of calls come back to their own promises', async (t, way) => {
  const pool = open(t, { maxThreads: 2, ...way })
  const calls = Array.from({ length: 5000 }, (_, i) => pool.run(i, { name: i % 10 === 0 ? 'later' : 'echo' }))
  assert.deepEqual(
    await Promise.all(calls),
    Array.from({ length: 5000 }, (_, i) => i),
  )
  assert.equal(pool.completed, 5000)
})

// ─── README: Exporting multiple worker functions

both('Exporting multiple worker functions: by name, of a function, an object, compiled and ES modules', async (t, way) => {
  const pool = open(t, { filename: file('several.cjs'), ...way })
  assert.deepEqual(await Promise.all(['add', 'multiply', 'default'].map((name) => pool.run({ a: 4, b: 6 }, { name }))), [10, 24, 10])
  assert.equal(await pool.run(4, { filename: file('object.cjs'), name: 'twice' }), 8)
  const compiled = file('compiled.cjs')
  assert.equal(await pool.run({ a: 4, b: 6 }, { filename: compiled }), 10)
  assert.equal(await pool.run({ a: 4, b: 6 }, { filename: compiled, name: 'minus' }), -2)
})

both('Exporting multiple worker functions: a name without a function rejects its calls', async (t, way) => {
  const pool = open(t, way)
  for (const options of [{ name: 'nope' }, { filename: file('object.cjs') }, { filename: file('object.cjs'), name: 'wrong' }]) {
    const error = await rejection(pool.run(1, options))
    assert.match(error.message, /^No handler function exported from .*(functions\.mjs|object\.cjs)$/)
  }
  assert.equal(await pool.run({ a: 1, b: 1 }), 2)
})

// ─── README: Cancelable Tasks

both('Cancelable Tasks: an AbortController rejects with an AbortError that has the reason as its cause', async (t, way) => {
  const pool = open(t, { maxThreads: 1, ...way })
  const door = await held(t, pool)
  const abort = new AbortController()
  const waiting = rejection(pool.run({ a: 4, b: 6 }, { signal: abort.signal }))
  const reason = new Error('why')
  abort.abort(reason)
  const error = await waiting
  assert.deepEqual([error.name, error.message, error.cause], ['AbortError', 'The task has been aborted', reason])
  assert.equal((await rejection(pool.run(1, { signal: abort.signal }))).name, 'AbortError')
  door.release()
  await door.calls[0]
})

both('Cancelable Tasks: an EventEmitter that emits abort', async (t, way) => {
  const pool = open(t, { maxThreads: 1, ...way })
  const door = await held(t, pool)
  const emitter = new EventEmitter()
  const waiting = rejection(pool.run({ a: 4, b: 6 }, { signal: emitter }))
  assert.equal(emitter.listenerCount('abort'), 1)
  emitter.emit('abort')
  assert.equal((await waiting).name, 'AbortError')
  door.release()
  await door.calls[0]
  const done = new EventEmitter()
  assert.equal(await pool.run({ a: 4, b: 6 }, { signal: done }), 10)
  assert.equal(done.listenerCount('abort'), 0)
})

both('Cancelable Tasks: the thread of a running task is stopped, whatever it does, and nobody else is harmed', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, ...way })
  const gone = once(pool, 'workerDestroy')
  const door = gate()
  const abort = new AbortController()
  const running = rejection(pool.run({ flags: door.flags }, { name: 'spin', signal: abort.signal }))
  await door.started()
  const waiting = pool.run({ a: 1, b: 2 })
  abort.abort()
  assert.equal((await running).name, 'AbortError')
  assert.equal(await waiting, 3)
  await gone
})

both('Cancelable Tasks: a task that is aborted while it waits never runs', async (t, way) => {
  const pool = open(t, { maxThreads: 1, ...way })
  const door = await held(t, pool)
  const flags = new SharedArrayBuffer(64)
  const abort = new AbortController()
  const waiting = rejection(pool.run({ flags, value: 1 }, { name: 'log', signal: abort.signal }))
  const after = pool.run({ flags, value: 2 }, { name: 'log' })
  abort.abort()
  await waiting
  door.release()
  await after
  assert.deepEqual([...new Int32Array(flags, 0, 3)], [1, 2, 0])
})

// ─── README: Delaying Availability of Workers

both('Delaying Availability of Workers: a promise of the function', async (t, way) => {
  const pool = open(t, { filename: file('promised.cjs'), maxThreads: 1, ...way })
  assert.deepEqual(await Promise.all([pool.run({ a: 1, b: 2 }), pool.run({ a: 3, b: 4 })]), [
    [3, 1],
    [7, 1],
  ])
  assert.deepEqual(await pool.run(5, { filename: file('promised.mjs') }), ['esm', 5])
})

// ─── README: Backpressure

const source = async (t, options) => {
  const pool = open(t, { maxThreads: 2, maxQueue: 'auto', ...options })
  assert.equal(pool.options.maxQueue, 4)
  await until(() => pool.idleThreads === options.minThreads)
  let resume = () => {}
  pool.on('drain', () => resume())
  const calls = []
  for (let i = 0; i < 300; i++) {
    calls.push(pool.run(i, { name: 'echo' }))
    if (pool.queueSize >= pool.options.maxQueue) await new Promise((resolve) => (resume = resolve))
  }
  assert.deepEqual(
    await Promise.all(calls),
    Array.from({ length: 300 }, (_, i) => i),
  )
}
both('Backpressure: a source that pauses at maxQueue and resumes at drain loses nothing', (t, way) => source(t, { minThreads: 2, ...way }))
both(
  'Backpressure: the same while a thread starts',
  async (t, way) => {
    const door = gate()
    await source(t, { filename: file('late.mjs'), minThreads: 1, workerData: door.flags, ...way })
    door.release()
  },
  ours,
)

both('Backpressure: beyond maxQueue a call is refused, and the next one after room is there is not', async (t, way) => {
  const pool = open(t, { maxThreads: 1, maxQueue: 2, ...way })
  const door = await held(t, pool)
  const waiting = [pool.run({ a: 1, b: 1 }), pool.run({ a: 2, b: 2 })]
  assert.equal(pool.queueSize, 2)
  assert.equal((await rejection(pool.run({ a: 3, b: 3 }))).message, 'Task queue is at limit')
  door.release()
  assert.deepEqual(await Promise.all(waiting), [2, 4])
  assert.equal(await pool.run({ a: 3, b: 3 }), 6)
})

// piscina itself rejects such a call and runs it nevertheless.
both(
  'Backpressure: without a queue a call needs a thread that is free',
  async (t, way) => {
    const pool = open(t, { minThreads: 1, maxThreads: 1, maxQueue: 0, ...way })
    const door = await held(t, pool)
    const flags = new SharedArrayBuffer(64)
    const error = await rejection(pool.run({ flags, value: 1 }, { name: 'log' }))
    assert.equal(error.message, 'No task queue available and all Workers are busy')
    door.release()
    await door.calls[0]
    await pool.run({ flags, value: 2 }, { name: 'log' })
    assert.deepEqual([...new Int32Array(flags, 0, 3)], [1, 2, 0])
  },
  ours,
)

// ─── README: Out of scope asynchronous code

both(
  'Out of scope asynchronous code: the loop of a worker goes on between calls',
  async (t, way) => {
    const pool = open(t, { maxThreads: 1, idleTimeout: Number.POSITIVE_INFINITY, ...way })
    const flags = new SharedArrayBuffer(8)
    pool.on('error', () => {})
    const ended = new Promise((resolve) => pool.once('workerDestroy', resolve))
    await pool.run({ flags, text: 'late' }, { name: 'throwsLater' })
    Atomics.store(new Int32Array(flags), 1, 1)
    await ended
  },
  ours,
)

// ─── README: Broadcast a message to all worker threads

test('Broadcast a message to all worker threads: by a BroadcastChannel', async (t) => {
  const pool = open(t, { minThreads: 2, maxThreads: 2, atomics: 'disabled' })
  let listening = 0
  pool.on('message', () => listening++)
  const calls = [1, 2].map(() => pool.run('offloop-test', { name: 'listens' }))
  await until(() => listening === 2)
  const channel = new BroadcastChannel('offloop-test')
  channel.postMessage('to all')
  assert.deepEqual(await Promise.all(calls), ['to all', 'to all'])
  channel.close()
})

// ─── Class: Piscina; Constructor

test('Class: Piscina is an EventEmitter with an async resource', (t) => {
  const pool = open(t)
  assert.ok(pool instanceof EventEmitter)
  assert.equal(typeof pool.asyncResource.asyncId(), 'number')
  class Mine extends Piscina {
    extra = 1
  }
  const mine = new Mine({ filename: functions })
  t.after(() => mine.destroy())
  assert.equal(mine.extra, 1)
  assert.ok(mine instanceof Piscina)
})

test('Constructor: an option of the wrong type is a TypeError that names it', () => {
  for (const [option, values] of Object.entries({
    filename: [12, {}],
    name: [12],
    minThreads: [-1, 'one'],
    maxThreads: [0, -1, 'one'],
    idleTimeout: [-1, 'one'],
    maxQueue: [-1, 'all'],
    concurrentTasksPerWorker: [0, -1, 'one'],
    atomics: ['never', 12],
    resourceLimits: [0, null],
    taskQueue: [null, {}, { size: 0, push() {} }],
    niceIncrement: ['one'],
    trackUnmanagedFds: [-1, 'string'],
    closeTimeout: [-1, 'one'],
    loadBalancer: [1, () => null],
    workerHistogram: [1, 'string'],
    stricterFIFO: [1],
  })) {
    for (const value of values) {
      assert.throws(
        () => new Piscina({ [option]: value }),
        (error) => error instanceof TypeError && error.message.startsWith(`options.${option} `),
        `${option}: ${value}`,
      )
    }
  }
  assert.throws(() => new Piscina({ minThreads: 3, maxThreads: 2 }), RangeError)
})

test('Constructor: defaults, and which limit gives way to the other', async (t) => {
  const cores = os.availableParallelism()
  const { options, minThreads, maxThreads } = open(t)
  assert.deepEqual([minThreads, maxThreads], [Math.max(Math.floor(cores / 2), 1), cores * 1.5])
  const { filename, name, idleTimeout, maxQueue, concurrentTasksPerWorker, closeTimeout, recordTiming, trackUnmanagedFds } = options
  assert.deepEqual(
    [filename, name, idleTimeout, maxQueue, concurrentTasksPerWorker, closeTimeout, recordTiming, trackUnmanagedFds],
    [functions, 'default', 0, Number.POSITIVE_INFINITY, 1, 30_000, true, true],
  )
  assert.equal(open(t, { maxThreads: 1 }).minThreads, 1)
  assert.equal(open(t, { minThreads: cores * 2 }).maxThreads, cores * 2)
})

both('Constructor: filename and name are the defaults of run', async (t, way) => {
  const pool = open(t, { filename: file('several.cjs'), name: 'multiply', ...way })
  assert.equal(await pool.run({ a: 4, b: 6 }), 24)
  assert.equal(await pool.run({ a: 4, b: 6 }, { name: 'add' }), 10)
})

both('Constructor: minThreads run without a call, more start with calls, and none beyond maxThreads', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 3, idleTimeout: Number.POSITIVE_INFINITY, ...way })
  await until(() => pool.threads.length === 1)
  const door = await held(t, pool, 3)
  const waiting = pool.run({ a: 1, b: 1 })
  assert.equal(pool.threads.length, 3)
  door.release()
  assert.equal(new Set(await Promise.all(door.calls)).size, 3)
  assert.equal(await waiting, 2)
  assert.equal(pool.threads.length, 3)
})

test('Constructor: minThreads are there again after an abort, and after a thread has died', async (t) => {
  const pool = open(t, { minThreads: 2, maxThreads: 2, ...WAYS.placed })
  await until(() => pool.idleThreads === 2)
  const door = gate()
  const abort = new AbortController()
  const aborted = rejection(pool.run({ flags: door.flags }, { name: 'spin', signal: abort.signal }))
  await door.started()
  abort.abort()
  await aborted
  await until(() => pool.idleThreads === 2)
  await rejection(pool.run(1, { name: 'exit' }))
  await until(() => pool.idleThreads === 2)
})

both('Constructor: idleTimeout ends threads beyond minThreads', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 3, idleTimeout: 5, ...way })
  const door = await held(t, pool, 3)
  door.release()
  await Promise.all(door.calls)
  await until(() => pool.threads.length === 1)
  assert.equal(await pool.run({ a: 1, b: 1 }), 2)
})

test('Constructor: concurrentTasksPerWorker tasks share a thread, and no more', async (t) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, concurrentTasksPerWorker: 2 })
  const door = gate()
  t.after(() => door.release())
  const calls = Array.from({ length: 3 }, () => pool.run({ flags: door.flags }, { name: 'holdSoftly' }))
  await door.started(2)
  assert.equal(pool.queueSize, 1)
  await sleep(20)
  assert.equal(new Int32Array(door.flags)[0], 2)
  door.release()
  assert.equal(new Set(await Promise.all(calls)).size, 1)
})

both('Constructor: atomics may have each of its values', async (t, way) => {
  for (const atomics of ['sync', 'async', 'disabled']) {
    const pool = open(t, { atomics, maxThreads: 1, ...way })
    assert.equal(await pool.run('x', { name: 'later' }), 'x')
  }
})

both('Constructor: resourceLimits, env, argv, execArgv and workerData reach the threads', async (t, way) => {
  const pool = open(t, {
    resourceLimits: { maxOldGenerationSizeMb: 64 },
    env: { ...process.env, OF_THE_TEST: 'yes' },
    argv: ['a', 2],
    execArgv: ['--no-warnings'],
    workerData: { answer: [42] },
    trackUnmanagedFds: false,
    ...way,
  })
  const about = await pool.run(null, { name: 'about' })
  assert.deepEqual([about.old, about.env, about.argv, about.execArgv], [64, 'yes', ['a', '2'], ['--no-warnings']])
  assert.deepEqual(about.workerData, { answer: [42] })
})

both('Constructor: trackUnmanagedFds has files closed that a thread leaves open', async (t, way) => {
  const { ino } = fs.statSync(functions)
  const isOpen = (fd) => {
    try {
      return fs.fstatSync(fd).ino === ino
    } catch {
      return false
    }
  }
  for (const trackUnmanagedFds of [true, false]) {
    const pool = open(t, { maxThreads: 1, trackUnmanagedFds, ...way })
    const fd = await pool.run(functions, { name: 'opens' })
    assert.ok(isOpen(fd))
    await pool.destroy()
    assert.equal(isOpen(fd), !trackUnmanagedFds)
    if (!trackUnmanagedFds) fs.closeSync(fd)
  }
})

both(
  'Constructor: niceIncrement lowers the priority of the threads, and of nothing else',
  async (t, way) => {
    const before = os.getPriority(0)
    const pool = open(t, { niceIncrement: 3, ...way })
    assert.equal((await pool.run(null, { name: 'about' })).nice, Math.min(before + 3, 19))
    assert.equal(os.getPriority(0), before)
  },
  // It needs an addon.
  { skip: peer || process.platform !== 'linux' },
)

both('Constructor: a thread that has used up its heap rejects its task, and the pool goes on', async (t, way) => {
  const pool = open(t, { maxThreads: 1, resourceLimits: { maxOldGenerationSizeMb: 16, maxYoungGenerationSizeMb: 4 }, ...way })
  const error = await rejection(pool.run(null, { name: 'fill' }))
  assert.equal(error.code, 'ERR_WORKER_OUT_OF_MEMORY')
  assert.equal(await pool.run({ a: 1, b: 1 }), 2)
})

both('Constructor: recordTiming false records nothing', async (t, way) => {
  const pool = open(t, { recordTiming: false, ...way })
  await pool.run({ a: 1, b: 1 })
  assert.equal(pool.histogram.runTime, undefined)
  assert.equal(pool.utilization, 0)
  assert.equal(pool.completed, 1)
})

// ─── Method: run

both('Method: run clones its task, and moves what is in transferList', async (t, way) => {
  const pool = open(t, way)
  const bytes = new Uint8Array(100)
  assert.equal(await pool.run(bytes, { name: 'length' }), 100)
  assert.equal(bytes.byteLength, 100)
  assert.equal(await pool.run(bytes, { name: 'length', transferList: [bytes.buffer] }), 100)
  assert.equal(bytes.byteLength, 0)
  const value = { date: new Date(0), map: new Map([[1, new Set(['x'])]]), big: 10n, list: [undefined, null, -0], same: null }
  value.same = value
  assert.deepEqual(await pool.run(value, { name: 'echo' }), structuredClone(value))
  assert.equal(await pool.run(undefined, { name: 'echo' }), undefined)
})

both('Method: run rejects with the error of the function, whole', async (t, way) => {
  const pool = open(t, way)
  const thrown = await rejection(pool.run('sync', { name: 'fails' }))
  assert.deepEqual([thrown instanceof RangeError, thrown.message, thrown.stack.includes('functions.mjs')], [true, 'sync', true])
  const rejected = await rejection(pool.run('async', { name: 'rejects' }))
  assert.deepEqual([rejected instanceof TypeError, rejected.message], [true, 'async'])
})

both('Method: run takes another filename, and needs one', async (t, way) => {
  const pool = open(t, { filename: null, ...way })
  const error = await rejection(pool.run(1))
  assert.match(error.message, /filename must be provided to run\(\) or in options object/)
  assert.equal(await pool.run({ a: 4, b: 6 }, { filename: file('several.cjs') }), 10)
  assert.equal(await pool.run({ a: 4, b: 6 }, { filename: workerFile('piscina/several.cjs').href, name: 'multiply' }), 24)
  // One that does not load fails its own call.
  assert.match((await rejection(pool.run(1, { filename: file('throws.mjs') }))).message, /this file does not load/)
  assert.match((await rejection(pool.run(1, { filename: '/nowhere/worker.js' }))).message, /\/nowhere\/worker\.js/)
  assert.equal(await pool.run({ a: 4, b: 6 }, { filename: functions }), 10)
})

both('Method: run rejects with a TypeError for options of the wrong type', async (t, way) => {
  const pool = open(t, way)
  for (const [options, text] of [
    [null, /^options must be an object/],
    ['x', /^options must be an object/],
    [{ transferList: 'x' }, /^transferList argument must be an Array/],
    [{ filename: 1 }, /^filename argument must be a string/],
    [{ name: 1 }, /^name argument must be a string/],
    [{ signal: 'x' }, /^signal argument must be an object/],
  ]) {
    const error = await rejection(pool.run(1, options))
    assert.ok(error instanceof TypeError)
    assert.match(error.message, text)
  }
  assert.equal(await pool.run({ a: 1, b: 1 }, { filename: null, name: null, signal: null }), 2)
})

both('Method: run rejects what cannot be cloned, both ways, and goes on', async (t, way) => {
  const pool = open(t, { maxThreads: 1, ...way })
  const codes = [
    await rejection(pool.run(() => {}, { name: 'echo' })),
    await rejection(pool.run({ deep: [() => {}] }, { name: 'echo', signal: new AbortController().signal })),
    await rejection(pool.run(null, { filename: file('returns.cjs') })),
  ].map(({ code }) => code)
  if (!peer) assert.deepEqual(codes, new Array(3).fill('ERR_OFFLOOP_UNSERIALIZABLE'))
  assert.equal(await pool.run({ a: 1, b: 1 }), 2)
})

both('Method: run rejects when the worker exits or dies of an uncaught exception; others are not harmed', async (t, way) => {
  const pool = open(t, { maxThreads: 1, ...way })
  const exit = rejection(pool.run(5, { name: 'exit' }))
  const after = pool.run({ a: 1, b: 2 })
  assert.match((await exit).message, /exited with code: 5/)
  assert.equal(await after, 3)
  const uncaught = await rejection(pool.run('nobody', { name: 'uncaught' }))
  assert.deepEqual([uncaught.name, uncaught.message], ['EvalError', 'nobody'])
  assert.equal(await pool.run({ a: 1, b: 2 }), 3)
})

test('Method: run with a signal shares its thread with nobody', async (t) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, concurrentTasksPerWorker: 2 })
  const door = gate()
  t.after(() => door.release())
  const abort = new AbortController()
  const alone = rejection(pool.run({ flags: door.flags }, { name: 'holdSoftly', signal: abort.signal }))
  await door.started()
  const other = pool.run({ flags: door.flags }, { name: 'holdSoftly' })
  await sleep(20)
  assert.equal(new Int32Array(door.flags)[0], 1)
  abort.abort()
  assert.equal((await alone).name, 'AbortError')
  await door.started(2)
  door.release()
  await other
})

both('Method: run keeps the async context of its caller', async (t, way) => {
  const pool = open(t, { maxThreads: 1, ...way })
  const storage = new AsyncLocalStorage()
  const seen = await Promise.all(
    [1, 2, 3].map((n) =>
      storage.run(n, async () => {
        await pool.run(n, { name: 'echo' })
        return storage.getStore()
      }),
    ),
  )
  assert.deepEqual(seen, [1, 2, 3])
})

// ─── Method: destroy

both('Method: destroy stops every thread and rejects what runs and what waits', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, ...way })
  const door = gate()
  const calls = [pool.run({ flags: door.flags }, { name: 'spin' }), pool.run({ a: 1, b: 2 })].map(rejection)
  await door.started()
  await pool.destroy()
  for (const error of await Promise.all(calls)) assert.equal(error.message, 'Terminating worker thread')
  assert.equal(pool.threads.length, 0)
  await pool.destroy()
})

// ─── Method: close

both('Method: close lets everything run, queued calls too, and ends the threads', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, ...way })
  const door = await held(t, pool)
  const waiting = pool.run({ a: 1, b: 2 })
  const closed = pool.close()
  const event = once(pool, 'close')
  door.release()
  await closed
  await event
  assert.equal(await waiting, 3)
  assert.equal(typeof (await door.calls[0]), 'number')
  assert.equal(pool.threads.length, 0)
})

both('Method: close with force rejects what has not started, and waits for what has', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, ...way })
  const door = await held(t, pool)
  const flags = new SharedArrayBuffer(64)
  const waiting = [1, 2, 3].map((value) => rejection(pool.run({ flags, value }, { name: 'log' })))
  const closed = pool.close({ force: true })
  for (const error of await Promise.all(waiting)) {
    assert.deepEqual([error.name, error.message], ['AbortError', 'The task has been aborted'])
  }
  door.release()
  await closed
  assert.equal(typeof (await door.calls[0]), 'number')
  assert.equal(new Int32Array(flags)[0], 0)
})

both('Method: close with force while another thread is free: it begins nothing of what was rejected', async (t, way) => {
  const pool = open(t, { minThreads: 2, maxThreads: 2, ...way })
  const one = await held(t, pool)
  const two = await held(t, pool)
  const flags = new SharedArrayBuffer(64)
  const waiting = [1, 2, 3].map((value) => rejection(pool.run({ flags, value }, { name: 'log' })))
  const closed = pool.close({ force: true })
  await Promise.all(waiting)
  two.release()
  await two.calls[0]
  // Time in which it would.
  await sleep(30)
  assert.equal(new Int32Array(flags)[0], 0)
  one.release()
  await closed
})

both('Method: close refuses new calls', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, ...way })
  const door = await held(t, pool)
  const closed = pool.close()
  const error = await rejection(pool.run({ a: 1, b: 1 }))
  assert.equal(error.name, 'AbortError')
  door.release()
  await closed
})

both('Method: close beyond closeTimeout says so and ends what is left', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, closeTimeout: 20, ...way })
  const door = gate()
  const running = rejection(pool.run({ flags: door.flags }, { name: 'spin' }))
  await door.started()
  const said = once(pool, 'error')
  await pool.close()
  assert.equal((await said)[0].message, 'Close operation timed out')
  assert.equal((await running).message, 'Terminating worker thread')
  assert.equal(pool.threads.length, 0)
})

both('Method: close checks its options', async (t, way) => {
  const pool = open(t, way)
  for (const options of [null, 1, { force: 1 }]) assert.ok((await rejection(pool.close(options))) instanceof TypeError)
  assert.equal(await pool.run({ a: 1, b: 1 }), 2)
})

both('Explicit Resource Management: the end of a block closes the pool', async (t, way) => {
  const pool = open(t, { maxThreads: 1, ...way })
  const call = pool.run({ a: 1, b: 2 })
  await pool[Symbol.asyncDispose]()
  assert.equal(await call, 3)
  assert.equal(pool.threads.length, 0)
})

// ─── Event: error

both('Event: error for an exception outside of a task', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, atomics: 'disabled', idleTimeout: Number.POSITIVE_INFINITY, ...way })
  const said = once(pool, 'error')
  const flags = new SharedArrayBuffer(8)
  await pool.run({ flags, text: 'between tasks' }, { name: 'throwsLater' })
  Atomics.store(new Int32Array(flags), 1, 1)
  const [error] = await said
  assert.deepEqual([error.name, error.message], ['EvalError', 'between tasks'])
  assert.equal(await pool.run({ a: 1, b: 2 }), 3)
})

both('Event: error when the file does not load and nobody has called, else the calls reject', async (t, way) => {
  const idle = new Piscina({ filename: file('throws.mjs'), minThreads: 1, maxThreads: 1, ...way })
  t.after(() => idle.destroy())
  const [error] = await once(idle, 'error')
  idle.on('error', () => {})
  assert.match(error.message, /this file does not load/)

  const pool = new Piscina({ filename: file('throws.mjs'), minThreads: 1, maxThreads: 1, ...way })
  t.after(() => pool.destroy())
  pool.on('error', () => {})
  const errors = await Promise.all(Array.from({ length: peer ? 1 : 5 }, () => rejection(pool.run(1))))
  for (const { name, message } of errors) assert.deepEqual([name, message], ['SyntaxError', 'this file does not load'])
})

// ─── Events: drain, needsDrain; Property: needsDrain

both('Events: needsDrain when every thread is busy, drain when one is free again', async (t, way) => {
  const pool = open(t, { minThreads: 2, maxThreads: 2, ...way })
  const events = []
  pool.on('needsDrain', () => events.push('needsDrain'))
  pool.on('drain', () => events.push('drain'))
  const one = await held(t, pool)
  await turn()
  assert.deepEqual([events, pool.needsDrain], [[], false])
  const two = await held(t, pool)
  await turn()
  assert.deepEqual([events[0], pool.needsDrain], ['needsDrain', true])
  two.release()
  await two.calls[0]
  await until(() => events.at(-1) === 'drain')
  assert.equal(pool.needsDrain, false)
  one.release()
  await one.calls[0]
})

// ─── Event: message

both('Event: message has what a worker posts', async (t, way) => {
  const pool = open(t, { maxThreads: 1, ...way })
  for (const message of [{ some: 'thing' }, null, 'text']) {
    const came = once(pool, 'message')
    await pool.run(message, { name: 'says' })
    assert.deepEqual((await came)[0], message)
  }
})

// ─── Events: workerCreate, workerDestroy; Interface: PiscinaWorker

both('Events: workerCreate and workerDestroy have the worker', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, ...way })
  const [made] = await once(pool, 'workerCreate')
  assert.deepEqual([typeof made.id, made.currentUsage, made.isRunningAbortableTask, made.destroyed], ['number', 0, false, false])
  for (const abortable of [false, true]) {
    const door = await held(t, pool, 1, abortable ? { signal: new AbortController().signal } : {})
    // That of piscina itself is infinite while its task may be aborted.
    if (!peer || !abortable) assert.equal(made.currentUsage, 1)
    assert.equal(made.isRunningAbortableTask, abortable)
    door.release()
    await door.calls[0]
  }
  const gone = once(pool, 'workerDestroy')
  await pool.destroy()
  const [destroyed] = await gone
  assert.deepEqual([destroyed.id, destroyed.destroyed], [made.id, true])
})

// ─── Properties

both('Property: completed and duration', async (t, way) => {
  const pool = open(t, { maxThreads: 1, ...way })
  assert.equal(pool.completed, 0)
  await Promise.allSettled([pool.run({ a: 1, b: 1 }), pool.run('x', { name: 'fails' })])
  assert.equal(pool.completed, 2)
  const { duration } = pool
  await sleep(5)
  assert.ok(pool.duration > duration && duration > 0)
})

both('Property: options has what was given', async (t, way) => {
  const pool = open(t, { name: 'echo', minThreads: 1, maxThreads: 2, maxQueue: 7, idleTimeout: 3, ...way })
  const { filename, name, minThreads, maxThreads, maxQueue, idleTimeout } = pool.options
  assert.deepEqual([filename, name, minThreads, maxThreads, maxQueue, idleTimeout], [functions, 'echo', 1, 2, 7, 3])
  assert.equal(open(t, { filename: workerFile('piscina/functions.mjs').href }).options.filename, functions)
})

both('Properties: threads, idleThreads and queueSize', async (t, way) => {
  const pool = open(t, { minThreads: 2, maxThreads: 2, ...way })
  await until(() => pool.idleThreads === 2)
  for (const thread of pool.threads) assert.ok(thread instanceof Worker)
  const door = await held(t, pool)
  assert.deepEqual([pool.idleThreads, pool.queueSize], [1, 0])
  const more = await held(t, pool)
  const waiting = pool.run({ a: 1, b: 1 })
  assert.deepEqual([pool.idleThreads, pool.queueSize], [0, 1])
  door.release()
  more.release()
  await waiting
  assert.equal(pool.queueSize, 0)
})

both('PiscinaHistogram: run and wait times in ms, each reset by itself', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, ...way })
  const door = await held(t, pool)
  const behind = pool.run({ a: 1, b: 1 })
  await sleep(60)
  door.release()
  await behind
  const { runTime, waitTime } = pool.histogram
  const names = ['average', 'max', 'mean', 'min', 'p0_001', 'p0_01', 'p0_1', 'p1', 'p10', 'p25', 'p2_5', 'p50', 'p75', 'p90']
  names.push('p97_5', 'p99', 'p99_9', 'p99_99', 'p99_999', 'stddev')
  for (const summary of [runTime, waitTime]) assert.deepEqual(Object.keys(summary).sort(), names)
  // The one ran for at least as long as the other waited; buckets are 0.1 % wide.
  assert.ok(runTime.max > 55 && runTime.p99 > 55 && runTime.mean > 25, JSON.stringify(runTime))
  assert.ok(waitTime.max > 55 && runTime.min < runTime.max, JSON.stringify(waitTime))
  const { utilization } = pool
  assert.ok(utilization > 0 && utilization <= 1, `${utilization}`)
  pool.histogram.resetRunTime()
  assert.equal(pool.histogram.runTime.max, 0)
  assert.ok(pool.histogram.waitTime.max > 55)
  pool.histogram.resetWaitTime()
  assert.equal(pool.histogram.waitTime.max, 0)
})

// ─── Static properties

both('Static properties: isWorkerThread and workerData here and in a worker, version', async (t, way) => {
  assert.equal(Piscina.isWorkerThread, false)
  assert.equal(Piscina.workerData, undefined)
  assert.match(Piscina.version, /^\d+\.\d+\.\d+/)
  const pool = open(t, { workerData: 'data', ...way })
  const about = await pool.run(null, { name: 'about' })
  assert.deepEqual([about.isWorkerThread, about.workerData], [true, 'data'])
})

// ─── Static method: move; Interface: Transferable

both('Static method: move of a view, a buffer and a Transferable; without it a result is copied', async (t, way) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, ...way })
  const bytes = new Uint8Array([1, 2, 3])
  for (const [how, want, left] of [
    ['copy', bytes, 3],
    ['view', bytes, 0],
    ['buffer', bytes.buffer, 0],
    ['whole', { bytes, by: 'surrogate' }, 0],
  ]) {
    assert.deepEqual(await pool.run(how, { name: 'moved' }), want, how)
    assert.equal(await pool.run(null, { name: 'left' }), left, how)
  }
})

both('Static method: move of a task, and of what a task has beside a transferList', async (t, way) => {
  const pool = open(t, way)
  const bytes = new Uint8Array(10)
  assert.equal(await pool.run(Piscina.move(bytes), { name: 'length' }), 10)
  assert.equal(bytes.byteLength, 0)
  const { port1, port2 } = new MessageChannel()
  const task = {
    bytes: new Uint8Array(7),
    get [Piscina.transferableSymbol]() {
      return this.bytes.buffer
    },
    get [Piscina.valueSymbol]() {
      return { byteLength: this.bytes.byteLength, bytes: this.bytes, port: port1 }
    },
  }
  assert.equal(await pool.run(Piscina.move(task), { name: 'length', transferList: [port1] }), 7)
  assert.equal(task.bytes.byteLength, 0)
  port2.close()
})

// ─── Custom Task Queues; Built-In Queues

test('Custom Task Queues: the queue decides the order, by options that a task brings', async (t) => {
  const tasks = []
  const byRank = (a, b) => a[Piscina.queueOptionsSymbol].rank - b[Piscina.queueOptionsSymbol].rank
  const seen = []
  const taskQueue = {
    get size() {
      return tasks.length
    },
    push(task) {
      seen.push(task[Piscina.queueOptionsSymbol])
      tasks.push(task)
      if (tasks.length > 1) tasks.sort(byRank)
    },
    shift: () => tasks.shift() ?? null,
    remove(task) {
      tasks.splice(tasks.indexOf(task), 1)
    },
  }
  const pool = open(t, { minThreads: 1, maxThreads: 1, taskQueue })
  const door = await held(t, pool)
  const flags = new SharedArrayBuffer(64)
  const run = (rank) => pool.run({ flags, value: rank, [Piscina.queueOptionsSymbol]: { rank } }, { name: 'log' })
  const calls = [5, 3, 9, 1, 7].map(run)
  const abort = new AbortController()
  const dropped = rejection(pool.run({ [Piscina.queueOptionsSymbol]: { rank: 2 } }, { signal: abort.signal }))
  assert.equal(pool.queueSize, 6)
  abort.abort()
  assert.equal((await dropped).name, 'AbortError')
  assert.equal(taskQueue.size, 5)
  door.release()
  await Promise.all(calls)
  assert.deepEqual([...new Int32Array(flags, 0, 6)], [5, 1, 3, 5, 7, 9])
  assert.ok(seen.some(({ rank }) => rank === 9))
  assert.equal(pool.options.taskQueue, taskQueue)
})

both('Built-In Queues: FixedQueue and ArrayTaskQueue are first in, first out', async (t, way) => {
  for (const Queue of [Piscina.FixedQueue, Piscina.ArrayTaskQueue]) {
    const queue = new Queue()
    const tasks = Array.from({ length: 5000 }, (_, i) => ({ i }))
    for (const task of tasks) queue.push(task)
    assert.equal(queue.size, 5000)
    queue.remove(tasks[3])
    // Piscina itself minds one that is not there.
    if (!peer) queue.remove({})
    assert.deepEqual([queue.shift(), queue.shift(), queue.shift(), queue.shift()], [tasks[0], tasks[1], tasks[2], tasks[4]])
    let last = null
    while (queue.size > 0) last = queue.shift()
    assert.equal(last, tasks[4999])
    assert.equal(queue.shift(), null)
    const pool = open(t, { minThreads: 1, maxThreads: 1, taskQueue: new Queue(), stricterFIFO: peer, ...way })
    const door = await held(t, pool)
    const flags = new SharedArrayBuffer(64)
    const calls = [1, 2, 3, 4].map((value) => pool.run({ flags, value }, { name: 'log' }))
    door.release()
    await Promise.all(calls)
    assert.deepEqual([...new Int32Array(flags, 0, 5)], [4, 1, 2, 3, 4])
  }
})

// ─── PiscinaLoadBalancer

test('PiscinaLoadBalancer: gets tasks and workers, and its choice runs them', async (t) => {
  const tasks = []
  const loadBalancer = (task, workers) => {
    tasks.push(task)
    return workers.find((worker) => worker.currentUsage === 0 && worker.id === Math.max(...workers.map(({ id }) => id))) ?? null
  }
  const pool = open(t, { minThreads: 2, maxThreads: 2, loadBalancer })
  await until(() => pool.idleThreads === 2)
  const first = await pool.run(null, { name: 'thread' })
  for (let i = 0; i < 5; i++) assert.equal(await pool.run(null, { name: 'thread' }), first)
  const [task] = tasks
  assert.deepEqual(
    [typeof task.taskId, task.filename, task.name, typeof task.created, task.isAbortable],
    ['number', functions, 'thread', 'number', false],
  )
})

test('PiscinaLoadBalancer: null has the call wait, or a worker start', async (t) => {
  let open_ = false
  const loadBalancer = (_task, workers) => (open_ ? (workers[0] ?? null) : null)
  const pool = open(t, { minThreads: 1, maxThreads: 2, loadBalancer, idleTimeout: Number.POSITIVE_INFINITY })
  const call = pool.run({ a: 1, b: 2 })
  await until(() => pool.threads.length === 2)
  open_ = true
  // A call that ends, or a thread that is ready, has the queue looked at.
  assert.equal(await call, 3)
})

test('PiscinaWorker: workerHistogram records each worker', async (t) => {
  const pool = open(t, { minThreads: 1, maxThreads: 1, workerHistogram: true })
  const [worker] = await once(pool, 'workerCreate')
  await pool.run('x', { name: 'later' })
  assert.ok(worker.histogram.max > 0)
})

// ─── Deprecated: runTask (piscina 4)

both(
  'Method: runTask of piscina 4, its arguments in their places or left out',
  async (t, way) => {
    const pool = open(t, way)
    const other = file('several.cjs')
    assert.equal(await pool.runTask({ a: 1, b: 2 }), 3)
    assert.equal(await pool.runTask({ a: 1, b: 2 }, other), 3)
    assert.equal(await pool.runTask({ a: 1, b: 2 }, [], other), 3)
    const bytes = new Uint8Array(3)
    await pool.runTask({ a: bytes, b: 2 }, [bytes.buffer])
    assert.equal(bytes.byteLength, 0)
    for (const args of [[], [[]], [other], [[], other]]) {
      const aborted = AbortSignal.abort()
      assert.equal((await rejection(pool.runTask({ a: 1, b: 2 }, ...args, aborted))).name, 'AbortError')
    }
  },
  ours,
)

both(
  'Properties: runTime and waitTime of piscina 4',
  async (t, way) => {
    const pool = open(t, way)
    await pool.run('x', { name: 'later' })
    assert.ok(pool.runTime.max >= 1 && pool.waitTime.max > 0)
    const silent = open(t, { recordTiming: false, ...way })
    assert.deepEqual([silent.runTime, silent.waitTime], [null, null])
  },
  ours,
)

// ─── What a process sees

both('an idle pool does not keep the process alive, a pending call does', async (_t, way) => {
  const { code, out, err } = await script(`
    const { default: Piscina } = await import(${JSON.stringify(entry)})
    const pool = new Piscina({ filename: ${JSON.stringify(functions)}, ...${JSON.stringify(way)} })
    process.on('exit', () => console.log('exits'))
    pool.run('done', { name: 'later' }).then(console.log)
  `)
  assert.deepEqual([code, out, err], [0, 'done\nexits\n', ''])
})

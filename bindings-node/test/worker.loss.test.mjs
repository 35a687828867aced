// Workers that end, or do not start: who is harmed, what is said of it, and that the pool goes on.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { WorkerPool } from '../lib/index.mjs'
import { entryUrl, gate, openWorkers, rejection, script, until, workerFile } from './support.mjs'

test('a worker that exits loses the task that it ran, with its exit code; the pool goes on', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const exited = once(pool, 'workerExit')
  const error = await rejection(pool.exports.exit(7))
  assert.deepEqual([error.code, error.exitCode, error.retry], ['ERR_OFFLOOP_WORKER_LOST', 7, 'maybe'])
  assert.equal((await exited)[0].exitCode, 7)
  assert.equal(await pool.run(1), 1)
  assert.equal(pool.stats.lost, 1)
})

test('what the worker had finished is delivered, what it had taken ahead runs elsewhere, in order', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  for (let round = 0; round < 10; round++) {
    // It knows that tasks are short, and takes many ahead.
    for (let i = 0; i < 5; i++) await Promise.all(Array.from({ length: 2000 }, (_, n) => pool.run(n)))
    const shared = new SharedArrayBuffer(4096)
    const calls = Array.from({ length: 200 }, (_, i) => (i === 100 + round ? pool.exports.exit(round) : pool.exports.log(shared, i)))
    const outcomes = await Promise.allSettled(calls)
    const failed = outcomes.flatMap(({ status }, i) => (status === 'rejected' ? [i] : []))
    assert.deepEqual(failed, [100 + round])
    assert.equal(outcomes[100 + round].reason.exitCode, round)
    const order = Array.from({ length: 200 }, (_, i) => i).filter((i) => i !== 100 + round)
    assert.deepEqual([...new Int32Array(shared)].slice(0, 200), [199, ...order])
  }
})

test('tasks of a key that wait for a lost worker are run by its successor, in order', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 3 })
  const shared = new SharedArrayBuffer(4096)
  const keyed = pool.options({ key: 'k' })
  const calls = Array.from({ length: 100 }, (_, i) => (i === 30 ? keyed.exports.exit(1) : keyed.exports.log(shared, i)))
  const outcomes = await Promise.allSettled(calls)
  assert.deepEqual(
    outcomes.flatMap(({ status }, i) => (status === 'rejected' ? [i] : [])),
    [30],
  )
  assert.deepEqual([...new Int32Array(shared)].slice(0, 100), [99, ...Array.from({ length: 100 }, (_, i) => i).filter((i) => i !== 30)])
})

test('an exception that nobody catches ends the worker: workerError, and the text in the error of its task', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1 })
  const told = once(pool, 'workerError')
  const error = await rejection(pool.exports.uncaught())
  assert.equal(error.code, 'ERR_OFFLOOP_WORKER_LOST')
  assert.match(error.message, /exit_code=1, error=RangeError: nobody catches this/)
  const [thrown] = await told
  assert.ok(thrown instanceof RangeError)
  assert.equal(await pool.run(1), 1)
})

test('a worker that runs out of its heap is lost, and says so', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, resourceLimits: { maxOldGenerationSizeMb: 16 } })
  const error = await rejection(pool.exports.fill())
  assert.equal(error.code, 'ERR_OFFLOOP_WORKER_LOST')
  assert.match(error.message, /ran out of memory/)
  assert.equal(error.oom, true)
  assert.equal(await pool.run(1), 1)
})

test('a file that throws at load: what waits is rejected with its text and the error as cause; no start follows another at once', async (t) => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'offloop-'))
  t.after(() => fs.rmSync(folder, { recursive: true }))
  const [starts, unless] = ['starts', 'unless'].map((name) => path.join(folder, name))
  const pool = openWorkers(t, 'throws.mjs', { maxWorkers: 2, workerData: { starts, unless } })
  const began = performance.now()
  const degraded = once(pool, 'degraded')
  const errors = await Promise.all(Array.from({ length: 20 }, () => rejection(pool.run(1))))
  for (const error of errors) {
    assert.deepEqual([error.code, error.retry], ['ERR_OFFLOOP_START_FAILED', 'later'])
    assert.match(error.message, /the worker did not start \(error=RangeError: this file is broken/)
    assert.ok(error.cause instanceof RangeError)
  }
  let tries = 0
  let last = false
  degraded.then(() => {
    last = true
  })
  while (!last) {
    await rejection(pool.run(1))
    tries++
  }
  const made = fs.readFileSync(starts, 'utf8').length
  const took = performance.now() - began
  // Pauses double from 100 ms: so many starts take at least so long, two at a time.
  assert.ok(made >= 5 && made <= 4 + 2 * Math.log2(1 + took / 100), `${made} starts in ${took} ms, ${tries} tries`)
  // It recovers by itself.
  fs.writeFileSync(unless, '')
  for (;;) {
    const [outcome] = await Promise.allSettled([pool.run(1)])
    if (outcome.status === 'fulfilled') {
      assert.equal(outcome.value, 'started')
      break
    }
  }
})

test('a file that exits, has a syntax error or is never ready fails its tasks, each with its reason', async (t) => {
  for (const [file, text, options] of [
    ['exits.mjs', /error=exit code 3/, {}],
    ['data:text/javascript,export%20default%20(', /error=SyntaxError/, {}],
    ['never.mjs', /not ready after 50 ms/, { readyTimeout: 50 }],
  ]) {
    const pool = openWorkers(t, file, { maxWorkers: 1, ...options })
    const error = await rejection(pool.run(1))
    assert.equal(error.code, 'ERR_OFFLOOP_START_FAILED')
    assert.match(error.message, text)
  }
})

test('options that worker_threads refuses fail the tasks with its words', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 1, execArgv: ['--no-such-flag'] })
  const error = await rejection(pool.run(1))
  assert.equal(error.code, 'ERR_OFFLOOP_START_FAILED')
  assert.match(error.message, /no-such-flag/)
})

test('an idle worker that ends is replaced when work comes', async (t) => {
  const code = "export default () => { setTimeout(() => process.exit(4), 1); return 'x' }"
  const pool = openWorkers(t, `data:text/javascript,${encodeURIComponent(code)}`, { maxWorkers: 1 })
  for (let i = 0; i < 3; i++) {
    const exited = once(pool, 'workerExit')
    assert.equal(await pool.run(), 'x')
    assert.equal((await exited)[0].exitCode, 4)
  }
  assert.equal(pool.stats.lost, 0)
})

test('an idle pool lets the process exit, tasks keep it', async () => {
  const idle = await script(`
    const { WorkerPool } = await import(offloopUrl)
    const pool = new WorkerPool(${JSON.stringify(workerFile('tasks.mjs').href)}, { maxWorkers: 2, minWorkers: 2 })
    await Promise.all([pool.run(1), pool.run(2)])
    console.log('done')
  `)
  assert.deepEqual([idle.code, idle.out, idle.err], [0, 'done\n', ''])
  const pending = await script(`
    const { WorkerPool } = await import(offloopUrl)
    const pool = new WorkerPool(${JSON.stringify(workerFile('tasks.mjs').href)})
    pool.exports.later('settled', 50).then(console.log)
    pool.run(1, { priority: 1 }).then(console.log)
  `)
  assert.deepEqual([pending.code, pending.out.split('\n').sort().join(' '), pending.err], [0, ' 1 settled', ''])
  const closing = await script(`
    const { WorkerPool } = await import(offloopUrl)
    const pool = new WorkerPool(${JSON.stringify(workerFile('tasks.mjs').href)})
    pool.exports.later('settled', 20).then(console.log)
    pool.close().then(() => console.log('closed'))
  `)
  assert.deepEqual([closing.code, closing.out, closing.err], [0, 'settled\nclosed\n', ''])
})

test('process.exit with work in flight keeps its code', async () => {
  for (const name of ['spin', 'hold', 'later', 'identity', 'holdSoftly']) {
    const { code, signal, err } = await script(`
      const { WorkerPool } = await import(offloopUrl)
      const pool = new WorkerPool(${JSON.stringify(workerFile('tasks.mjs').href)}, { maxWorkers: 2, concurrency: 4 })
      await pool.run(1)
      for (let i = 0; i < 500; i++) {
        pool.run(new SharedArrayBuffer(8), { name: ${JSON.stringify(name)} })
        pool.run(i, { timeout: 60_000 })
      }
      setTimeout(() => process.exit(7), 20)
    `)
    assert.deepEqual([code, signal, err], [7, null, ''])
  }
  const thrown = await script(`
    const { WorkerPool } = await import(offloopUrl)
    const pool = new WorkerPool(${JSON.stringify(workerFile('throws.mjs').href)})
    pool.run(1)
  `)
  assert.equal(thrown.code, 1)
  assert.match(thrown.err, /ERR_OFFLOOP_START_FAILED/)
})

test('pools inside of workers, several in one process, and a thread that owns one may be ended', async (t) => {
  const code = `import { WorkerPool } from ${JSON.stringify(entryUrl)}
    const pool = new WorkerPool(${JSON.stringify(workerFile('tasks.mjs').href)}, { maxWorkers: 2 })
    export default async (n) => (await Promise.all(Array.from({ length: n }, (_, i) => pool.run(i)))).length
    export const stuck = (flags) => { pool.exports.spin(); return pool.exports.hold(flags) }`
  const url = `data:text/javascript,${encodeURIComponent(code)}`
  const pools = [1, 2].map(() => new WorkerPool(url, { maxWorkers: 2, cancelGrace: 1 }))
  t.after(() => Promise.all(pools.map((pool) => pool.close({ grace: 0 }))))
  assert.deepEqual(await Promise.all(pools.flatMap((pool) => [pool.run(100), pool.run(200)])), [100, 200, 100, 200])
  const door = gate()
  const stuck = rejection(pools[0].run(door.flags, { name: 'stuck', timeout: 1000 }))
  await door.started()
  assert.equal((await stuck).code, 'ERR_OFFLOOP_TIMEOUT')
  assert.equal(await pools[0].run(10), 10)
})

test('a worker_thread that owns a pool can be terminated at any moment', async () => {
  const code = `import { parentPort } from 'node:worker_threads'
    import { WorkerPool } from ${JSON.stringify(entryUrl)}
    const pool = new WorkerPool(${JSON.stringify(workerFile('tasks.mjs').href)}, { maxWorkers: 2 })
    for (let i = 0; i < 200; i++) pool.run(i).catch(() => {})
    await pool.run(1)
    pool.exports.spin().catch(() => {})
    const again = () => { pool.run(1).then(again, () => {}) }
    for (let i = 0; i < 100; i++) again()
    parentPort.postMessage('started')`
  for (let i = 0; i < 10; i++) {
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`))
    await once(worker, 'message')
    await worker.terminate()
  }
})

test('threads that own pools leave nothing behind when they end', async () => {
  const source = `import { WorkerPool } from ${JSON.stringify(entryUrl)}
    const pool = new WorkerPool(${JSON.stringify(workerFile('tasks.mjs').href)}, { maxWorkers: 2, name: 'left behind' })
    await Promise.all([pool.run(1), pool.run(2)])
    pool.exports.spin().catch(() => {})
    process.exit(0)`
  const { code, err } = await script(
    `
    import fs from 'node:fs'
    import { once } from 'node:events'
    import { Worker } from 'node:worker_threads'
    const { metrics } = await import(offloopUrl)
    const count = () => fs.readdirSync('/proc/self/task').length
    const cycle = () => once(new Worker(new URL(${JSON.stringify(`data:text/javascript,${encodeURIComponent(source)}`)})), 'exit')
    await cycle()
    const threads = count()
    for (let i = 0; i < 10; i++) await cycle()
    while (count() > threads + 1 || metrics().includes('left behind')) {
      globalThis.gc()
      await new Promise(setImmediate)
    }
  `,
    { args: ['--expose-gc'] },
  )
  assert.equal(code, 0, err)
})

test('100 pools that come and go leave threads and descriptors where they were', async () => {
  const { code, err } = await script(
    `
    import fs from 'node:fs'
    const { WorkerPool } = await import(offloopUrl)
    const count = (what) => fs.readdirSync('/proc/self/' + what).length
    const cycle = async (i) => {
      const pool = new WorkerPool(${JSON.stringify(workerFile('tasks.mjs').href)}, { maxWorkers: 1 })
      await Promise.all([pool.run(1), pool.run(new SharedArrayBuffer(8))])
      if (i % 3 === 0) await pool.exports.exit(0).catch(() => {})
      await pool.close()
    }
    for (let i = 0; i < 10; i++) await cycle(i)
    const [fds, threads] = [count('fd'), count('task')]
    for (let i = 0; i < 100; i++) await cycle(i)
    while (count('fd') > fds + 2 || count('task') > threads + 2) {
      globalThis.gc()
      await new Promise(setImmediate)
    }
  `,
    { args: ['--expose-gc'] },
  )
  assert.equal(code, 0, err)
})

test('a storm of exits: every call has its own outcome', async (t) => {
  const pool = openWorkers(t, 'tasks.mjs', { maxWorkers: 2, concurrency: 2 })
  let lost = 0
  const results = await Promise.allSettled(
    Array.from({ length: 4000 }, (_, i) =>
      i % 100 === 99 ? pool.exports.exit(i % 7) : i % 3 === 0 ? pool.exports.later(i, 0) : pool.run(i),
    ),
  )
  results.forEach(({ status, value, reason }, i) => {
    if (i % 100 === 99) {
      assert.deepEqual([reason.code, reason.exitCode], ['ERR_OFFLOOP_WORKER_LOST', i % 7])
      lost++
    } else if (status === 'fulfilled') assert.equal(value, i)
    else {
      // It ran beside the one that ended their thread.
      assert.equal(reason.code, 'ERR_OFFLOOP_WORKER_LOST')
      lost++
    }
  })
  assert.equal(pool.stats.lost, lost)
  await until(() => pool.stats.running === 0 && pool.stats.queued === 0)
})

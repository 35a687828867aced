// ProcessPool: calls, options of calls, workers that start and stop.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { ProcessPool } from '../lib/index.mjs'
import { directory, door, isAlive, openProcesses } from './processes.mjs'
import { entryUrl, openWorkers, rejection, script, until, workerFile } from './support.mjs'

const file = workerFile('process.mjs')

test('runs the default export, exports by name, and exports as methods, in other processes', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 2 })
  assert.equal(await pool.run(7), 7)
  assert.equal(await pool.run(), undefined)
  assert.equal(await pool.run(8, { name: 'later' }), 8)
  assert.equal(await pool.exports.add(1, 2), 3)
  assert.equal(await pool.exports.count(), 0)
  assert.equal(await pool.exports.count(1, undefined, 3), 3)
  assert.notEqual(await pool.exports.pid(), process.pid)
  assert.equal(pool.exports.add, pool.exports.add)
  assert.equal((await pool.exports) && pool.exports.then, undefined)
})

test('what every object and every function has is no export', async (t) => {
  for (const worker of [file, workerFile('tasks.cjs')]) {
    for (const pool of [openProcesses(t, worker, { maxWorkers: 1 }), openWorkers(t, path.basename(worker.pathname), { maxWorkers: 1 })]) {
      for (const name of ['__proto__', 'constructor', 'toString', 'hasOwnProperty', 'call', 'bind', 'valueOf']) {
        assert.equal((await rejection(pool.run(7, { name }))).code, 'ERR_OFFLOOP_NOT_FOUND', `${worker} ${name}`)
      }
      assert.equal(await pool.exports.add(1, 2), 3)
    }
  }
})

test('takes files as path, URL or { node }, ESM or CommonJS', async (t) => {
  for (const worker of [file, file.href, fileURLToPath(file), path.relative(process.cwd(), fileURLToPath(file)), { node: file }]) {
    const pool = openProcesses(t, worker, { maxWorkers: 1 })
    assert.equal(await pool.exports.add(1, 2), 3)
    assert.equal((await pool.exports.where()).file, fileURLToPath(file))
    await pool.close()
  }
  const cjs = openProcesses(t, workerFile('tasks.cjs'), { maxWorkers: 1 })
  assert.deepEqual([await cjs.run(1), await cjs.exports.add(1, 2), await cjs.exports.later(3)], [['cjs', 1], 3, 3])
})

test('thousands of calls at once come back to their own promises', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 2, concurrency: 8 })
  const calls = Array.from({ length: 20_000 }, (_, i) =>
    i % 3 === 0 ? pool.exports.later(i, 0) : i % 3 === 1 ? pool.run({ i }).then((value) => value.i) : pool.exports.add(i, 0),
  )
  for (const [i, value] of (await Promise.all(calls)).entries()) assert.equal(value, i)
  assert.equal(pool.stats.completed, 20_000)
})

test('an idle worker has a living event loop, and a saturated one as well', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const before = await pool.exports.tickCount()
  await sleep(50)
  const idle = await pool.exports.tickCount()
  assert.ok(idle >= before + 5, `${idle - before} ticks`)
  let live = true
  const load = Array.from({ length: 200 }, async () => {
    while (live) await pool.run(1)
  })
  await sleep(100)
  const after = await pool.exports.tickCount()
  live = false
  await Promise.all(load)
  assert.ok(after >= idle + 10, `${after - idle} ticks`)
})

test('runs as many async tasks at once as concurrency says, and no more', async (t) => {
  const one = openProcesses(t, file, { maxWorkers: 1 })
  assert.deepEqual(new Set(await Promise.all(Array.from({ length: 20 }, () => one.exports.overlap()))), new Set([1]))
  const eight = openProcesses(t, file, { maxWorkers: 1, concurrency: 8 })
  assert.equal(Math.max(...(await Promise.all(Array.from({ length: 64 }, () => eight.exports.overlap())))), 8)
})

test('init, teardown, context, workerData, argv, env and flags reach the worker', async (t) => {
  const ended = path.join(directory(t), 'ended')
  const context = { ended, when: new Date(5), bytes: new Uint8Array(8000) }
  const pool = openProcesses(t, file, {
    maxWorkers: 1,
    context,
    workerData: 'data',
    argv: ['a', 'b'],
    env: { ...process.env, OFFLOOP_TEST: 'env' },
    execArgv: ['--no-warnings'],
  })
  const [inInit, inTask, worker] = await pool.exports.seen()
  assert.deepEqual([inInit, inTask], [context, context])
  const pid = await pool.exports.pid()
  assert.deepEqual(worker, { threadId: 0, pid })
  const where = await pool.exports.where()
  assert.deepEqual([where.argv, where.env, where.flags, where.data], [['a', 'b'], 'env', ['--no-warnings'], ['data', 'data']])
  await pool.close()
  assert.equal(fs.readFileSync(ended, 'utf8'), `${pid}\n`)
  assert.equal(isAlive(pid), false)
})

test('tasks of one key run in one process, in order; a higher priority goes first', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 2 })
  await Promise.all([pool.exports.later(0, 20), pool.exports.later(0, 20)])
  const dir = directory(t)
  for (const key of ['a', 'b', 'c']) {
    const at = path.join(dir, key)
    const pids = await Promise.all(Array.from({ length: 40 }, (_, i) => pool.options({ key }).exports.log(at, i)))
    assert.equal(new Set(pids).size, 1)
    assert.equal(fs.readFileSync(at, 'utf8'), Array.from({ length: 40 }, (_, i) => `${i}\n`).join(''))
  }
  const one = openProcesses(t, file, { maxWorkers: 1 })
  const gate = door(t)
  const held = one.exports.hold(gate.at)
  await gate.began()
  const at = path.join(dir, 'order')
  const order = [0, 5, 0, -5, 5].map((priority, i) => one.options({ priority }).exports.log(at, i))
  gate.open()
  await Promise.all([held, ...order])
  assert.equal(fs.readFileSync(at, 'utf8'), '1\n4\n0\n2\n3\n')
})

test('a signal ends a waiting task at once, and tells one that runs', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1, cancelGrace: 60_000 })
  const pid = await pool.exports.pid()
  for (const name of ['untilAborted', 'lateUntilAborted', 'loopUntilAborted']) {
    const gate = door(t)
    const [first, second] = [new AbortController(), new AbortController()]
    const reason = new Error('why')
    const running = rejection(pool.run(gate.at, { name, signal: first.signal }))
    await gate.began()
    const waiting = rejection(pool.run(1, { signal: second.signal }))
    // The other way round, the waiting one might begin, and end, between the two.
    second.abort(reason)
    first.abort(reason)
    for (const error of [await running, await waiting]) {
      assert.deepEqual([error.name, error.code, error.cause], ['AbortError', 'ERR_OFFLOOP_CANCELLED', reason])
    }
    // The function heard of it, and its process goes on.
    assert.equal(await pool.exports.pid(), pid)
    assert.equal(fs.readFileSync(gate.at, 'utf8'), 'ERR_OFFLOOP_CANCELLED')
  }
  const late = await rejection(pool.run(1, { signal: AbortSignal.abort(new Error('before')) }))
  assert.equal(late.cause.message, 'before')
})

test('a timeout ends the process of a task that does not listen, and nothing else', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1, cancelGrace: 50 })
  const pid = await pool.exports.pid()
  const gate = door(t)
  const listens = await rejection(pool.run(gate.at, { name: 'untilAborted', timeout: 50 }))
  assert.equal(listens.code, 'ERR_OFFLOOP_TIMEOUT')
  assert.equal(await pool.exports.pid(), pid)
  assert.equal(fs.readFileSync(gate.at, 'utf8'), 'ERR_OFFLOOP_TIMEOUT')
  const spins = rejection(pool.run(0, { name: 'spin', timeout: 50 }))
  const behind = pool.exports.pid()
  assert.equal((await spins).code, 'ERR_OFFLOOP_TIMEOUT')
  assert.notEqual(await behind, pid)
})

test('a queue that is full refuses, or waits; queueTimeout ends who waits too long', async (t) => {
  const gate = door(t)
  const pool = openProcesses(t, file, { maxWorkers: 1, maxQueue: 1 })
  const held = pool.exports.hold(gate.at)
  await gate.began()
  const events = []
  pool.on('backpressure', () => events.push('backpressure')).on('drain', () => events.push('drain'))
  // Sent ahead, then queued, then refused.
  const calls = Array.from({ length: 200 }, (_, i) => pool.run(i).catch((error) => error.code))
  const late = await rejection(pool.options({ queueTimeout: 5 }).map([1], {}).next())
  assert.equal(late.code, 'ERR_OFFLOOP_TIMEOUT')
  gate.open()
  assert.equal(await held, 'held')
  assert.ok((await Promise.all(calls)).includes('ERR_OFFLOOP_FULL'))
  await until(() => events.includes('drain'))
  assert.equal(events[0], 'backpressure')
  const waits = openProcesses(t, file, { maxWorkers: 1, maxQueue: 1, onFull: 'wait' })
  assert.equal((await Promise.all(Array.from({ length: 100 }, (_, i) => waits.run(i)))).length, 100)
})

test('progress reaches onProgress; one that is too long is an error of the task', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const gate = door(t)
  const told = []
  const task = pool.run(gate.at, { name: 'steps', onProgress: (value) => told.push(value) })
  await until(() => told.length > 0)
  gate.open()
  assert.equal(await task, 'done')
  assert.deepEqual(told[0], { step: 1 })
  const error = await rejection(pool.exports.tellLong())
  assert.equal(error.code, 'ERR_OFFLOOP_TOO_LARGE')
})

test('runMany and map', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 2 })
  assert.deepEqual(await pool.runMany([3, 2, 1]), [3, 2, 1])
  const error = await rejection(pool.runMany([1, 2], { name: 'fail' }))
  assert.ok(error.name === 'Own' && [0, 1].includes(error.index))
  const all = []
  for await (const value of pool.map(Array(500).keys(), { concurrency: 32 })) all.push(value)
  assert.deepEqual(all, [...Array(500).keys()])
})

test('the same from a thread, whose end ends its processes', async (t) => {
  const code = `
    import { parentPort } from 'node:worker_threads'
    import { ProcessPool } from ${JSON.stringify(entryUrl)}
    const pool = new ProcessPool(${JSON.stringify(file.href)}, { maxWorkers: 1 })
    parentPort.postMessage(await pool.exports.pid())
    await pool.run(0, { name: 'spin' })`
  const thread = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`))
  t.after(() => thread.terminate())
  const [pid] = await once(thread, 'message')
  assert.ok(isAlive(pid))
  await thread.terminate()
  await until(() => !isAlive(pid))
})

test('an idle pool keeps no process alive, and its workers end with it', async () => {
  const { code, out, err } = await script(`
    const { ProcessPool } = await import(offloopUrl)
    const pool = new ProcessPool(${JSON.stringify(file.href)}, { maxWorkers: 1 })
    console.log(await pool.exports.pid())`)
  assert.deepEqual([code, err], [0, ''])
  const pid = Number(out)
  assert.ok(pid > 0)
  await until(() => !isAlive(pid))
})

test('what workers write goes to the output of this process, whether it has any or not', async () => {
  const code = (before) => `
    const { ProcessPool } = await import(offloopUrl)
    const fs = await import('node:fs')
    ${before}
    const pool = new ProcessPool(${JSON.stringify(file.href)}, { maxWorkers: 1 })
    const ends = []
    pool.on('workerExit', ({ exitCode }) => ends.push(exitCode))
    const files = await pool.call(async () => {
      console.log('out')
      console.error('err')
      const { readlinkSync } = await import('node:fs')
      return [0, 1, 2].map((n) => readlinkSync('/proc/self/fd/' + n).replace(/:.*/, ''))
    })
    await pool.close()
    process.exitCode = ends.join() === '0' && files.join() === process.env.EXPECTED ? 7 : 1`
  const open = await script(code(''), { env: { EXPECTED: '/dev/null,socket,socket' } })
  assert.deepEqual([open.code, open.out, open.err], [7, 'out\n', 'err\n'])
  const closed = await script(code('fs.closeSync(1)\nfs.closeSync(2)'), { env: { EXPECTED: '/dev/null,/dev/null,/dev/null' } })
  assert.deepEqual([closed.code, closed.out, closed.err], [7, '', ''])
})

test('close waits for what is queued and for the processes; calls after it are refused', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 2 })
  const pids = await Promise.all([pool.exports.pid(), pool.exports.later(1, 20)])
  const queued = Array.from({ length: 50 }, (_, i) => pool.exports.later(i, 1))
  const closed = pool.close()
  assert.deepEqual(await Promise.all(queued), [...Array(50).keys()])
  await closed
  assert.equal(isAlive(pids[0]), false)
  assert.equal((await rejection(pool.run(1))).code, 'ERR_OFFLOOP_CLOSED')
  // One that never had a task, and one that is closed twice.
  const unused = new ProcessPool(file)
  await Promise.all([unused.close(), unused.close()])
})

test('idle workers leave, and come back with work; resize and stats', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 2, idleTimeout: 30 })
  const left = once(pool, 'workerExit')
  const pid = await pool.exports.pid()
  const [exit] = await left
  assert.deepEqual(exit, { pid, exitCode: 0, signal: null })
  assert.equal(await pool.exports.add(1, 1), 2)
  pool.resize({ maxWorkers: 1 })
  assert.equal(await pool.exports.overlap(), 1)
  assert.ok(pool.stats.completed >= 3)
})

test('workers are replaced after so many tasks', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1, maxTasksPerWorker: 5 })
  const pids = []
  for (let i = 0; i < 30; i++) pids.push(await pool.exports.pid())
  assert.ok(new Set(pids).size >= 3, `${new Set(pids).size} processes`)
  assert.ok(pool.stats.recycled >= 2)
})

test('a process with too much memory is replaced, and what it runs goes on', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1, concurrency: 2, maxWorkerMemory: 200 << 20 })
  const pid = await pool.exports.hoard(1)
  const gate = door(t)
  const held = pool.exports.hold(gate.at)
  await gate.began()
  const ready = once(pool, 'workerReady')
  assert.equal(await pool.exports.hoard(300 << 20), pid)
  // Its successor.
  assert.notEqual((await ready)[0].pid, pid)
  gate.open()
  assert.equal(await held, 'held')
  await until(() => pool.stats.recycled === 1)
  assert.notEqual(await pool.exports.pid(), pid)
  assert.deepEqual([pool.stats.lost, pool.stats.failed], [0, 0])
})

test('options that are wrong are refused with their names', () => {
  const refused = (worker, options) => {
    try {
      new ProcessPool(worker, options)
    } catch (error) {
      return `${error.code} ${error.message}`
    }
    throw new Error('was taken')
  }
  for (const [options, text] of [
    [{ maxWorkers: 0 }, /option=maxWorkers, value=0, min=1/],
    [{ maxWorkerMemory: 0 }, /option=maxWorkerMemory, value=0, min=1/],
    [{ nope: 1 }, /unknown option \(option=nope/],
    [{ onFull: 'maybe' }, /option=onFull, value=maybe/],
    [{ concurrency: 0 }, /option=concurrency/],
    [{ maxWorkerMemory: 1.5 }, /option=maxWorkerMemory/],
    [{ readyTimeout: -1 }, /readyTimeout/],
    [{ context: () => {} }, /context or workerData cannot be cloned/],
    [{ env: 5 }, /option=env, want=object/],
    [{ argv: [5] }, /option=argv, want=array of text/],
    [{ timeout: -1 }, /option=timeout/],
  ]) {
    assert.match(refused(file, options), text)
  }
  assert.match(refused('/no/such/file.mjs'), /ERR_OFFLOOP_NOT_FOUND .*filename=\/no\/such\/file.mjs/)
  for (const worker of [null, {}, 5, { node: file, python: 'x' }, { ruby: 'x' }]) {
    assert.match(refused(worker), /neither a file nor one of \{ node \}, \{ python \}, \{ command \}/)
  }
  assert.match(refused({ command: [] }), /option=command/)
})

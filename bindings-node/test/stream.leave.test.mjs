// Streams that are left while their function has more to do: of a WorkerPool and of a ProcessPool.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { directory, openProcesses } from './processes.mjs'
import { openWorkers, rejection, script, until, workerFile } from './support.mjs'

/** Collects until `check()`. */
const collected = (check) =>
  until(() => {
    globalThis.gc()
    return check()
  })

const NAMES = ['stuckAfter', 'spinAfter', 'untilAborted']
const OVER = { done: true, value: undefined }

for (const [kind, open] of [
  ['WorkerPool', (t, options) => openWorkers(t, 'leave.mjs', { maxWorkers: 1, ...options })],
  ['ProcessPool', (t, options) => openProcesses(t, workerFile('leave.mjs'), { maxWorkers: 1, ...options })],
]) {
  /** A stream of which `n` values were taken; `began()`: its function goes on after the last of them. */
  const waiting = async (t, pool, name, n, options) => {
    const file = path.join(directory(t), 'stream')
    const stream = pool.stream({ n, file }, { name, ...options })
    for (let i = 0; i < n; i++) assert.deepEqual(await stream.next(), { done: false, value: i })
    fs.writeFileSync(`${file}.taken`, '')
    return { stream, file, began: () => until(() => fs.existsSync(`${file}.began`)) }
  }

  test(`${kind}: return ends a next that is pending, and the task; its worker is replaced after cancelGrace`, async (t) => {
    const pool = open(t, { cancelGrace: 1 })
    for (const name of NAMES.slice(0, 2)) {
      for (const n of [0, 3]) {
        const { stream, began } = await waiting(t, pool, name, n)
        const exited = once(pool, 'workerExit')
        const nexts = [stream.next(), stream.next()]
        await began()
        assert.deepEqual(await stream.return(), OVER)
        assert.deepEqual(await Promise.all(nexts), [OVER, OVER])
        assert.deepEqual(await stream.next(), OVER)
        await exited
        assert.equal(await pool.run(n), n)
      }
    }
    assert.deepEqual([pool.stats.cancelled, pool.stats.lost, pool.stats.running], [4, 0, 0])
  })

  test(`${kind}: a function of a stream that is left at a pending next hears of it, and its worker lives on`, async (t) => {
    const pool = open(t, { cancelGrace: 60_000 })
    let exits = 0
    pool.on('workerExit', () => exits++)
    for (const end of [
      (stream) => stream.return(),
      (stream) => rejection(stream.throw(new Error('mine'))).then((error) => assert.equal(error.message, 'mine')),
    ]) {
      const { stream, file, began } = await waiting(t, pool, 'untilAborted', 2)
      const next = stream.next()
      await began()
      await end(stream)
      assert.deepEqual(await next, OVER)
      // Behind it on the only worker.
      assert.equal(await pool.run(1), 1)
      assert.equal(fs.readFileSync(`${file}.ended`, 'utf8'), 'ERR_OFFLOOP_CANCELLED')
    }
    assert.equal(exits, 0)
  })

  test(`${kind}: a Readable of a stream is destroyed at once, and the pool closes`, async (t) => {
    const pool = open(t, { cancelGrace: 1 })
    for (const error of [undefined, new Error('mine')]) {
      const { stream, began } = await waiting(t, pool, 'stuckAfter', 0)
      const readable = Readable.from(stream)
      readable.on('data', () => {})
      readable.on('error', (seen) => assert.equal(seen, error))
      await began()
      readable.destroy(error)
      await new Promise((resolve) => readable.once('close', resolve))
    }
    // One whose task waits for a worker.
    const { stream, began } = await waiting(t, pool, 'stuckAfter', 0)
    const second = pool.stream({ n: 1 }, { name: 'stuckAfter' })
    const nexts = [stream.next(), second.next()]
    await began()
    await second.return()
    await stream.return()
    assert.deepEqual(await Promise.all(nexts), [OVER, OVER])
    await pool.close()
    assert.equal(pool.stats.cancelled, 4)
  })

  test(`${kind}: a generator that does not end by itself when its loop is left is cancelled after cancelGrace`, async (t) => {
    const pool = open(t, { cancelGrace: 5 })
    for (const name of NAMES) {
      const { stream, file, began } = await waiting(t, pool, name, 2)
      await began()
      const exited = name === 'untilAborted' ? undefined : once(pool, 'workerExit')
      assert.deepEqual(await stream.return('given'), { done: true, value: 'given' })
      await exited
      assert.equal(await pool.run(1), 1)
      if (name === 'untilAborted') assert.equal(fs.readFileSync(`${file}.ended`, 'utf8'), 'ERR_OFFLOOP_CANCELLED')
    }
    assert.deepEqual([pool.stats.cancelled, pool.stats.lost], [3, 0])
  })

  test(`${kind}: a signal that is aborted while a next is pending is told by it`, async (t) => {
    const pool = open(t, { cancelGrace: 1 })
    const abort = new AbortController()
    const { stream, began } = await waiting(t, pool, 'stuckAfter', 1, { signal: abort.signal })
    const next = rejection(stream.next())
    await began()
    abort.abort(new Error('enough'))
    const error = await next
    assert.deepEqual([error.name, error.cause.message], ['AbortError', 'enough'])
    assert.deepEqual(await stream.return(), OVER)
  })

  test(`${kind}: a stream that was dropped is left once it is collected; one that is held is not`, async (t) => {
    const pool = open(t, { cancelGrace: 60_000, concurrency: 4 })
    const file = path.join(directory(t), 'stream')
    const held = pool.stream({ file: `${file}.held` }, { name: 'endless', window: 2 })
    assert.equal((await held.next()).value, 0)
    for (const taken of [1, 5]) {
      const at = `${file}.${taken}`
      // In a function of its own, of which nothing stays.
      await (async () => {
        const stream = pool.stream({ file: at }, { name: 'endless', window: 2 })
        for (let i = 0; i < taken; i++) assert.equal((await stream.next()).value, i)
      })()
      await collected(() => fs.existsSync(`${at}.ended`) && pool.stats.running === 1)
    }
    for (let i = 1; i < 10; i++) assert.equal((await held.next()).value, i)
    await held.return()
    assert.deepEqual([fs.existsSync(`${file}.held.ended`), pool.stats.completed, pool.stats.cancelled], [true, 3, 0])
  })

  test(`${kind}: a dropped stream whose generator does not end is cancelled after cancelGrace`, async (t) => {
    const pool = open(t, { cancelGrace: 1 })
    const exited = once(pool, 'workerExit')
    await (async () => {
      const { began } = await waiting(t, pool, 'stuckAfter', 2)
      await began()
    })()
    await collected(() => pool.stats.cancelled === 1)
    await exited
    assert.equal(await pool.run(1), 1)
  })

  test(`${kind}: a stream that nobody has begun, or whose values ended, leaves nothing to a collector`, async (t) => {
    const pool = open(t)
    await (async () => {
      pool.stream({ n: 1 }, { name: 'endless' })
      const file = path.join(directory(t), 'stream')
      for await (const value of pool.stream({ file }, { name: 'endless' })) if (value === 3) break
    })()
    for (let i = 0; i < 5; i++) {
      globalThis.gc()
      await turn()
    }
    assert.equal(await pool.run(1), 1)
    assert.deepEqual([pool.stats.submitted, pool.stats.completed], [2, 2])
  })

  test(`${kind}: a program ends once a stream that it dropped is collected`, async () => {
    const code = `
      const { WorkerPool, ProcessPool } = await import(offloopUrl)
      const pool = new ${kind}(${JSON.stringify(workerFile('leave.mjs').href)}, { maxWorkers: 1 })
      await pool.stream({ file: '/nowhere/file' }, { name: 'endless' }).next()
      const look = setInterval(() => {
        globalThis.gc()
        if (pool.stats.running === 0) clearInterval(look)
      }, 1)`
    const { code: exitCode, signal } = await script(code, { args: ['--expose-gc'] })
    assert.deepEqual([exitCode, signal], [0, null])
  })
}

// ProcessPool: workers that do not start, and workers that end.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import path from 'node:path'
import { test } from 'node:test'
import { ProcessPool } from '../lib/index.mjs'
import { commonWorker, directory, door, openProcesses } from './processes.mjs'
import { rejection, script, until, workerFile } from './support.mjs'

const file = workerFile('process.mjs')

test('a worker that ends loses the task that it ran, says how, and the next call has another one', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const ends = []
  pool.on('workerExit', (worker) => ends.push(worker))
  const errors = []
  pool.on('workerError', (error) => errors.push(error))
  for (const [name, arg, exitCode, signal] of [
    ['exit', 3, 3, undefined],
    ['exit', 0, 0, undefined],
    ['kill', 'SIGKILL', undefined, 'SIGKILL'],
    ['kill', 'SIGSEGV', undefined, 'SIGSEGV'],
  ]) {
    const before = pool.exports.add(1, 1)
    const lost = rejection(pool.run(arg, { name }))
    const behind = Array.from({ length: 40 }, (_, i) => pool.run(i))
    const error = await lost
    assert.deepEqual(
      [error.code, error.exitCode, error.signal, error.oom, error.poison],
      ['ERR_OFFLOOP_WORKER_LOST', exitCode, signal, false, false],
    )
    assert.equal(await before, 2)
    assert.deepEqual(await Promise.all(behind), [...Array(40).keys()])
  }
  await until(() => ends.length === 4 && errors.length === 4)
  assert.deepEqual(
    ends.map(({ exitCode, signal }) => [exitCode, signal]),
    [
      [3, null],
      [0, null],
      [null, 'SIGKILL'],
      [null, 'SIGSEGV'],
    ],
  )
  assert.equal(errors[2].signal, 'SIGKILL')
  assert.equal(pool.stats.lost, 4)
})

test('an error that nobody caught ends its worker, whose last words are told', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  const told = once(pool, 'workerError')
  const error = await rejection(pool.exports.uncaught())
  assert.deepEqual([error.code, error.exitCode], ['ERR_OFFLOOP_WORKER_LOST', 1])
  assert.match(error.message, /RangeError: nobody catches this\n\s+at /)
  assert.match((await told)[0].message, /RangeError: nobody catches this/)
})

test('retries run a task again whose worker was lost, and end with poison', async (t) => {
  const pool = openProcesses(t, file, { maxWorkers: 1 })
  assert.equal(await pool.run(path.join(directory(t), 'once'), { name: 'once', retries: 1 }), 'second')
  assert.equal(pool.stats.retried, 1)
  const error = await rejection(pool.run(3, { name: 'exit', retries: 1 }))
  assert.deepEqual([error.code, error.poison], ['ERR_OFFLOOP_WORKER_LOST', true])
})

test('a file that throws as it loads fails the calls with its own words', async (t) => {
  for (const [worker, text] of [
    [workerFile('start-throws.mjs'), /SyntaxError: this file does not start\n\s+at .*start-throws\.mjs/],
    ['data:text/javascript,this is no program', /SyntaxError/],
    ['data:text/javascript,export const init = () => { throw new TypeError("in init") }', /TypeError: in init/],
    [{ command: ['/no/such/program'] }, /\/no\/such\/program/],
  ]) {
    const pool = openProcesses(t, worker, { maxWorkers: 1 })
    const errors = await Promise.all([rejection(pool.run(1)), rejection(pool.run(2))])
    for (const error of errors) {
      assert.match(error.code, /ERR_OFFLOOP_(START_FAILED|NOT_FOUND)/)
      assert.match(error.message, text)
    }
    await pool.close({ grace: 0 })
  }
})

test('a worker that is not ready in time is ended, and the calls fail', async (t) => {
  const pool = openProcesses(t, workerFile('never.mjs'), { maxWorkers: 1, readyTimeout: 200 })
  const error = await rejection(pool.run(1))
  assert.equal(error.code, 'ERR_OFFLOOP_START_FAILED')
})

test('workers that end one after the other make the pool degraded, once', async (t) => {
  const pool = openProcesses(t, 'data:text/javascript,process.exit(7)', { maxWorkers: 1 })
  const degraded = once(pool, 'degraded')
  const calls = (async () => {
    const codes = new Set()
    while (!codes.has('ERR_OFFLOOP_DEGRADED')) codes.add((await rejection(pool.run(1))).code)
    return codes
  })()
  const [why] = await degraded
  assert.ok(why.failures >= 5)
  assert.ok((await calls).has('ERR_OFFLOOP_DEGRADED'))
})

test('close with a grace ends what goes on', async (t) => {
  const gate = door(t)
  const pool = openProcesses(t, file, { maxWorkers: 1, cancelGrace: 0 })
  const held = rejection(pool.exports.hold(gate.at))
  await gate.began()
  await pool.close({ grace: 0 })
  assert.equal((await held).code, 'ERR_OFFLOOP_CANCELLED')
})

test('an interpreter that is not there is named, and so is where it was looked for', (t) => {
  const dir = directory(t)
  const python = path.join(dir, 'w.py')
  const missing = (worker, options) => {
    try {
      new ProcessPool(worker, options)
    } catch (error) {
      return error
    }
    throw new Error('was found')
  }
  const before = missing({ python })
  assert.deepEqual([before.code, /filename=/.test(before.message)], ['ERR_OFFLOOP_NOT_FOUND', true])
  const given = { python: process.execPath.replace(/node$/, 'node') }
  const error = missing(given, { env: { PATH: `${dir}:/no/such/bin`, VIRTUAL_ENV: '/no/venv' } })
  assert.equal(error.code, 'ERR_OFFLOOP_NOT_FOUND')
  for (const looked of ['/no/venv/bin/python3', `${dir}/python3`, '/no/such/bin/python3']) assert.ok(error.message.includes(looked), looked)
  assert.match(missing(given, { python: 'python9' }).message, /\/python9/)
  assert.match(missing(given, { python: '/no/python' }).message, /looked for \/no\/python$/)
})

test('a worker in another language loses its tasks in the same way', async (t) => {
  const pool = openProcesses(t, commonWorker(), { maxWorkers: 1 })
  const error = await rejection(pool.exports.exit(4))
  assert.deepEqual([error.code, error.exitCode], ['ERR_OFFLOOP_WORKER_LOST', 4])
  assert.equal(await pool.exports.add(2, 3), 5)
})

test('a reply that there is no memory for is an error of its task', async () => {
  const { code, signal, out, err } = await script(`
    import { execFileSync } from 'node:child_process'
    import fs from 'node:fs'
    const { ProcessPool } = await import(offloopUrl)
    const pool = new ProcessPool(new URL(${JSON.stringify(file)}), { maxWorkers: 1 })
    const common = new ProcessPool(${JSON.stringify(commonWorker())}, { maxWorkers: 1 })
    const pools = [pool, common]
    for (const pool of pools) console.log(await pool.run(3, { name: 'text' }))
    const used = Number(/VmSize:\\s+(\\d+)/.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1]) * 1024
    execFileSync('prlimit', ['--pid', String(process.pid), '--as=' + (used + (150 << 20))])
    for (const pool of pools) {
      const error = await pool.run(200 << 20, { name: 'text' }).catch((error) => error)
      console.log(error.code, error.errno, /len=2097152\\d\\d/.test(error.message))
      console.log(await pool.run(3, { name: 'text' }))
    }
    for (const pool of pools) await pool.close()
  `)
  assert.deepEqual([code, signal, err], [0, null, ''])
  const each = ['ERR_OFFLOOP_OS 12 true', 'xxx']
  assert.deepEqual(out.trim().split('\n'), ['xxx', 'xxx', ...each, ...each])
})

test('a worker that runs out of the heap of its runtime ends by SIGABRT, of which the system does not say why', async () => {
  const hoard = 'export default () => { const all = []; for (;;) all.push(new Array(1e5).fill(Math.random())) }'
  const { out, err } = await script(`
    const { ProcessPool } = await import(offloopUrl)
    const url = 'data:text/javascript,' + encodeURIComponent(${JSON.stringify(hoard)})
    const pool = new ProcessPool(url, { maxWorkers: 1, execArgv: ['--max-old-space-size=20'] })
    const { code, signal, oom } = await pool.run().catch((error) => error)
    console.log(code, signal, oom)
    await pool.close()`)
  assert.equal(out, 'ERR_OFFLOOP_WORKER_LOST SIGABRT false\n')
  assert.match(err, /heap out of memory/)
})

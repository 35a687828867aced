// What is refused, by WorkerPool and ProcessPool, says what it is.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { MessageChannel, SHARE_ENV } from 'node:worker_threads'
import { move, ProcessPool, WorkerPool } from '../lib/index.mjs'
import { commonWorker, openProcesses } from './processes.mjs'
import { openWorkers, rejection, workerFile } from './support.mjs'

const file = workerFile('leave.mjs')
const refused = async (call, text, code = 'INVALID') => {
  const error = await rejection(call)
  assert.deepEqual([error.code, text.test(error.message)], [`ERR_OFFLOOP_${code}`, true], error.message)
}
const make = async (Pool, options, worker = file) => new Pool(worker, options).close()

test('a generator as a result of run is refused, and says that stream takes it', async (t) => {
  for (const [pool, hasCall] of [
    [openWorkers(t, 'leave.mjs', { maxWorkers: 1 }), true],
    [openProcesses(t, file, { maxWorkers: 1 }), true],
    [openProcesses(t, commonWorker('leave.mjs'), { maxWorkers: 1 }), false],
  ]) {
    const text = /a result that is a generator cannot be cloned: stream takes its values \(got=AsyncGenerator\)/
    await refused(pool.run({ n: 1, file: '' }, { name: 'stuckAfter' }), text, 'UNSERIALIZABLE')
    if (hasCall) {
      const call = pool.call(function* () {
        yield 1
      })
      await refused(call, /stream takes its values \(got=Generator\)/, 'UNSERIALIZABLE')
    }
    assert.equal(await pool.run(1), 1)
  }
})

test('an option is refused under the name that was typed, with the pool that has it', async () => {
  for (const [Pool, other] of [
    [WorkerPool, { maxWorkerMemory: 1e9, nice: 1, python: 'python3' }],
    [ProcessPool, { resourceLimits: {}, trackUnmanagedFds: true, stdout: true, stderr: true }],
  ]) {
    for (const value of [0, -1, Number.NaN, '5']) await refused(make(Pool, { readyTimeout: value }), /option=readyTimeout, value=.*, min=1/)
    const [name, what] = Pool === WorkerPool ? ['ProcessPool', 'worker processes'] : ['WorkerPool', 'threads of JavaScript']
    for (const [option, value] of Object.entries(other)) {
      await refused(
        make(Pool, { [option]: value }),
        new RegExp(`option is for ${what}, which this pool does not have \\(option=${option}, belongs_to=${name}, known=`),
      )
    }
    await refused(make(Pool, { transferList: [] }), /option=transferList, belongs_to=run, /)
    await refused(make(Pool, { toString: 1 }), /unknown option \(option=toString, known=/)
  }
})

test('what a worker is started with is looked at when the pool is made', async () => {
  for (const Pool of [WorkerPool, ProcessPool]) {
    for (const env of [5, 'PATH=/bin', ['PATH']]) await refused(make(Pool, { env }), /option=env, want=object/)
    for (const execArgv of ['--no-warnings', [1], {}]) await refused(make(Pool, { execArgv }), /option=execArgv, want=array of text/)
    await refused(make(Pool, { argv: '--verbose' }), /option=argv, want=array/)
    for (const url of ['http://127.0.0.1/worker.mjs', new URL('https://127.0.0.1/worker.mjs')]) {
      await refused(make(Pool, {}, url), /a worker file is not loaded from the network \(filename=https?:\/\/127/)
    }
    await make(Pool, { env: {}, execArgv: [], argv: [] })
  }
  await refused(make(WorkerPool, { resourceLimits: 64 }), /option=resourceLimits, want=object/)
  for (const option of ['trackUnmanagedFds', 'stdout', 'stderr']) {
    await refused(make(WorkerPool, { [option]: 'yes' }), new RegExp(`option=${option}, want=boolean`))
  }
  await make(WorkerPool, { env: SHARE_ENV, resourceLimits: { maxOldGenerationSizeMb: 64 }, trackUnmanagedFds: true })
})

test('a transferList is refused by the element that cannot be transferred, and nothing moves', async (t) => {
  const pool = openWorkers(t, 'leave.mjs', { maxWorkers: 1 })
  const buffer = new ArrayBuffer(8)
  const { port1, port2 } = new MessageChannel()
  t.after(() => port1.close())
  for (const [element, got] of [
    [{}, 'Object'],
    [5, 'number'],
    [null, 'null'],
    [new Uint8Array(4), 'Uint8Array'],
    [new SharedArrayBuffer(4), 'SharedArrayBuffer'],
    [buffer, 'ArrayBuffer'],
    [port2, 'MessagePort'],
  ]) {
    const text = new RegExp(`what is to be moved cannot be transferred, or is there twice \\(at=2, got=${got}\\)`)
    await refused(pool.run([buffer, port2], { transferList: [buffer, port2, element] }), text, 'UNSERIALIZABLE')
    assert.equal(buffer.byteLength, 8)
  }
  await refused(pool.run(move([1], [{}])), /\(at=0, got=Object\)/, 'UNSERIALIZABLE')
  await refused(pool.run(1, { transferList: buffer }), /option=transferList, want=array, got=ArrayBuffer/)
  // It is the value that cannot be cloned.
  await refused(pool.run({ f() {} }, { transferList: [buffer] }), /argument cannot be cloned \(path=f\)/, 'UNSERIALIZABLE')
  assert.equal(buffer.byteLength, 8)
  assert.equal((await pool.run(buffer, { transferList: [buffer] })).byteLength, 8)
  assert.equal(buffer.byteLength, 0)
})

// Node.js: WorkerPool beside other pools of worker_threads, two workers each, 1000 calls in flight.
import { fileURLToPath } from 'node:url'
import { Piscina } from 'piscina'
import { FixedThreadPool } from 'poolifier'
import { WorkerPool } from '../../bindings-node/lib/index.mjs'
import { Piscina as Compatible } from '../../bindings-node/lib/piscina.mjs'
import { duel, first, single } from './load.mjs'

const file = fileURLToPath(new URL('workers_task.mjs', import.meta.url))
const ours = new WorkerPool(file, { minWorkers: 2, maxWorkers: 2 })
const piscina = new Piscina({ filename: file, minThreads: 2, maxThreads: 2 })
const compatible = new Compatible({ filename: file, minThreads: 2, maxThreads: 2 })
const poolifier = new FixedThreadPool(2, fileURLToPath(new URL('workers_poolifier.mjs', import.meta.url)))

const object = { a: 1, b: 'two', c: [3, 4] }
const text = 'x'.repeat(100)
const bytes = Buffer.alloc(100, 7)

/** `concurrency` of ours and of piscina stays 1: so do their defaults. */
const us = (task, name) => ['offloop', name === undefined ? () => ours.run(task) : () => ours.exports[name](task)]
const them = (task, name) => ['piscina', name === undefined ? () => piscina.run(task) : () => piscina.run(task, { name })]
const others = (task, name = 'echo') => ['poolifier', () => poolifier.execute(task, name)]

await duel('node.worker_noop', [us(undefined, 'noop'), them(undefined, 'noop'), others(undefined, 'noop')], true)
await duel('node.worker_noop_piscina', [us(undefined, 'noop'), them(undefined, 'noop')])
await duel('node.worker_number', [us(1), them(1), others(1)])
await duel('node.worker_object', [us(object), them(object)])
await duel('node.worker_text', [us(text), them(text)])
await duel('node.worker_bytes', [us(bytes), them(bytes)])
await duel('node.worker_async', [us(1, 'later'), them(1, 'later')])
await duel('node.worker_compatible', [['offloop', () => compatible.run(object)], them(object)])
await single('node.worker_trip', [us(1), them(1), others(1)], 501, 1000)
await first('node.worker_first', [
  ['offloop', () => new WorkerPool(file, { minWorkers: 2, maxWorkers: 2 }), (pool) => pool.run(1)],
  ['piscina', () => new Piscina({ filename: file, minThreads: 2, maxThreads: 2 }), (pool) => pool.run(1)],
])

await ours.close()
await compatible.close()
await piscina.close()
// Not waited for: its workers do not always keep the process alive until they have ended.
poolifier.destroy()

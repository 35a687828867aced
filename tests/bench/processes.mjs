// Node.js: ProcessPool beside children of child_process.fork, two workers each.
import { fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { ProcessPool, TransferBuffer } from '../../bindings-node/lib/index.mjs'
import { duel, first, print, saturate, single } from './load.mjs'

const file = fileURLToPath(new URL('processes_task.mjs', import.meta.url))
const ROUNDS = Number(process.env.ROUNDS ?? 5)
const MS = Number(process.env.MS ?? 500)

/** As little as a caller of `fork` needs: two children by turns, an id per message. */
function forked(serialization) {
  const waiting = new Map()
  let last = 0
  const children = [0, 1].map(() => {
    const child = fork(file, { serialization })
    child.on('message', ({ id, value }) => {
      waiting.get(id)(value)
      waiting.delete(id)
    })
    return child
  })
  return {
    call: (value, short = false) =>
      new Promise((resolve) => {
        const id = ++last
        waiting.set(id, resolve)
        children[id % 2].send({ id, value, short })
      }),
    close: () => children.forEach((child) => child.kill()),
  }
}

const ours = new ProcessPool(file, { minWorkers: 2, maxWorkers: 2 })
const json = forked('json')
const advanced = forked('advanced')

const text = 'x'.repeat(100)
const mega = new Uint8Array(1 << 20).fill(7)

await duel('node.process_text', [['offloop', () => ours.run(text)], ['fork', () => json.call(text)]], true)
await single('node.process_trip', [['offloop', () => ours.run(text)], ['fork', () => json.call(text)]], 501, 1000)

/** Few in flight: what is measured is the copying. */
async function large(name, sides) {
  for (const [, call] of sides) await saturate(call, MS / 5, 4)
  for (let round = 0; round < ROUNDS; round++) for (const [who, call] of sides) print(name, who, await saturate(call, MS, 4))
}
await large('node.process_mega', [['offloop', () => ours.run(mega)], ['fork', () => advanced.call(mega)]])
await large('node.process_mega_in', [['offloop', () => ours.exports.length(mega)], ['fork', () => advanced.call(mega, true)]])
await large('node.process_mega_buffer', [
  ['offloop', () => ours.exports.length(TransferBuffer.from(mega))],
  ['fork', () => advanced.call(mega, true)],
])

/** Four buffers of the pool go to a worker and come back; the other one sends the bytes, and gets a number. */
const buffers = Array.from({ length: 4 }, () => ours.alloc(mega.length))
const trip = async () => void buffers.push(await ours.run(buffers.pop()))
await large('node.process_mega_moved', [['offloop', trip], ['fork', () => advanced.call(mega, true)]])

/** From nothing to the first result of two workers. */
await first('node.process_first', [
  ['offloop', () => new ProcessPool(file, { minWorkers: 2, maxWorkers: 2 }), (pool) => pool.run(1)],
  ['fork', () => forked('json'), (pair) => Promise.race([pair.call(1), pair.call(1)])],
])

await ours.close()
json.close()
advanced.close()

// Node.js: records from one process to another, ours and child_process's IPC in turns. Prints `R case who value` (records/s).
import { fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { RingBuffer } from '../../bindings-node/lib/index.mjs'

const self = fileURLToPath(import.meta.url)
const ROUNDS = Number(process.env.ROUNDS ?? 5)
/** Messages that IPC has under way; more of them, and it holds them all in memory. */
const WINDOW = 256

/** Records per second, from the first that came to the last. */
class Rate {
  count = 0
  add() {
    if (this.count++ === 0) this.began = performance.now()
  }
  get perSecond() {
    return ((this.count - 1) * 1000) / (performance.now() - this.began)
  }
}

async function ring(count, size, how) {
  const ring = RingBuffer.create({ kind: 'spsc' })
  const child = spawn(process.execPath, [self, 'ring', count, size, how], { stdio: ['ignore', 'inherit', 'inherit', ...ring.fds] })
  const exited = once(child, 'exit')
  const consumer = ring.consumer()
  const rate = new Rate()
  let sum = 0
  if (how === 'batch') {
    while (rate.count < count) {
      sum += (await consumer.pop())[0]
      rate.add()
      consumer.read(256, (view) => {
        sum += view[0]
        rate.add()
      })
    }
  } else {
    for await (const record of consumer) {
      sum += record[0]
      rate.add()
      if (rate.count === count) break
    }
  }
  const { perSecond } = rate
  if (sum !== count * 7) throw new Error('a record is not what was sent')
  await exited
  consumer.close()
  return perSecond
}

async function ipc(count, size, serialization) {
  const child = fork(self, ['ipc', count, size, serialization], { serialization })
  const rate = new Rate()
  await new Promise((resolve) => {
    child.on('message', ({ payload }) => {
      if (payload.length !== size) throw new Error('a message is not what was sent')
      rate.add()
      if (rate.count === count) resolve()
    })
  })
  const { perSecond } = rate
  child.kill()
  return perSecond
}

async function sendRing(count, size, how) {
  const producer = RingBuffer.attach([3, 4, 5]).producer({ batch: how === 'batch' })
  const record = new Uint8Array(size).fill(7)
  for (let i = 0; i < count; i++) {
    if (!producer.tryPush(record)) await producer.push(record)
  }
  producer.close()
}

function sendIpc(count, size, serialization) {
  const payload = serialization === 'json' ? 'a'.repeat(size) : Buffer.alloc(size, 97)
  let sent = 0
  const next = () => {
    if (sent++ < count) process.send({ payload }, next)
  }
  for (let i = 0; i < WINDOW; i++) next()
}

async function duel(name, sides) {
  for (let round = 0; round < ROUNDS; round++) {
    for (const [who, run] of sides) console.log(`R ${name} ${who} ${await run()}`)
  }
}

const [role, count, size, how] = process.argv.slice(2)
if (role === 'ring') await sendRing(Number(count), Number(size), how)
else if (role === 'ipc') sendIpc(Number(count), Number(size), how)
else {
  await duel('node.ring_64', [['offloop', () => ring(2_000_000, 64, 'batch')]])
  await duel('node.ring_100', [
    ['offloop', () => ring(500_000, 100, 'each')],
    ['ipc-advanced', () => ipc(30_000, 100, 'advanced')],
    ['ipc-json', () => ipc(30_000, 100, 'json')],
  ])
  await duel('node.ring_64k', [
    ['offloop', () => ring(40_000, 65_536, 'each')],
    ['ipc-advanced', () => ipc(3_000, 65_536, 'advanced')],
    ['ipc-json', () => ipc(3_000, 65_536, 'json')],
  ])
}

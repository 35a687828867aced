// Node.js: records from one process to another, ours and child_process's IPC in turns. Prints `R case who value` (records/s).
import { fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { RingBuffer } from '../../bindings-node/lib/index.mjs'

const self = fileURLToPath(import.meta.url)
const near = (name) => fileURLToPath(new URL(name, import.meta.url))
const ROUNDS = Number(process.env.ROUNDS ?? 5)
const SCALE = Number(process.env.MS ?? 500) / 500
const ONLY = process.env.CASE
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

/** A process at a ring, in this language or in Python. `line()` is what it says next. */
function peer(ring, language, ...args) {
  const program = language === 'python' ? [near('../../.venv/bin/python'), near('ring_peer.py')] : [process.execPath, self]
  const fds = ring.fds
  const child = spawn(program[0], [program[1], ...args, fds.length], { stdio: ['ignore', 'pipe', 'inherit', ...fds] })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  return { line: async () => (await lines.next()).value, exited: once(child, 'exit') }
}

/** Pops `count` records, in batches, one by one, or acknowledged. */
async function receive(ring, count, how) {
  const consumer = ring.consumer(how === 'ack' ? { ack: 'manual' } : {})
  const rate = new Rate()
  let sum = 0
  if (how === 'batch') {
    while (rate.count < count) {
      sum += (await consumer.pop())[0]
      rate.add()
      consumer.read(Math.min(256, count - rate.count), (view) => {
        sum += view[0]
        rate.add()
      })
    }
  } else {
    for await (const record of consumer) {
      sum += (how === 'ack' ? record.bytes : record)[0]
      if (how === 'ack') record.ack()
      rate.add()
      if (rate.count === count) break
    }
  }
  const { perSecond } = rate
  if (sum !== count * 7) throw new Error('a record is not what was sent')
  consumer.close()
  return perSecond
}

async function send(ring, count, size, how) {
  const producer = ring.producer({ batch: how === 'batch' })
  const record = new Uint8Array(size).fill(7)
  for (let i = 0; i < count; i++) {
    if (!producer.tryPush(record)) await producer.push(record)
  }
  producer.close()
}

/** `producers` children send to this process. */
async function toHere(options, producers, count, size, how) {
  const ring = RingBuffer.create(options)
  const each = Math.trunc((count * SCALE) / producers)
  const children = Array.from({ length: producers }, () => peer(ring, 'node', 'send', each, size, how))
  const rate = await receive(ring, each * producers, how)
  await Promise.all(children.map((child) => child.exited))
  return rate
}

/** This process sends to `consumers` children that each get every record; what the slowest got. */
async function toAll(options, consumers, count, size, how) {
  const ring = RingBuffer.create(options)
  const whole = Math.trunc(count * SCALE)
  const children = Array.from({ length: consumers }, () => peer(ring, 'node', 'receive', whole, size, how))
  for (const child of children) await child.line()
  await send(ring, whole, size, how)
  const rates = await Promise.all(children.map((child) => child.line()))
  await Promise.all(children.map((child) => child.exited))
  return Math.min(...rates.map(Number))
}

/** A process of one language sends to one of another. */
async function between(from, to, count, size) {
  const ring = RingBuffer.create({ kind: 'spsc', capacity: 1 << 20 })
  const whole = Math.trunc((count * SCALE) / 256) * 256
  const receiver = peer(ring, to, 'receive', whole, size, 'batch')
  await receiver.line()
  const sender = peer(ring, from, 'send', whole, size, 'batch')
  const rate = Number(await receiver.line())
  await Promise.all([receiver.exited, sender.exited])
  return rate
}

/** `producers` children send messages to this process. */
async function ipc(producers, count, size, serialization) {
  const each = Math.trunc((count * SCALE) / producers)
  const children = Array.from({ length: producers }, () => fork(self, ['ipc', each, size, serialization], { serialization }))
  const rate = new Rate()
  await new Promise((resolve) => {
    for (const child of children) {
      child.on('message', ({ payload }) => {
        if (payload.length !== size) throw new Error('a message is not what was sent')
        rate.add()
        if (rate.count === each * producers) resolve()
      })
    }
  })
  const { perSecond } = rate
  for (const child of children) child.kill()
  return perSecond
}

/** This process sends each message to `consumers` children; what the slowest got. */
async function ipcToAll(consumers, count, size, serialization) {
  const whole = Math.trunc(count * SCALE)
  const children = Array.from({ length: consumers }, () => fork(self, ['ipc-receive', whole], { serialization }))
  const rates = Promise.all(children.map(async (child) => (await once(child, 'message'))[0]))
  await Promise.all(children.map((child) => sendIpc(child, whole, size, serialization)))
  const slowest = Math.min(...(await rates))
  for (const child of children) child.kill()
  return slowest
}

function sendIpc(to, count, size, serialization) {
  const payload = serialization === 'json' ? 'a'.repeat(size) : Buffer.alloc(size, 97)
  return new Promise((resolve) => {
    let [sent, done] = [0, 0]
    const next = () => {
      if (sent++ < count) to.send({ payload }, () => (++done === count ? resolve() : next()))
    }
    for (let i = 0; i < WINDOW; i++) next()
  })
}

function receiveIpc(count) {
  const rate = new Rate()
  process.on('message', () => {
    rate.add()
    if (rate.count === count) process.send(rate.perSecond)
  })
}

async function duel(name, sides) {
  if (ONLY && !name.includes(ONLY)) return
  for (let round = 0; round < ROUNDS; round++) {
    for (const [who, run] of sides) console.log(`R ${name} ${who} ${await run()}`)
  }
}

/** The slower language alone, measured in the same round. */
async function crossing(name, from, to) {
  if (ONLY && !name.includes(ONLY)) return
  for (let round = 0; round < ROUNDS; round++) {
    console.log(`R ${name} offloop ${await between(from, to, 400_000, 100)}`)
    const alone = [await between('node', 'node', 400_000, 100), await between('python', 'python', 400_000, 100)]
    console.log(`R ${name} slower-side-alone ${Math.min(...alone)}`)
  }
}

const [role, count, size, how, fds] = process.argv.slice(2)
const attached = () => RingBuffer.attach(Array.from({ length: Number(fds) }, (_, i) => 3 + i))
if (role === 'send') {
  await send(attached(), Number(count), Number(size), how)
} else if (role === 'receive') {
  const received = receive(attached(), Number(count), how)
  console.log('ready')
  console.log(await received)
} else if (role === 'ipc') {
  await sendIpc(process, Number(count), Number(size), how)
} else if (role === 'ipc-receive') {
  receiveIpc(Number(count))
} else {
  const ipcs = (producers, few, size) => [
    ['ipc-advanced', () => ipc(producers, few, size, 'advanced')],
    ['ipc-json', () => ipc(producers, few, size, 'json')],
  ]
  await duel('node.ring_64', [['offloop', () => toHere({ kind: 'spsc' }, 1, 2_000_000, 64, 'batch')]])
  await duel('node.ring_100', [['offloop', () => toHere({ kind: 'spsc' }, 1, 500_000, 100, 'each')], ...ipcs(1, 30_000, 100)])
  await duel('node.ring_64k', [['offloop', () => toHere({ kind: 'spsc' }, 1, 40_000, 65_536, 'each')], ...ipcs(1, 3_000, 65_536)])
  await duel('node.mpsc_100', [['offloop', () => toHere({ kind: 'mpsc' }, 2, 500_000, 100, 'each')], ...ipcs(2, 30_000, 100)])
  await duel('node.mpmc_100', [['offloop', () => toHere({ kind: 'mpmc' }, 1, 300_000, 100, 'ack')], ...ipcs(1, 30_000, 100)])
  await duel('node.broadcast_100', [
    ['offloop', () => toAll({ kind: 'broadcast' }, 2, 500_000, 100, 'each')],
    ['ipc-advanced', () => ipcToAll(2, 20_000, 100, 'advanced')],
    ['ipc-json', () => ipcToAll(2, 20_000, 100, 'json')],
  ])
  await crossing('node.to_python_100', 'node', 'python')
  await crossing('node.from_python_100', 'python', 'node')
}

// Node.js: messages between two processes, ours and child_process's IPC in turns. Prints `R case who value`.
import { fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { Channel, TransferBuffer } from '../../bindings-node/lib/index.mjs'

const self = fileURLToPath(import.meta.url)
const ROUNDS = Number(process.env.ROUNDS ?? 5)
/** Messages that IPC has under way; more of them, and it holds them all in memory. */
const WINDOW = 256

/** Messages per second, from the first that came to the last. */
class Rate {
  count = 0
  add() {
    if (this.count++ === 0) this.began = performance.now()
  }
  get perSecond() {
    return ((this.count - 1) * 1000) / (performance.now() - this.began)
  }
}

function open(...args) {
  const [own, other] = Channel.pair({ capacity: 1 << 20 })
  spawn(process.execPath, [self, 'channel', ...args], { stdio: ['ignore', 'inherit', 'inherit', other.fd] })
  other.close()
  return own
}

/** What a supervisor and its worker tell each other. */
const VALUE = {
  id: 12_345_678,
  type: 'request',
  path: '/api/orders/17?full=true',
  ok: true,
  tags: ['a', 'bc', 'def'],
  took: 12.25,
  user: { name: 'Ada Lovelace', roles: ['admin', 'ops'] },
  next: null,
}

/** `size` 0 stands for the value. */
const messageOf = (size, asText) => (size === 0 ? VALUE : { payload: asText ? 'a'.repeat(size) : Buffer.alloc(size, 97) })

async function receive(source, count, size) {
  const rate = new Rate()
  await new Promise((resolve) => {
    source.on('message', ({ payload, user }) => {
      const right = size === 0 ? user.roles.length === 2 : (payload.byteLength ?? payload.length) === size
      if (!right) throw new Error('a message is not what was sent')
      rate.add()
      if (rate.count === count) resolve()
    })
  })
  return rate.perSecond
}

async function channelRate(count, size) {
  const own = open('send', count, size)
  const rate = await receive(own, count, size)
  own.close()
  return rate
}

async function ipcRate(count, size, serialization) {
  const child = fork(self, ['ipc', 'send', count, size, serialization], { serialization })
  const rate = await receive(child, count, size)
  child.kill()
  return rate
}

/** Microseconds of one question and its answer, the next after it. */
async function trips(count, ask) {
  for (let i = 0; i < 200; i++) await ask(i)
  const began = performance.now()
  for (let i = 0; i < count; i++) await ask(i)
  return ((performance.now() - began) * 1000) / count
}

/** With a buffer the same memory goes there and back. */
async function channelTrip(count, size) {
  const own = open('answer')
  let value = size > 0 ? TransferBuffer.alloc(size, { shared: true }) : { n: 1 }
  const trip = await trips(count, async () => {
    value = await own.request(value)
  })
  own.close()
  return trip
}

async function ipcTrip(count, size) {
  const child = fork(self, ['ipc', 'answer'], { serialization: 'advanced' })
  let value = size > 0 ? Buffer.alloc(size, 97) : { n: 1 }
  const trip = await trips(count, async () => {
    child.send(value)
    value = (await once(child, 'message'))[0]
  })
  child.kill()
  return trip
}

async function sendChannel(count, size) {
  const channel = Channel.attach(3)
  const message = messageOf(size, false)
  for (let i = 0; i < count; i++) {
    if (!channel.send(message)) await once(channel, 'drain')
  }
  await once(channel, 'close')
}

function sendIpc(count, size, serialization) {
  const message = messageOf(size, serialization === 'json')
  let sent = 0
  const next = () => {
    if (sent++ < count) process.send(message, next)
  }
  for (let i = 0; i < WINDOW; i++) next()
}

async function duel(name, sides) {
  for (let round = 0; round < ROUNDS; round++) {
    for (const [who, run] of sides) console.log(`R ${name} ${who} ${await run()}`)
  }
}

const [over, role, count, size, how] = process.argv.slice(2)
if (over === 'channel' && role === 'send') await sendChannel(Number(count), Number(size))
else if (over === 'channel') Channel.attach(3).on('request', (request) => request.reply(request.value))
else if (over === 'ipc' && role === 'send') sendIpc(Number(count), Number(size), how)
else if (over === 'ipc') process.on('message', (message) => process.send(message))
else {
  await duel('node.channel_100', [
    ['offloop', () => channelRate(100_000, 100)],
    ['ipc-advanced', () => ipcRate(30_000, 100, 'advanced')],
    ['ipc-json', () => ipcRate(30_000, 100, 'json')],
  ])
  await duel('node.channel_value', [
    ['offloop', () => channelRate(100_000, 0)],
    ['ipc-advanced', () => ipcRate(30_000, 0, 'advanced')],
    ['ipc-json', () => ipcRate(30_000, 0, 'json')],
  ])
  await duel('node.channel_trip', [
    ['offloop', () => channelTrip(5000, 0)],
    ['ipc-advanced', () => ipcTrip(5000, 0)],
  ])
  await duel('node.channel_trip_1m', [
    ['offloop', () => channelTrip(1000, 1 << 20)],
    ['ipc-advanced', () => ipcTrip(200, 1 << 20)],
  ])
}

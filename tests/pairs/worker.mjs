// The Node.js worker of the pairs: README.md through the public API of the package.
import { closeSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { crc32 } from 'node:zlib'
import * as offloop from '../../bindings-node/lib/index.mjs'

const PROGRESS = 100
const HEAD = 16
const args = Object.fromEntries(process.argv.slice(2).map((a) => [a.slice(0, a.indexOf('=')), a.slice(a.indexOf('=') + 1)]))
const number = (key) => Number(args[key] ?? 0)
const say = (line) => writeSync(1, `${line}\n`)
const seed = number('seed') >>> 0
const block = Buffer.from(Array.from({ length: 4096 }, (_, i) => (i * 167 + (i >> 8) * 13 + seed) & 255))

function body(n) {
  let h = Math.imul((n ^ seed) >>> 0, 0x9e3779b1)
  h ^= h >>> 15
  h = Math.imul(h, 0x85ebca77)
  h = (h ^ (h >>> 13)) >>> 0
  const at = (h >>> 10) % 3072
  return block.subarray(at, at + (h % 1000))
}

const scratch = Buffer.alloc(HEAD + 1000)

function make(incarnation, n) {
  const bytes = body(n)
  const record = scratch.subarray(0, HEAD + bytes.length)
  record.writeUInt32LE(incarnation, 4)
  record.writeUInt32LE(n, 8)
  record.writeUInt32LE(0, 12)
  record.set(bytes, HEAD)
  record.writeUInt32LE(crc32(record.subarray(4)), 0)
  return record
}

class Failure extends Error {}

/** Incarnation and number of a record that is whole. */
function check(view) {
  const record = Buffer.from(view.buffer, view.byteOffset, view.byteLength)
  if (record.length < HEAD) throw new Failure(`a record of ${record.length} bytes`)
  const [incarnation, n] = [record.readUInt32LE(4), Number(record.readBigUInt64LE(8))]
  if (crc32(record.subarray(4)) !== record.readUInt32LE(0)) throw new Failure(`record ${incarnation}:${n} is torn`)
  if (!record.subarray(HEAD).equals(body(n))) throw new Failure(`record ${incarnation}:${n} is another one`)
  return [incarnation, n]
}

const isPeerDied = (error) => error.code === 'ERR_OFFLOOP_PEER_DIED'

async function push(producer, n, record) {
  for (;;) {
    try {
      if (n % 3 !== 0) {
        if (producer.tryPush(record)) return
        return await producer.push(record)
      }
      if (producer.claim(record.length, (view) => view.set(record))) return
      // A full ring: claim does not wait, push does.
      return await producer.push(record)
    } catch (error) {
      if (!isPeerDied(error)) throw error
      await sleep(1)
    }
  }
}

async function produce(ring) {
  const producer = ring.producer({ batch: number('batch') === 1 })
  say('ready')
  const [count, incarnation] = [number('count'), number('inc')]
  const word = new BigUint64Array(1)
  const wordBytes = new Uint8Array(word.buffer)
  let n = 0
  while (count === 0 || n < count) {
    await push(producer, n, make(incarnation, n))
    n++
    if (args.progress === '1') {
      word[0] = BigInt(n)
      writeSync(PROGRESS, wordBytes, 0, 8, 0)
    }
  }
  producer.flush()
  say(`done ${n}`)
}

async function consume(ring) {
  const consumer = ring.consumer()
  say('ready')
  let [incarnation, next] = [number('inc'), number('next')]
  let [again, fresh, first, records] = [null, false, true, 0]
  const words = new BigUint64Array(2)
  const wordBytes = new Uint8Array(words.buffer)

  const see = (view, marked) => {
    const [inc, n] = check(view)
    if (inc < incarnation || (inc === incarnation && n < next)) {
      const follows = again === null || (again[0] === inc && again[1] + 1 === n) || (again[0] < inc && n === 0)
      if (!marked || fresh || !follows) throw new Failure(`record ${inc}:${n} again, expected ${incarnation}:${next} (marked=${marked} fresh=${fresh} again=${again})`)
      again = [inc, n]
      first = false
      say('again')
      return
    }
    if (again !== null && again[0] === incarnation && again[1] + 1 !== next) throw new Failure(`records up to ${incarnation}:${next} did not come again`)
    again = null
    const took = first && args.took === '1'
    first = false
    if (took && inc === incarnation && n === next + 1) next = n
    if (inc > incarnation && (n === 0 || (took && n === 1))) {
      say(`inc ${incarnation} ${next}`)
      incarnation = inc
    } else if (inc !== incarnation || n !== next) {
      throw new Failure(`record ${inc}:${n}, expected ${incarnation}:${next}`)
    }
    next = n + 1
    fresh ||= !marked
    records++
    if (args.progress === '1') {
      words[0] = BigInt(incarnation)
      words[1] = BigInt(next)
      writeSync(PROGRESS, wordBytes, 0, 16, 16)
    }
  }

  // Records in place until there are none, which tells about marks; what comes later is new, and copies are tried as well.
  for (;;) {
    try {
      if (consumer.read(64, see) > 0) continue
      see(await consumer.pop(), false)
      for (let i = 0; i < 8; i++) {
        const record = consumer.tryPop()
        if (record === null) break
        see(record, false)
      }
    } catch (error) {
      if (error.code === 'ERR_OFFLOOP_CLOSED') break
      if (!isPeerDied(error)) throw error
      await sleep(1)
    }
  }
  say(`inc ${incarnation} ${next}`)
  say(`done ${records}`)
}

/** An end of a channel: sends all, asks how many came, and answers the same question. */
async function talk() {
  const channel = offloop.Channel.attach(PROGRESS + 1)
  const count = number('count')
  let next = 0
  let settle
  const ended = new Promise((resolve, reject) => {
    settle = { resolve, reject }
  })
  const failing =
    (fn) =>
    (...given) => {
      try {
        fn(...given)
      } catch (error) {
        settle.reject(error)
      }
    }
  const answered = new Promise((resolve) => {
    channel.on(
      'request',
      failing((request) => {
        request.reply(next)
        resolve()
      }),
    )
  })
  channel.on(
    'message',
    failing(([n, payload]) => {
      const bytes = payload instanceof offloop.TransferBuffer ? payload.bytes() : payload
      const [inc, of] = check(bytes)
      if (n !== next || inc !== 0 || of !== next) throw new Failure(`message ${n}, expected ${next}`)
      next++
    }),
  )
  channel.on('close', (why) => (isPeerDied(why) ? settle.resolve('died') : settle.reject(why)))
  say('ready')
  const send = async () => {
    for (let n = 0; count === 0 || n < count; n++) {
      let payload = make(0, n)
      if (n % 16 === 5) {
        const buffer = offloop.TransferBuffer.alloc(payload.length, { shared: n % 32 === 5 })
        buffer.bytes().set(payload)
        payload = buffer
      }
      if (!channel.send([n, payload])) await new Promise((resolve) => channel.once('drain', resolve))
      // What comes is read meanwhile.
      else if (n % 64 === 0) await new Promise(setImmediate)
    }
    const came = await channel.request(null)
    if (came !== count) throw new Failure(`${count} messages were sent, ${came} came`)
    await answered
    settle.resolve('done')
  }
  send().catch((error) => {
    if (!isPeerDied(error)) settle.reject(error)
  })
  say(`${await ended} ${next}`)
  channel.close()

}

/** Tasks, until the ring is closed: what came, and what was acknowledged. */
async function work(ring) {
  const consumer = ring.consumer({ ack: 'manual' })
  say('ready')
  let done = 0
  for await (const delivery of consumer) {
    const [incarnation, n] = check(delivery.bytes)
    say(`got ${incarnation} ${n} ${Number(delivery.redelivered)}`)
    say(`acks ${incarnation} ${n}`)
    delivery.ack()
    say(`ack ${incarnation} ${n}`)
    done++
  }
  say(`done ${done}`)
}

if (args.role === 'hello') {
  say(offloop.RingBuffer === undefined ? 'the Node.js face has no RingBuffer yet' : 'rings')
} else {
  try {
    if (args.role === 'talk') {
      await talk()
    } else {
      const fds = Array.from({ length: number('fds') }, (_, i) => PROGRESS + 1 + i)
      const ring = offloop.RingBuffer.attach(fds)
      fds.forEach(closeSync)
      await { produce, consume, work }[args.role](ring)
    }
  } catch (error) {
    say(`fail ${error instanceof Failure ? error.message : String(error?.stack ?? error).replaceAll('\n', ' | ')}`)
    process.exitCode = 1
  }
}

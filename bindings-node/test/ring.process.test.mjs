// Rings between processes and between threads: streams, deaths, stops, ends.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { RingBuffer } from '../lib/index.mjs'
import { entryUrl, openChild, random, rejection, until } from './support.mjs'

const open = (options) => RingBuffer.create({ kind: 'spsc', ...options })
const attach = 'const ring = RingBuffer.attach([3, 4, 5]);'
const forever = 'setInterval(() => {}, 1000);'

/** Source of a stream of records that say which they are and carry a checksum. */
const STREAM = `
  export const TOTAL = 1_000_000
  const below = (${random})(42)
  const record = new Uint8Array(400)
  const words = new Uint32Array(record.buffer)
  let hash = 0
  /** The bytes of record n, in order. */
  export function next(n) {
    const length = 8 + below(n % 50 === 0 ? 392 : 90)
    words[0] = n
    words[1] = hash
    for (let i = 8; i < length; i++) {
      record[i] = n + i
      hash = (Math.imul(hash, 31) + record[i]) | 0
    }
    return record.subarray(0, length)
  }
  let seen = 0
  let sum = 0
  export function check(view) {
    if (view.length < 8) throw new Error('short record')
    const got = new DataView(view.buffer, view.byteOffset, view.byteLength)
    if (got.getUint32(0, true) !== seen || got.getInt32(4, true) !== sum) throw new Error('record ' + seen + ' is not what was sent')
    for (let i = 8; i < view.length; i++) sum = (Math.imul(sum, 31) + view[i]) | 0
    return ++seen
  }`
const streamUrl = `data:text/javascript,${encodeURIComponent(STREAM)}`
const fromStream = `const { TOTAL, next, check } = await import(${JSON.stringify(streamUrl)});`

test('a million records from a child, by iteration, with numbers and a checksum', async (t) => {
  const ring = open({ capacity: 1 << 18 })
  openChild(
    t,
    `${fromStream}${attach}
    const producer = ring.producer({ batch: true })
    for (let n = 0; n < TOTAL; n++) {
      const record = next(n)
      if (!producer.tryPush(record)) await producer.push(record)
    }
    ring.close()`,
    ring.fds,
  )
  const { TOTAL, check } = await import(streamUrl)
  let count = 0
  for await (const record of ring.consumer()) count = check(record)
  assert.equal(count, TOTAL)
})

test('a million records to a child that reads them in place', async (t) => {
  const ring = open({ capacity: 1 << 18 })
  const child = openChild(
    t,
    `${fromStream}${attach}
    const consumer = ring.consumer()
    let count = 0
    try {
      for (;;) {
        count = check(await consumer.pop())
        while (consumer.read(100, (view) => { count = check(view) }) > 0);
      }
    } catch (error) {
      console.log(count + ' ' + error.code)
    }`,
    ring.fds,
  )
  const { TOTAL, next } = await import(`${streamUrl}//2`)
  const producer = ring.producer()
  for (let n = 0; n < TOTAL; n++) await producer.push(next(n))
  ring.close()
  assert.equal(await child.line(), `${TOTAL} ERR_OFFLOOP_CLOSED`)
})

for (const way of ['mapped', 'native']) {
  const force = way === 'native' ? "(await import('node:module')).createRequire(entry)('./native.cjs').forbidExternal();" : ''
  const prelude = `const entry = ${JSON.stringify(entryUrl)};${force}${attach}`

  test(`kill -9 of a ${way} producer: what it published is delivered, then its death is told`, async (t) => {
    for (let round = 0; round < 6; round++) {
      const ring = open({ capacity: 1 << 16 })
      const child = openChild(
        t,
        `${prelude}${fromStream}
        const producer = ring.producer({ batch: ${round % 2 === 1} })
        console.log('up')
        for (let n = 0; ; n++) await producer.push(next(n))`,
        ring.fds,
      )
      await child.line()
      const { check } = await import(`${streamUrl}//${way}${round}`)
      const consumer = ring.consumer()
      let count = 0
      const error = await rejection(
        (async () => {
          for await (const record of consumer) {
            count = check(record)
            if (count === 2000 + round * 5000) child.kill('SIGKILL')
          }
        })(),
      )
      assert.equal(error.code, 'ERR_OFFLOOP_PEER_DIED')
      assert.ok(count >= 2000)
      // A successor of the dead one begins where it published.
      const next = ring.producer()
      next.tryPush(Uint8Array.of(1, 2, 3))
      assert.deepEqual(await consumer.pop(), Uint8Array.of(1, 2, 3))
    }
  })

  test(`kill -9 of a ${way} consumer: a producer that needs room is told, a successor gets the rest`, async (t) => {
    for (let round = 0; round < 4; round++) {
      const ring = open({ capacity: 1 << 16 })
      const child = openChild(
        t,
        `${prelude}
        const consumer = ring.consumer()
        console.log('up')
        const view = await consumer.pop()
        for (let n = 0; n < ${500 * round}; n++) await consumer.pop()
        while (consumer.read(1, () => process.kill(process.pid, 'SIGKILL')) === 0) await new Promise(setImmediate)`,
        ring.fds,
      )
      await child.line()
      const producer = ring.producer()
      let n = 0
      const error = await rejection(
        (async () => {
          for (; ; n++) await producer.push(new Uint8Array(new Uint32Array([n, 0, 0]).buffer))
        })(),
      )
      assert.equal(error.code, 'ERR_OFFLOOP_PEER_DIED')
      const seen = []
      const again = []
      const consumer = ring.consumer()
      while (
        consumer.read(1000, (view, redelivered) => {
          seen.push(new DataView(view.buffer, view.byteOffset).getUint32(0, true))
          if (redelivered) again.push(seen.at(-1))
        }) > 0
      );
      assert.equal(seen.at(-1), n - 1, 'the last one pushed')
      assert.deepEqual(
        seen,
        seen.map((_, i) => seen[0] + i),
      )
      assert.ok(seen[0] <= 1 + 500 * round, 'none is lost')
      assert.deepEqual(again.at(-1), 1 + 500 * round, 'those that the dead one saw are marked, and no others')
    }
  })
}

test('what a dead consumer saw stays marked when its successor dies as well', async (t) => {
  const ring = open()
  const producer = ring.producer()
  for (let n = 0; n < 5; n++) producer.tryPush(Uint8Array.of(n))
  for (const last of [3, 1]) {
    const child = openChild(
      t,
      `${attach} ring.consumer().read(9, ([n]) => n === ${last} && process.kill(process.pid, 'SIGKILL'))`,
      ring.fds,
    )
    assert.deepEqual(await child.exited, [null, 'SIGKILL'])
  }
  const marks = []
  ring.consumer().read(9, (_, redelivered) => marks.push(redelivered))
  assert.deepEqual(marks, [true, true, true, true, false])
})

test('a stopped producer is not a dead one', async (t) => {
  const ring = open()
  const child = openChild(
    t,
    `${attach} const producer = ring.producer(); console.log('up'); for (let n = 0; ; n++) { await producer.push(Uint8Array.of(n)); await new Promise(setImmediate) }`,
    ring.fds,
  )
  await child.line()
  const consumer = ring.consumer()
  await consumer.pop()
  child.kill('SIGSTOP')
  await until(() => readFileSync(`/proc/${child.pid}/stat`, 'latin1').includes(') T '))
  while (consumer.tryPop() !== null);
  let ended = false
  const pop = consumer.pop().finally(() => (ended = true))
  for (let i = 0; i < 2000; i++) await turn()
  assert.equal(ended, false)
  child.kill('SIGCONT')
  assert.equal((await pop).length, 1)
})

test('a waiting consumer hears of a death that nothing else announces', async (t) => {
  const ring = open()
  const child = openChild(t, `${attach} globalThis.producer = ring.producer(); console.log('up'); ${forever}`, ring.fds)
  await child.line()
  const pop = rejection(ring.consumer().pop())
  await turn()
  child.kill('SIGKILL')
  assert.equal((await pop).code, 'ERR_OFFLOOP_PEER_DIED')
})

for (const [how, end] of Object.entries({
  'an empty loop': '',
  'process.exit': 'process.exit(0)',
  'an exception': "process.on('uncaughtException', () => process.exit(0)); throw new Error('on purpose')",
})) {
  test(`a process that ends by ${how} has published what it committed, and leaves its seats`, async (t) => {
    const [out, back] = [open(), open()]
    const own = back.producer()
    for (let i = 0; i < 5; i++) own.tryPush(Uint8Array.of(i))
    const child = openChild(
      t,
      `const out = RingBuffer.attach([3, 4, 5]).producer({ batch: true })
      const back = RingBuffer.attach([6, 7, 8]).consumer()
      back.tryPop()
      back.tryPop()
      process.on('exit', () => out.tryPush(Uint8Array.of(2)))
      out.tryPush(Uint8Array.of(1))
      ${end}`,
      [...out.fds, ...back.fds],
    )
    assert.deepEqual(await child.exited, [0, null])
    const consumer = out.consumer()
    assert.deepEqual([consumer.tryPop(), consumer.tryPop()], [Uint8Array.of(1), Uint8Array.of(2)])
    // A seat that was left says nothing; one whose owner died would.
    for (let i = 0; i < 200; i++) assert.equal(consumer.tryPop(), null)
    const marks = []
    back.consumer().read(9, (view, redelivered) => marks.push([view[0], redelivered]))
    assert.deepEqual(marks, [
      [2, false],
      [3, false],
      [4, false],
    ])
  })
}

const thread = (code, workerData) =>
  new Worker(
    new URL(
      `data:text/javascript,${encodeURIComponent(`import { workerData, parentPort } from 'node:worker_threads'
      import { RingBuffer } from ${JSON.stringify(entryUrl)}
      ${code}`)}`,
    ),
    { workerData },
  )

test('worker threads, both ways', async () => {
  const [there, back] = [open({ capacity: 1 << 16 }), open({ capacity: 1 << 16 })]
  const worker = thread(
    `const there = RingBuffer.attach(workerData.there).consumer()
    const back = RingBuffer.attach(workerData.back).producer()
    for await (const record of there) await back.push(record.map((byte) => byte ^ 255))`,
    { there: there.fds, back: back.fds },
  )
  const exited = once(worker, 'exit')
  const producer = there.producer()
  const consumer = back.consumer()
  const total = 20_000
  const send = async () => {
    for (let i = 0; i < total; i++) await producer.push(Uint8Array.of(i, i >> 8))
    there.close()
  }
  const sent = send()
  for (let i = 0; i < total; i++) {
    const [low, high] = await consumer.pop()
    if ((low ^ 255) !== (i & 255) || (high ^ 255) !== i >> 8) assert.fail(`record ${i}`)
  }
  await sent
  assert.deepEqual(await exited, [0])
})

test('a terminated thread leaves its seat, with what it committed', async () => {
  for (let round = 0; round < 5; round++) {
    const ring = open()
    const worker = thread(
      `const producer = RingBuffer.attach(workerData).producer({ batch: true })
      producer.tryPush(new Uint8Array(9))
      parentPort.postMessage('up')
      setInterval(() => producer.closed, 1000)`,
      ring.fds,
    )
    await once(worker, 'message')
    assert.equal(await worker.terminate(), 1)
    assert.equal((await ring.consumer().pop()).length, 9)
    ring.producer().close()
  }
})

test('a thread can be terminated in a wait, and threads come and go without a trace', async () => {
  const ring = open()
  for (let round = 0; round < 10; round++) {
    const worker = thread(
      "const consumer = RingBuffer.attach(workerData).consumer(); consumer.pop(); parentPort.postMessage('up')",
      ring.fds,
    )
    await once(worker, 'message')
    await worker.terminate()
  }
  const consumer = ring.consumer()
  ring.producer().tryPush(Uint8Array.of(1))
  assert.deepEqual(await consumer.pop(), Uint8Array.of(1))
})

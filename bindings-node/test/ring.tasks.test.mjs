// Task queues: rings of the kind mpmc, whose records are acknowledged.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { Delivery, RingBuffer } from '../lib/index.mjs'
import { nativeCalls } from './rings.mjs'
import { entryUrl, openChild, rejection, script, until } from './support.mjs'

const open = (options) => RingBuffer.create({ kind: 'mpmc', capacity: 4096, slotSize: 64, maxParticipants: 6, ...options })
const manual = (ring) => ring.consumer({ ack: 'manual' })
const throws = (act, code, message = /./) => assert.throws(act, (error) => error.code === code && message.test(error.message))
const attach = 'const ring = RingBuffer.attach([3, 4, 5, 6, 7, 8, 9]);'

test('each record goes to one consumer, and comes again until it is acknowledged', () => {
  const ring = open()
  const [producer, a, b, plain] = [ring.producer(), manual(ring), manual(ring), ring.consumer()]
  assert.deepEqual([ring.kind, ring.slotSize, ring.maxRecordLength], ['mpmc', 64, 48])
  for (const n of [1, 2, 3]) assert.equal(producer.tryPush(Uint8Array.of(n)), true)
  const [one, two] = [a.tryPop(), b.tryPop()]
  assert.ok(one instanceof Delivery && two instanceof Delivery)
  assert.deepEqual([one.bytes, one.redelivered, two.bytes], [Uint8Array.of(1), false, Uint8Array.of(2)])
  one.nack()
  for (const end of ['ack', 'nack']) throws(() => one[end](), 'ERR_OFFLOOP_INVALID', /delivery/)
  const again = b.tryPop()
  assert.deepEqual([again.bytes, again.redelivered], [Uint8Array.of(1), true])
  again.ack()
  throws(() => again.ack(), 'ERR_OFFLOOP_INVALID')
  assert.deepEqual(plain.tryPop(), Uint8Array.of(3))
  b.close()
  throws(() => two.ack(), 'ERR_OFFLOOP_CLOSED')
  assert.deepEqual(plain.tryPop(), Uint8Array.of(2), 'who leaves gives back')
  assert.equal(a.tryPop(), null)
  assert.throws(() => new Delivery(), { code: 'ERR_OFFLOOP_INVALID' })
})

test('a record that does not fit a slot names the slot', async () => {
  const producer = open().producer()
  const long = new Uint8Array(49)
  throws(() => producer.tryPush(long), 'ERR_OFFLOOP_TOO_LARGE', /slot_size=64/)
  assert.equal((await rejection(producer.push(long))).code, 'ERR_OFFLOOP_TOO_LARGE')
  throws(() => producer.claim(49, assert.fail), 'ERR_OFFLOOP_TOO_LARGE')
  assert.equal(
    producer.claim(48, (view) => view.fill(7)),
    true,
  )
})

test('pop and iteration wait, and read shows deliveries', async () => {
  const ring = open()
  const [producer, consumer] = [ring.producer(), manual(ring)]
  const popped = consumer.pop()
  await turn()
  producer.tryPush(Uint8Array.of(1))
  const first = await popped
  assert.deepEqual(first.bytes, Uint8Array.of(1))
  first.nack()
  const seen = []
  assert.equal(
    consumer.read(8, (delivery, redelivered) => {
      seen.push([delivery.bytes[0], redelivered, delivery.redelivered])
      delivery.ack()
    }),
    1,
  )
  assert.deepEqual(seen, [[1, true, true]])
  const rest = (async () => {
    const all = []
    for await (const delivery of consumer) {
      all.push(delivery.bytes[0])
      await turn()
      delivery.ack()
    }
    return all
  })()
  for (const n of [2, 3, 4]) await producer.push(Uint8Array.of(n))
  ring.close()
  assert.deepEqual(await rest, [2, 3, 4])
})

test('a consumer has 128 records in flight, and waits for an acknowledgement', async () => {
  const ring = open({ capacity: 1 << 16 })
  const [producer, consumer] = [ring.producer(), manual(ring)]
  for (let n = 0; n < 200; n++) await producer.push(Uint8Array.of(n))
  const taken = []
  for (let one = consumer.tryPop(); one !== null; one = consumer.tryPop()) taken.push(one)
  assert.equal(taken.length, 128)
  const next = consumer.pop()
  assert.equal((await rejection(consumer.pop({ timeout: 5 }))).code, 'ERR_OFFLOOP_TIMEOUT')
  taken[7].ack()
  assert.deepEqual((await next).bytes, Uint8Array.of(128))
})

test('a push waits for a slot while a kept record holds up nobody', async () => {
  const ring = open()
  const [producer, keeper, consumer] = [ring.producer(), manual(ring), ring.consumer()]
  await producer.push(Uint8Array.of(255))
  const kept = keeper.tryPop()
  for (let round = 0; round < 5; round++) {
    let pushed = 0
    while (producer.tryPush(Uint8Array.of(pushed))) pushed++
    assert.ok(pushed >= 62)
    const waits = producer.push(Uint8Array.of(pushed))
    for (let n = 0; n <= pushed; n++) assert.deepEqual(await consumer.pop(), Uint8Array.of(n))
    await waits
  }
  kept.ack()
})

test('a closed ring ends when no other has a record that could come back', async () => {
  const ring = open()
  const [producer, a, b] = [ring.producer(), manual(ring), ring.consumer()]
  producer.tryPush(Uint8Array.of(1))
  const one = a.tryPop()
  ring.close()
  assert.equal((await rejection(a.pop())).code, 'ERR_OFFLOOP_CLOSED')
  assert.equal(b.tryPop(), null)
  const end = rejection(b.pop())
  await turn()
  one.ack()
  assert.equal((await end).code, 'ERR_OFFLOOP_CLOSED')
})

test('threads and processes share the tasks; one that is killed loses none', async (t) => {
  const ring = open()
  const [producer, own] = [ring.producer(), manual(ring)]
  const keeper = openChild(
    t,
    `${attach}
    const consumer = ring.consumer({ ack: 'manual' })
    const mine = [await consumer.pop(), await consumer.pop()]
    console.log(mine.map((one) => one.bytes[0]).join())
    setInterval(() => {}, 1000)`,
    ring.fds,
  )
  for (const n of [0, 1]) await producer.push(Uint8Array.of(n))
  assert.equal(await keeper.line(), '0,1')
  const worker = new Worker(
    `const { workerData, parentPort } = require('node:worker_threads')
    import(${JSON.stringify(entryUrl)}).then(async ({ RingBuffer }) => {
      const seen = []
      for await (const one of RingBuffer.attach(workerData).consumer({ ack: 'manual' })) {
        seen.push([one.bytes[0], one.redelivered])
        one.ack()
      }
      parentPort.postMessage(seen)
    })`,
    { eval: true, workerData: ring.fds },
  )
  const fromWorker = once(worker, 'message')
  const seen = []
  const mine = (async () => {
    for await (const one of own) {
      seen.push([one.bytes[0], one.redelivered])
      one.ack()
    }
  })()
  for (let n = 2; n < 100; n++) await producer.push(Uint8Array.of(n))
  keeper.kill('SIGKILL')
  ring.close()
  await mine
  const all = [...seen, ...(await fromWorker)[0]].sort(([a], [b]) => a - b)
  assert.deepEqual(
    all,
    Array.from({ length: 100 }, (_, n) => [n, n < 2]),
  )
})

for (const ack of ['auto', 'manual']) {
  const bytesOf = (one) => [...(ack === 'manual' ? one.bytes : one)]
  const taken = (one) => {
    if (ack === 'manual') one.ack()
  }

  test(`read takes many in one call, in order (${ack})`, () => {
    const ring = open({ capacity: 1 << 16 })
    const [producer, consumer] = [ring.producer(), ring.consumer({ ack })]
    for (let n = 0; n < 200; n++) producer.tryPush(new Uint8Array(n % 49).fill(n))
    const seen = []
    const see = (one, redelivered) => {
      assert.equal(redelivered, false)
      seen.push(bytesOf(one))
      taken(one)
    }
    let rounds = 0
    const calls = nativeCalls(['consumerPop', 'consumerRead', 'consumerReadDone', 'consumerTake', 'consumerShow'], () => {
      for (; seen.length < 200; rounds++) assert.ok(consumer.read(100, see) > 0)
    })
    assert.deepEqual(
      seen,
      Array.from({ length: 200 }, (_, n) => new Array(n % 49).fill(n)),
    )
    assert.ok(rounds <= 4 && calls <= 14, `${rounds} rounds, ${calls} calls`)
    assert.equal(consumer.read(1, assert.fail), 0)
  })

  test(`what a read does not come to goes to others (${ack})`, () => {
    const ring = open()
    const [producer, consumer, other] = [ring.producer(), ring.consumer({ ack }), manual(ring)]
    const fill = () => {
      for (let n = 0; n < 10; n++) producer.tryPush(Uint8Array.of(n))
    }
    const rest = () => {
      const all = []
      for (let one = other.tryPop(); one !== null; one = other.tryPop()) {
        all.push([one.bytes[0], one.redelivered])
        one.ack()
      }
      return all.sort(([a], [b]) => a - b)
    }
    const marked = (...numbers) => numbers.map((n) => [n, true])
    fill()
    const stopAt = (last, stop) => (one) => {
      const [n] = bytesOf(one)
      taken(one)
      if (n === last) stop()
    }
    assert.throws(
      () =>
        consumer.read(
          6,
          stopAt(2, () => assert.fail('on purpose')),
        ),
      /on purpose/,
    )
    assert.deepEqual(rest(), [...marked(3, 4, 5), [6, false], [7, false], [8, false], [9, false]])
    fill()
    assert.equal(
      consumer.read(
        8,
        stopAt(4, () => consumer.close()),
      ),
      5,
    )
    assert.deepEqual(rest(), [...marked(5, 6, 7), [8, false], [9, false]])
  })

  test(`a process that ends in the middle of a read gives the rest to others (${ack})`, async (t) => {
    for (const [how, end, exit] of [
      ['exit', 'process.exit(0)', [0, null]],
      ['kill -9', "process.kill(process.pid, 'SIGKILL')", [null, 'SIGKILL']],
    ]) {
      const ring = open()
      const producer = ring.producer()
      for (let n = 0; n < 8; n++) producer.tryPush(Uint8Array.of(n))
      const child = openChild(
        t,
        `${attach}
        ring.consumer({ ack: '${ack}' }).read(6, (one) => {
          const [n] = ${ack === 'manual' ? 'one.bytes' : 'one'}
          ${ack === 'manual' ? 'one.ack()' : ''}
          if (n === 2) ${end}
        })`,
        ring.fds,
      )
      assert.deepEqual(await child.exited, exit)
      const all = []
      const consumer = manual(ring)
      await until(() => {
        for (let one = consumer.tryPop(); one !== null; one = consumer.tryPop()) {
          all.push([one.bytes[0], one.redelivered])
          one.ack()
        }
        return all.length > 0 && all.some(([n]) => n === 7) && all.some(([n]) => n === 5)
      })
      // Who is killed had not let go of what it saw either; what it acknowledged is acknowledged.
      const from = how === 'kill -9' && ack === 'auto' ? 0 : 3
      const expected = Array.from({ length: 8 - from }, (_, i) => [from + i, from + i < 6])
      assert.deepEqual(
        all.sort(([a], [b]) => a - b),
        expected,
        how,
      )
    }
  })
}

test('without external memory tasks come one native call each, and nothing else differs', async () => {
  const { code, out, err } = await script(`
    import { createRequire } from 'node:module'
    createRequire(offloopUrl)('./native.cjs').forbidExternal()
    const { RingBuffer } = await import(offloopUrl)
    const ring = RingBuffer.create({ kind: 'mpmc', capacity: 4096 })
    const [producer, auto, manual] = [ring.producer(), ring.consumer(), ring.consumer({ ack: 'manual' })]
    for (let n = 0; n < 6; n++) producer.tryPush(Uint8Array.of(n))
    const seen = [auto.tryPop()[0], (await manual.pop()).bytes[0]]
    auto.read(2, ([n]) => seen.push(n))
    manual.read(9, (one) => { seen.push(one.bytes[0]); one.ack() })
    console.log(seen.join())
  `)
  assert.deepEqual([code, out, err], [0, '0,1,2,3,4,5\n', ''])
})

// Rings with several producers or several consumers, through every way to a lane: typed arrays, and a native call per record.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { RingBuffer } from '../lib/index.mjs'
import { by, drain, layout, mapping, nativeCalls, record, seatWord, throws, WAYS } from './rings.mjs'
import { random, rejection, script } from './support.mjs'

const open = (options) => RingBuffer.create({ capacity: 4096, maxParticipants: 4, ...options })
const mpsc = (options) => open({ kind: 'mpsc', ...options })
const broadcast = (options) => open({ kind: 'broadcast', ...options })
const overwriting = (options) => broadcast({ onFull: 'overwrite', ...options })

/** Number `n` of producer `who`, `length` bytes or more, told from every other. */
function numbered(who, n, length = 0) {
  const bytes = record(Math.max(8, length), n)
  new DataView(bytes.buffer).setUint32(0, who, true)
  new DataView(bytes.buffer).setUint32(4, n, true)
  return bytes
}

function numberOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const [who, n] = [view.getUint32(0, true), view.getUint32(4, true)]
  assert.deepEqual(new Uint8Array(bytes), numbered(who, n, bytes.length))
  return [who, n]
}

for (const [writes, reads] of WAYS) {
  describe(`mpsc: ${writes} producers, ${reads} consumer`, () => {
    test('any sequence of calls gives each producer’s records, whole and in its order', () => {
      for (let seed = 1; seed <= 4; seed++) {
        const below = random(seed)
        const ring = mpsc()
        const writer = by(writes, ring)
        const producers = [0, 1, 2].map((who) => writer.open((own) => own.producer({ batch: (seed + who) % 2 === 0 })))
        const consumer = by(reads, ring).open((own) => own.consumer())
        const sent = [0, 0, 0]
        const seen = [0, 0, 0]
        const see = (bytes) => {
          const [who, n] = numberOf(bytes)
          assert.equal(n, seen[who]++, `seed ${seed}`)
        }
        for (let step = 0; step < 6000; step++) {
          const who = below(3)
          const call = below(8)
          const one = numbered(who, sent[who], below(12) === 0 ? below(2041) : below(150))
          if (call < 4) {
            if (producers[who].tryPush(one)) sent[who]++
          } else if (call === 4) {
            if (producers[who].claim(one.length, (view) => view.set(one))) sent[who]++
          } else if (call === 5) {
            producers[who].flush()
          } else if (call === 6) {
            const popped = consumer.tryPop()
            if (popped !== null) see(popped)
          } else {
            consumer.read(below(40), see)
          }
        }
        for (const producer of producers) producer.flush()
        drain(consumer).forEach(see)
        assert.deepEqual(seen, sent)
        assert.ok(Math.min(...sent) > 500, `${sent}`)
      }
    })

    test('a producer that floods takes turns with the others', () => {
      const ring = mpsc()
      const [flood, other] = [0, 1].map(() => by(writes, ring).open((own) => own.producer()))
      const consumer = by(reads, ring).open((own) => own.consumer())
      const order = []
      const pushed = [0, 0]
      for (let n = 0; n < 120; n++) if (flood.tryPush(numbered(0, n))) pushed[0]++
      for (let n = 0; n < 3; n++) if (other.tryPush(numbered(1, n))) pushed[1]++
      for (const one of drain(consumer)) order.push(numberOf(one)[0])
      assert.deepEqual(pushed, [120, 3])
      assert.equal(order.indexOf(1), 32)
      assert.equal(order.lastIndexOf(1), 34)
    })

    test('a full lane holds up its own producer only, and each wait is served', async () => {
      const ring = mpsc()
      const [a, b] = [0, 1].map(() => by(writes, ring).open((own) => own.producer()))
      const consumer = by(reads, ring).open((own) => own.consumer())
      while (a.tryPush(record(1000, 1)));
      assert.equal(b.tryPush(record(5, 2)), true)
      const waits = [a.push(record(1000, 3)), b.push(record(6, 4))]
      await waits[1]
      const lengths = []
      for (let i = 0; i < 7; i++) lengths.push((await consumer.pop()).length)
      await waits[0]
      lengths.push(...drain(consumer).map((one) => one.length))
      assert.deepEqual(
        lengths.filter((length) => length < 10),
        [5, 6],
      )
      assert.ok(lengths.filter((length) => length === 1000).length >= 4)
    })

    test('waits of all, at any moment of arming', async () => {
      const ring = mpsc()
      const producers = [0, 1, 2].map(() => by(writes, ring).open((own) => own.producer()))
      const consumer = by(reads, ring).open((own) => own.consumer())
      const below = random(3)
      const total = 1500
      const sent = producers.map(async (producer, who) => {
        for (let n = 0; n < total; n++) {
          await producer.push(numbered(who, n, below(100)))
          if (below(4) === 0) await turn()
        }
      })
      const next = [0, 0, 0]
      for (let i = 0; i < 3 * total; i++) {
        const [who, n] = numberOf(await consumer.pop())
        assert.equal(n, next[who]++)
      }
      await Promise.all(sent)
      ring.close()
      assert.equal((await rejection(consumer.pop())).code, 'ERR_OFFLOOP_CLOSED')
      throws(() => producers[0].tryPush(record(1, 1)), 'ERR_OFFLOOP_CLOSED')
    })

    test('successors go on where their predecessors stood', () => {
      const ring = mpsc()
      const [writer, reader] = [by(writes, ring), by(reads, ring)]
      const below = random(5)
      const take = () => [0, 1, 2].map(() => writer.open((own) => own.producer({ batch: true })))
      let producers = take()
      let consumer = reader.open((own) => own.consumer())
      const sent = [0, 0, 0]
      const seen = [0, 0, 0]
      while (Math.min(...seen) < 300) {
        producers.forEach((producer, who) => {
          for (let i = below(15); i > 0; i--) if (producer.tryPush(numbered(who, sent[who], below(90)))) sent[who]++
        })
        if (below(5) === 0) {
          for (const producer of producers) producer.close()
          producers = take()
        }
        consumer.read(below(60), (view, redelivered) => {
          const [who, n] = numberOf(view)
          assert.deepEqual([n, redelivered], [seen[who]++, false])
        })
        if (below(3) === 0) {
          consumer.close()
          consumer = reader.open((own) => own.consumer())
        }
      }
    })
  })

  describe(`broadcast: ${writes} producer, ${reads} consumers`, () => {
    test('every consumer gets every record from its coming on, whatever the calls', () => {
      for (let seed = 1; seed <= 4; seed++) {
        const below = random(seed)
        const ring = broadcast()
        const reader = by(reads, ring)
        const producer = by(writes, ring).open((own) => own.producer({ batch: seed % 2 === 0 }))
        let sent = 0
        const readers = []
        for (let step = 0; step < 6000; step++) {
          const call = below(10)
          if (call < 5) {
            const one = numbered(0, sent, below(12) === 0 ? below(2041) : below(150))
            if (below(3) > 0 ? producer.tryPush(one) : producer.claim(one.length, (view) => view.set(one))) sent++
          } else if (call === 5) {
            producer.flush()
          } else if (call === 6 && readers.length < 3 && below(4) === 0) {
            producer.flush()
            readers.push({ consumer: reader.open((own) => own.consumer()), next: sent })
          } else if (call === 7 && readers.length > 0 && below(20) === 0) {
            readers.splice(below(readers.length), 1)[0].consumer.close()
          } else if (readers.length > 0) {
            const one = readers[below(readers.length)]
            one.consumer.read(below(20), (view) => assert.equal(numberOf(view)[1], one.next++))
          }
        }
        producer.flush()
        for (const one of readers) {
          for (const bytes of drain(one.consumer)) assert.equal(numberOf(bytes)[1], one.next++)
          assert.equal(one.next, sent, `seed ${seed}`)
        }
        assert.ok(sent > 1500 && readers.length > 0, `${sent} ${readers.length}`)
      }
    })

    test('the slowest consumer holds the producer, until it reads on or leaves', async () => {
      const ring = broadcast()
      const reader = by(reads, ring)
      const [slow, fast] = [0, 1].map(() => reader.open((own) => own.consumer()))
      const producer = by(writes, ring).open((own) => own.producer())
      let sent = 0
      while (producer.tryPush(record(1000, sent))) sent++
      assert.equal(drain(fast).length, sent)
      assert.equal(producer.tryPush(record(1000, sent)), false)
      const pushed = producer.push(record(1000, sent))
      assert.deepEqual(await slow.pop(), record(1000, 0))
      await pushed
      while (producer.tryPush(record(1000, 9)));
      const waits = producer.push(record(1000, 9))
      drain(fast)
      slow.close()
      await waits
    })

    test('all wait, and all are woken', async () => {
      const ring = broadcast()
      const readers = [0, 1, 2].map(() => by(reads, ring).open((own) => own.consumer()))
      const producer = by(writes, ring).open((own) => own.producer())
      const below = random(9)
      const total = 1500
      const read = async (consumer) => {
        let next = 0
        for await (const bytes of consumer) {
          assert.equal(numberOf(bytes)[1], next++)
          if (next % 97 === 0) await turn()
        }
        return next
      }
      const done = readers.map(read)
      for (let n = 0; n < total; n++) {
        await producer.push(numbered(0, n, below(200)))
        if (below(5) === 0) await turn()
      }
      ring.close()
      assert.deepEqual(await Promise.all(done), [total, total, total])
    })
  })

  describe(`broadcast that overwrites: ${writes} producer, ${reads} consumers`, () => {
    test('what comes is whole and in order, and what was lost is counted', () => {
      for (let seed = 1; seed <= 6; seed++) {
        const below = random(seed)
        const ring = overwriting()
        const reader = by(reads, ring)
        let producer = by(writes, ring).open((own) => own.producer({ batch: seed % 2 === 0 }))
        let sent = 0
        const readers = [0, 1, 2].map(() => ({ consumer: reader.open((own) => own.consumer()), next: 0, got: 0 }))
        for (let step = 0; step < 5000; step++) {
          if (below(3) > 0) {
            const one = numbered(0, sent, below(12) === 0 ? below(2041) : below(150))
            assert.ok(below(3) > 0 ? producer.tryPush(one) : producer.claim(one.length, (view) => view.set(one)), 'never full')
            sent++
          }
          // One that keeps up, one that is lapped now and then, one that is lapped often.
          readers.forEach((one, pace) => {
            if (pace > 0 && below(30 * pace) > 0) return
            const see = (bytes) => {
              const [, n] = numberOf(bytes)
              assert.ok(n >= one.next, `seed ${seed}: ${n} after ${one.next}`)
              one.next = n + 1
              one.got++
            }
            if (below(2) === 0) one.consumer.read(below(60), see)
            else drain(one.consumer).forEach(see)
          })
          if (below(1000) === 0) {
            producer.close()
            producer = by(writes, ring).open((own) => own.producer({ batch: seed % 2 === 0 }))
          }
        }
        producer.flush()
        for (const one of readers) {
          one.got += drain(one.consumer).length
          assert.equal(one.got + one.consumer.lost, sent, `seed ${seed}`)
        }
        assert.ok(readers[0].consumer.lost < readers[2].consumer.lost, 'the slow one lost more')
      }
    })

    test('a consumer that sleeps is woken, and one that comes late begins with the oldest record that is there', async () => {
      const ring = overwriting()
      const reader = by(reads, ring)
      const consumer = reader.open((own) => own.consumer())
      const producer = by(writes, ring).open((own) => own.producer())
      for (let n = 0; n < 300; n++) {
        const popped = consumer.pop()
        if (n % 3 === 0) await turn()
        producer.tryPush(numbered(0, n, 100))
        assert.equal(numberOf(await popped)[1], n)
      }
      const late = reader.open((own) => own.consumer())
      const all = drain(late).map((bytes) => numberOf(bytes)[1])
      assert.equal(all.at(-1), 299)
      assert.ok(all.length > 30)
    })
  })
}

test('consumers that come later are woken, by a producer with a batch too', async () => {
  for (const options of [{}, { onFull: 'overwrite' }]) {
    for (const batch of [false, true]) {
      const ring = broadcast(options)
      const producer = ring.producer({ batch })
      for (let n = 0; n < 3; n++) {
        producer.tryPush(numbered(0, n))
        producer.flush()
        const consumer = ring.consumer()
        drain(consumer)
        const popped = consumer.pop()
        await turn()
        producer.tryPush(numbered(0, n + 100))
        if (batch) producer.flush()
        assert.equal(numberOf(await popped)[1], n + 100)
        consumer.close()
      }
      // Who sleeps gains nothing from a batch; the list of readers is known by now.
      const consumer = ring.consumer()
      producer.tryPush(numbered(0, 7))
      producer.flush()
      drain(consumer)
      const popped = consumer.pop()
      await turn()
      producer.tryPush(numbered(0, 8))
      assert.equal(numberOf(await popped)[1], 8)
    }
  }
})

test('a consumer that slept while the position went round once is not fooled', () => {
  const ring = overwriting()
  const consumer = ring.consumer()
  const producer = ring.producer()
  const half = new Uint8Array(ring.maxRecordLength)
  const round = 2 ** 32 / (half.length + layout.recordHeader)
  for (let n = 0; n < 2; n++) producer.tryPush(half)
  assert.equal(drain(consumer).length, 2)
  for (let n = 0; n <= round; n++) producer.tryPush(half)
  assert.equal(drain(consumer).length + consumer.lost, round + 1)
})

const traces = JSON.parse(readFileSync(new URL('../../tests/vectors/ring/traces.json', import.meta.url))).traces

for (const { kind, on_full: onFull, batch, capacity, readers, writers, start, starts, at, steps } of traces) {
  test(`each step of ${kind} (${onFull}${batch ? ', batch' : ''}) leaves the words that the vectors have`, () => {
    for (const [writes, reads] of WAYS) {
      const ring = RingBuffer.create({ kind, onFull, capacity, maxParticipants: readers + writers })
      const { words } = mapping(ring)
      for (const offset of starts) words[offset >> 2] = start
      const ends = [
        ...Array.from({ length: readers }, () => by(reads, ring).open((own) => own.consumer())),
        ...Array.from({ length: writers }, () => by(writes, ring).open((own) => own.producer({ batch }))),
      ]
      steps.forEach((step, i) => {
        const label = `${writes} ${reads} step ${i}`
        if (step.push !== undefined) {
          assert.equal(ends[step.by].tryPush(new Uint8Array(step.push).fill(step.push)), step.pushed, label)
        } else {
          const popped = ends[step.by].tryPop()
          assert.equal(popped?.length ?? null, step.pop, label)
          assert.ok(popped === null || popped.every((byte) => byte === (step.pop & 255)), label)
        }
        for (const [name, value] of Object.entries(step.words)) assert.equal(words[at[name] >> 2] >>> 0, value, `${label}: ${name}`)
      })
    }
  })
}

const HOT = ['producerTryPush', 'producerClaim', 'consumerFind', 'consumerTake', 'consumerShow', 'ringWake']

test('the typed arrays are the path of every kind that has lanes', () => {
  for (const [ring, writers, readers] of [
    [mpsc({ capacity: 1 << 16 }), 3, 1],
    [broadcast({ capacity: 1 << 16 }), 1, 3],
    [overwriting({ capacity: 1 << 16 }), 1, 3],
  ]) {
    const producers = Array.from({ length: writers }, () => ring.producer())
    const consumers = Array.from({ length: readers }, () => ring.consumer())
    const rounds = 500
    const calls = nativeCalls(HOT, () => {
      for (let round = 0; round < rounds; round++) {
        for (const producer of producers) for (let i = 0; i < 10; i++) assert.ok(producer.tryPush(record(50, i)))
        for (const consumer of consumers) {
          let left = 10 * writers
          for (; left > 5; left--) consumer.tryPop()
          assert.equal(
            consumer.read(left, () => {}),
            left,
          )
        }
      }
    })
    assert.ok(calls < rounds / 10, `${calls} calls for ${rounds * 10 * writers} records of ${ring.kind} ${ring.onFull}`)
  }
})

test('an overwriting producer makes no native call, however far its consumer is behind', () => {
  const ring = overwriting()
  const consumer = ring.consumer()
  const producer = ring.producer()
  const calls = nativeCalls(HOT, () => {
    for (let n = 0; n < 10_000; n++) producer.tryPush(numbered(0, n, n % 300))
  })
  assert.equal(calls, 0)
  const got = drain(consumer).map((bytes) => numberOf(bytes)[1])
  assert.equal(got.at(-1), 9999)
  assert.equal(got.length + consumer.lost, 10_000)
})

/** What a peer may do to the words of a lane, and who finds out. `header` is the first record's. */
const DAMAGES = {
  'a length over the ring': ({ words, header }) => (words[header] = 0x7fffffff),
  'a negative length': ({ words, header }) => (words[header] = -1),
  'a length over what was published': ({ words, header }) => (words[header] = 1000),
  'a kind that is none': ({ words, header }) => (words[header + 1] = 9),
  'a padding record that leads nowhere': ({ words, header }) => (words[header + 1] = layout.pad),
  'a tail beyond the lane': ({ words, tail }) => (words[tail] = 1 << 20),
  'a tail that is not aligned': ({ words, tail }) => (words[tail] += 3),
  'a tail behind the head': ({ words, tail }) => (words[tail] = -8),
}

test('bytes that cannot be are Corrupt, for everybody and for good', () => {
  for (const [kind, make, seat] of [
    ['mpsc', () => mpsc(), 2],
    ['broadcast', () => broadcast(), 0],
  ]) {
    for (const [what, scribble] of Object.entries(DAMAGES)) {
      const ring = make()
      const consumer = ring.consumer()
      const producers = kind === 'mpsc' ? [ring.producer(), ring.producer()] : [ring.producer()]
      // The second lane is damaged while the first one has something.
      for (const producer of producers) for (let n = 0; n < 40; n++) producer.tryPush(record(20, n))
      const { words, dataAt } = mapping(ring)
      scribble({ words, header: (dataAt + (producers.length - 1) * 4096) >> 2, tail: seatWord('tail', seat) })
      // The others are never drained meanwhile.
      const look = () => {
        for (let i = 0; i < 200 && consumer.tryPop() !== null; i++) if (kind === 'mpsc') producers[0].tryPush(record(20, i))
      }
      assert.throws(look, { code: 'ERR_OFFLOOP_CORRUPT' }, `${kind}: ${what}`)
      throws(() => consumer.read(1, assert.fail), 'ERR_OFFLOOP_CORRUPT')
      for (const producer of producers) throws(() => producer.tryPush(record(1, 1)), 'ERR_OFFLOOP_CORRUPT', /damaged/)
    }
  }
})

test('a reader of copies takes damage for damage, and a lap for a lap', () => {
  for (const [what, scribble] of Object.entries(DAMAGES)) {
    const ring = overwriting()
    const consumer = ring.consumer()
    const producer = ring.producer()
    for (let n = 0; n < 10; n++) producer.tryPush(numbered(0, n, 20))
    const { words, dataAt } = mapping(ring)
    scribble({ words, header: dataAt >> 2, tail: seatWord('tail', 0) })
    const look = () => {
      for (let i = 0; i < 20; i++) if (consumer.tryPop() === null) return 'ended'
    }
    if (what === 'a tail beyond the lane' || what === 'a tail behind the head') {
      // A writer that is a lap ahead looks the same: nothing that was overwritten is shown.
      assert.equal(look(), 'ended', what)
      assert.ok(consumer.lost > 0, what)
    } else {
      assert.throws(look, { code: 'ERR_OFFLOOP_CORRUPT' }, what)
      throws(() => producer.tryPush(record(1, 1)), 'ERR_OFFLOOP_CORRUPT', /damaged/)
    }
  }
})

test('a gate or a cursor that cannot be does not let a producer overwrite', () => {
  for (const lie of [8, -4, 4, 1 << 20]) {
    const ring = broadcast()
    ring.consumer()
    const producer = ring.producer()
    while (producer.tryPush(record(100, 1)));
    const { words } = mapping(ring)
    words[seatWord('head', 0)] = words[seatWord('tail', 0)] + lie
    throws(() => producer.tryPush(record(100, 1)), 'ERR_OFFLOOP_CORRUPT')
    const fast = overwriting()
    const writer = fast.producer()
    for (let n = 0; n < 100; n++) writer.tryPush(record(100, n))
    const { words: there } = mapping(fast)
    there[seatWord('head', 0)] = there[seatWord('tail', 0)] + lie
    throws(() => {
      for (let n = 0; n < 100; n++) writer.tryPush(record(100, n))
    }, 'ERR_OFFLOOP_CORRUPT')
  }
  // A record that is to be overwritten, and is none.
  const ring = overwriting()
  const producer = ring.producer()
  for (let n = 0; n < 20; n++) producer.tryPush(record(100, n))
  const { bytes, dataAt } = mapping(ring)
  bytes.fill(0xee, dataAt)
  throws(() => {
    for (let n = 0; n < 40; n++) producer.tryPush(record(100, n))
  }, 'ERR_OFFLOOP_CORRUPT')
})

test('hints of lanes that are not there cost nothing', () => {
  const ring = mpsc({ maxParticipants: 3 })
  const consumer = ring.consumer()
  const producers = [ring.producer(), ring.producer()]
  const { words } = mapping(ring)
  for (let n = 0; n < 300; n++) {
    words[layout.ready >> 2] = -1
    words[(layout.ready >> 2) + 1] = -1
    assert.equal(consumer.tryPop(), null)
    producers[n % 2].tryPush(numbered(0, n))
    assert.equal(numberOf(consumer.tryPop())[1], n)
  }
})

test('more lanes than bits in a word', () => {
  const ring = mpsc({ maxParticipants: 65 })
  const consumer = ring.consumer()
  const producers = Array.from({ length: 64 }, () => ring.producer())
  throws(() => ring.producer(), 'ERR_OFFLOOP_IN_USE')
  for (let round = 0; round < 200; round++) {
    const who = (round * 37) % 64
    producers[who].tryPush(numbered(who, round))
    producers[63 - who].tryPush(numbered(63 - who, round))
    const seen = drain(consumer).map((bytes) => numberOf(bytes)[0])
    assert.deepEqual(
      seen.toSorted((a, b) => a - b),
      [who, 63 - who].toSorted((a, b) => a - b),
    )
  }
})

for (const kind of ['spsc', 'mpsc', 'broadcast', 'overwrite']) {
  test(`a scribbler in another thread costs errors, neither the process nor an endless loop: ${kind}`, async () => {
    const { code, out, err } = await script(
      `
      import { createRequire } from 'node:module'
      import { Worker } from 'node:worker_threads'
      const native = createRequire(offloopUrl)('./native.cjs')
      const { RingBuffer } = await import(offloopUrl)
      const SCRIBBLE = \`
        const { workerData } = require('node:worker_threads')
        const native = require(workerData.native)
        const { Atomics } = globalThis
        const control = new Int32Array(workerData.control)
        const rings = workerData.rings.map((fds) => new Uint8Array(native.ringMemory(native.ringAttach(fds))))
        let x = 7
        const below = (n) => ((x = (Math.imul(x, 1664525) + 1013904223) >>> 0), Math.floor((x / 2 ** 32) * n))
        Atomics.store(control, 0, 1)
        Atomics.notify(control, 0)
        while (Atomics.load(control, 1) === 0) {
          for (const bytes of rings) bytes[128 + below(bytes.length - 128)] = below(2) ? below(256) : [0, 1, 2, 8, 255][below(5)]
        }\`
      let x = 5
      const below = (n) => ((x = (Math.imul(x, 1664525) + 1013904223) >>> 0), x % n)
      const kind = ${JSON.stringify(kind)}
      const options = kind === 'overwrite' ? { kind: 'broadcast', onFull: 'overwrite' } : { kind }
      const tolerated = ['ERR_OFFLOOP_CORRUPT', 'ERR_OFFLOOP_CLOSED', 'ERR_OFFLOOP_PEER_DIED', 'ERR_OFFLOOP_IN_USE']
      let corrupt = 0
      for (let round = 0; round < 12; round++) {
        const many = kind === 'spsc' ? {} : { maxParticipants: 4 }
        const rings = Array.from({ length: 8 }, () => RingBuffer.create({ ...options, ...many, capacity: 4096 }))
        const control = new SharedArrayBuffer(8)
        const words = new Int32Array(control)
        const ends = rings.map((ring) => [ring.producer(), ring.consumer()])
        const scribbler = new Worker(SCRIBBLE, {
          eval: true,
          execArgv: [],
          workerData: { native: createRequire(offloopUrl).resolve('./native.cjs'), rings: rings.map((ring) => ring.fds), control },
        })
        Atomics.wait(words, 0, 0)
        for (const [producer, consumer] of ends) {
          try {
            for (let i = 0; i < 3000; i++) {
              producer.tryPush(new Uint8Array(below(300)))
              const one = consumer.tryPop()
              if (one !== null && one.length > 2040) throw new Error('a record longer than any')
              consumer.read(below(4), (view) => {
                if (view.length > 2040) throw new Error('a view longer than any record')
              })
            }
          } catch (error) {
            if (!tolerated.includes(error.code)) throw error
            corrupt++
          }
        }
        Atomics.store(words, 1, 1)
        await new Promise((resolve) => scribbler.once('exit', resolve))
      }
      console.log(corrupt > 30)
    `,
    )
    assert.deepEqual([code, out, err], [0, 'true\n', ''])
  })
}

test('memory that was transferred away is an error', {
  skip: !ArrayBuffer.prototype.transfer && 'no ArrayBuffer.prototype.transfer',
}, () => {
  const detach = (view) => view.buffer.transfer() && undefined
  for (const make of [mpsc, broadcast]) {
    const ring = make()
    const consumer = ring.consumer()
    ring.producer().tryPush(record(9, 9))
    throws(() => consumer.read(1, detach), 'ERR_OFFLOOP_DETACHED')
    throws(() => consumer.tryPop(), 'ERR_OFFLOOP_DETACHED')
  }
  for (const make of [mpsc, broadcast, overwriting]) {
    const ring = make()
    const [consumer, producer] = [RingBuffer.attach(ring.fds).consumer(), ring.producer()]
    throws(() => producer.claim(9, detach), 'ERR_OFFLOOP_DETACHED')
    throws(() => producer.tryPush(record(9, 9)), 'ERR_OFFLOOP_DETACHED')
    assert.equal(consumer.tryPop(), null)
  }
})

// What a ring that was closed keeps of file descriptors and memory, and for whom.

import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { describe, test } from 'node:test'
import { RingBuffer } from '../lib/index.mjs'
import { drain, native, record, throws } from './rings.mjs'

const fds = () => readdirSync('/proc/self/fd').length
const mappings = () => readFileSync('/proc/self/maps', 'utf8').match(/memfd:offloop/g)?.length ?? 0

/** Makes what a ring has over the mapping, or with a native call per record. */
function opened(way, ring, make) {
  const { ringMemory } = native
  if (way === 'native') native.ringMemory = () => null
  try {
    return make(ring)
  } finally {
    native.ringMemory = ringMemory
  }
}

const isGone = (ring) => {
  throws(() => ring.fds, 'ERR_OFFLOOP_CLOSED')
  throws(() => ring.producer(), 'ERR_OFFLOOP_CLOSED')
  assert.equal(ring.closed, true)
}

const isHere = (ring) => assert.ok(ring.fds.length > 0)

for (const way of ['mapped', 'native']) {
  describe(`${way} handles`, () => {
    for (const kind of ['spsc', 'mpsc', 'broadcast', 'mpmc']) {
      test(`fds and memory of a closed ${kind} ring go with the last of its handles`, () => {
        const [fdsBefore, mappingsBefore] = [fds(), mappings()]
        for (let n = 0; n < 250; n++) {
          const ring = RingBuffer.create({ kind, capacity: 4096, maxParticipants: 2 })
          const producer = opened(way, ring, () => ring.producer({ batch: n % 2 === 0 }))
          const consumer = opened(way, ring, () => ring.consumer())
          producer.tryPush(record(100, n))
          ring.close()
          isHere(ring)
          if (n % 4 < 2) {
            producer.close()
            assert.deepEqual(consumer.tryPop(), record(100, n))
            throws(() => consumer.tryPop(), 'ERR_OFFLOOP_CLOSED')
          } else {
            assert.equal(
              consumer.read(2, (view) => assert.deepEqual(new Uint8Array(view), record(100, n))),
              1,
            )
            producer.close()
          }
          isHere(ring)
          consumer.close()
          isGone(ring)
          ring.close()
        }
        assert.deepEqual([fds(), mappings()], [fdsBefore, mappingsBefore])
      })
    }

    test('a handle that is closed in its callback keeps what the callback sees until it returns', () => {
      const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096 })
      const [producer, consumer] = opened(way, ring, () => [ring.producer(), ring.consumer()])
      producer.tryPush(record(100, 1))
      let kept
      const seen = consumer.read(1, (view) => {
        for (const one of [ring, producer, consumer]) one.close()
        kept = view
        isHere(ring)
        assert.deepEqual(new Uint8Array(view), record(100, 1))
      })
      assert.equal(seen, 1)
      isGone(ring)
      if (way === 'mapped') assert.equal(kept.length, 0, 'a view of the ring ends with it')
      else assert.deepEqual(new Uint8Array(kept), record(100, 1))
    })

    test('what waits in a closed ring is there for a consumer that comes later', () => {
      const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096 })
      const producer = opened(way, ring, () => ring.producer())
      for (let n = 0; n < 3; n++) producer.tryPush(record(10, n))
      producer.close()
      ring.close()
      const first = opened(way, ring, () => ring.consumer())
      assert.deepEqual(first.tryPop(), record(10, 0))
      first.close()
      isHere(ring)
      const second = opened(way, ring, () => ring.consumer())
      assert.deepEqual(
        [1, 2].map(() => second.tryPop()),
        [1, 2].map((n) => record(10, n)),
      )
      second.close()
      isGone(ring)
    })

    test('disposing of a ring leaves what waits in it to other processes', () => {
      const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096 })
      const other = RingBuffer.attach(ring.fds)
      const producer = opened(way, ring, () => ring.producer())
      producer.tryPush(record(10, 1))
      ring[Symbol.dispose]()
      isHere(ring)
      producer.close()
      isGone(ring)
      throws(() => ring.consumer(), 'ERR_OFFLOOP_CLOSED')
      const consumer = opened(way, other, () => other.consumer())
      assert.deepEqual(consumer.tryPop(), record(10, 1))
      consumer.close()
      isHere(other)
      other.close()
      isGone(other)
    })
  })
}

test('1,000 rings are made and closed without a collection', () => {
  const [fdsBefore, mappingsBefore] = [fds(), mappings()]
  for (let n = 0; n < 1000; n++) {
    const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096 })
    if (n % 3 > 0) {
      const [producer, consumer] = [ring.producer(), ring.consumer()]
      producer.tryPush(record(10, n))
      if (n % 3 > 1) assert.equal(drain(consumer).length, 1)
      for (const one of [producer, consumer]) one.close()
    }
    ring[Symbol.dispose]()
  }
  assert.deepEqual([fds(), mappings()], [fdsBefore, mappingsBefore])
})

test('promises and iterations that wait end, and then the ring is gone', async () => {
  let fdsBefore
  for (let n = 0; n < 100; n++) {
    // The first one that waits makes what all waits of the process have in common.
    if (n === 1) fdsBefore = fds()
    const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096 })
    const [producer, consumer] = [ring.producer(), ring.consumer()]
    const all = (async () => {
      let count = 0
      for await (const one of consumer) count += one.length
      return count
    })()
    await new Promise(setImmediate)
    await producer.push(record(10, n))
    producer.close()
    ring.close()
    assert.equal(await all, 10)
    consumer.close()
    isGone(ring)
  }
  assert.equal(fds(), fdsBefore)
})

test('a consumer of a ring that is gone finds that it has ended', async () => {
  for (const kind of ['spsc', 'mpsc', 'broadcast', 'mpmc']) {
    const ring = RingBuffer.create({ kind, capacity: 1 << 16 })
    ring.close()
    isGone(ring)
    assert.deepEqual([ring.kind, ring.capacity, ring.path], [kind, 1 << 16, null])
    for await (const one of ring.consumer()) assert.fail(`there was ${one}`)
  }
})

test('a ring with a path goes when its name has gone too', () => {
  const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096, path: `/dev/shm/offloop-test-ends-${process.pid}` })
  const before = fds()
  ring.close()
  assert.equal(fds(), before, 'its records would be asked for by the name')
  ring.remove()
  throws(() => ring.producer(), 'ERR_OFFLOOP_CLOSED')
  throws(() => ring.remove(), 'ERR_OFFLOOP_CLOSED')
  assert.ok(fds() < before)
})

test('memory that was transferred away stays as long as somebody has it', {
  skip: !ArrayBuffer.prototype.transfer && 'no ArrayBuffer.prototype.transfer',
}, () => {
  const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096 })
  const [producer, consumer] = [ring.producer(), ring.consumer()]
  producer.tryPush(record(100, 1))
  let memory
  const steal = (view) => {
    memory = view.buffer.transfer()
  }
  throws(() => consumer.read(1, steal), 'ERR_OFFLOOP_DETACHED')
  for (const one of [producer, consumer, ring]) one[Symbol.dispose]()
  isHere(ring)
  assert.ok(
    new Uint8Array(memory).some((byte) => byte !== 0),
    'it is mapped',
  )
})

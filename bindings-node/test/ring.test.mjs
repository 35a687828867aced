// Rings within one process, through both ways to the lane: typed arrays, and a native call per record.

import assert from 'node:assert/strict'
import { openSync, readFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { Consumer, Producer, RingBuffer, TransferBuffer } from '../lib/index.mjs'
import { by, drain, layout, mapping, nativeCalls, record, seatWord, throws, WAYS } from './rings.mjs'
import { random, rejection, script, until } from './support.mjs'

function pair(writes, reads, options = {}, batch = false) {
  const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096, ...options })
  return {
    ring,
    producer: by(writes, ring).open((own) => own.producer({ batch })),
    consumer: by(reads, ring).open((own) => own.consumer()),
  }
}

for (const [writes, reads] of WAYS) {
  describe(`${writes} producer, ${reads} consumer`, () => {
    test('records come out whole, in order and as copies', () => {
      const { producer, consumer } = pair(writes, reads)
      const sizes = [0, 1, 7, 8, 9, 31, 32, 33, 64, 500, 1023, 1024, 1025]
      for (const size of sizes) {
        assert.equal(producer.tryPush(record(size, size)), true)
        assert.deepEqual(consumer.tryPop(), record(size, size))
      }
      assert.equal(consumer.tryPop(), null)
      const [a, b] = [record(40, 1), record(40, 2)]
      producer.tryPush(a)
      const first = consumer.tryPop()
      producer.tryPush(b)
      const second = consumer.tryPop()
      second.fill(0)
      assert.deepEqual(first, a, 'a record is nobody else’s memory')
      for (let i = 0; i < 200; i++) {
        producer.tryPush(record(100, i))
        consumer.tryPop()
      }
      assert.deepEqual(first, a, 'nor the ring’s')
    })

    test('any sequence of calls does what a queue does', () => {
      for (let seed = 1; seed <= 6; seed++) {
        const below = random(seed)
        const { producer, consumer } = pair(writes, reads, {}, seed % 2 === 0)
        const queue = []
        let unflushed = 0
        let n = 0
        const take = (view) => assert.deepEqual(new Uint8Array(view), queue.shift(), `seed ${seed}`)
        for (let step = 0; step < 8000; step++) {
          const call = below(10)
          const one = record(below(10) === 0 ? below(2041) : below(200), n++)
          if (call < 3) {
            if (producer.tryPush(one)) queue.push(one)
            else
              assert.ok(queue.reduce((sum, r) => sum + r.length + 15, 0) + 2 * one.length + 16 > 4096 / 2, `full too early, seed ${seed}`)
          } else if (call < 5) {
            if (producer.claim(one.length, (view) => view.set(one))) queue.push(one)
          } else if (call === 5) {
            assert.throws(() => producer.claim(one.length, () => assert.fail('on purpose')) || assert.fail('on purpose'), /on purpose/)
          } else if (call < 8) {
            producer.flush()
            const popped = consumer.tryPop()
            if (popped !== null) take(popped)
            else assert.equal(queue.length, 0, `seed ${seed}`)
          } else {
            unflushed += consumer.read(below(20), take)
          }
        }
        producer.flush()
        for (const one of drain(consumer)) take(one)
        assert.deepEqual([queue.length, n > 7000, unflushed > 100], [0, true, true])
      }
    })

    test('a full ring says so, and shows no room', async () => {
      const { ring, producer, consumer } = pair(writes, reads)
      const half = record(ring.maxRecordLength, 1)
      assert.equal(producer.tryPush(half), true)
      assert.equal(producer.tryPush(half), true)
      assert.equal(producer.tryPush(record(0, 0)), false)
      assert.equal(producer.claim(8, assert.fail), false)
      const waiting = producer.push(record(3, 3))
      assert.equal(producer.tryPush(record(0, 0)), false, 'those that wait were first')
      assert.deepEqual(consumer.tryPop(), half)
      await waiting
      assert.deepEqual(drain(consumer), [half, record(3, 3)])
      const refusing = pair(writes, reads, { onFull: 'reject' })
      for (let i = 0; i < 2; i++) await refusing.producer.push(half)
      assert.equal((await rejection(refusing.producer.push(record(1, 1)))).code, 'ERR_OFFLOOP_FULL')
    })

    test('a closed ring is drained, then it is closed', async () => {
      const { ring, producer, consumer } = pair(writes, reads)
      producer.tryPush(record(5, 5))
      ring.close()
      assert.equal(ring.closed, true)
      throws(() => producer.tryPush(record(1, 1)), 'ERR_OFFLOOP_CLOSED')
      throws(() => producer.claim(1, assert.fail), 'ERR_OFFLOOP_CLOSED')
      assert.equal((await rejection(producer.push(record(1, 1)))).code, 'ERR_OFFLOOP_CLOSED')
      assert.deepEqual(consumer.tryPop(), record(5, 5))
      throws(() => consumer.tryPop(), 'ERR_OFFLOOP_CLOSED')
      throws(() => consumer.read(1, assert.fail), 'ERR_OFFLOOP_CLOSED')
      for await (const one of consumer) assert.fail(one)
      assert.equal((await rejection(consumer.pop())).code, 'ERR_OFFLOOP_CLOSED')
    })

    test('a record that is published behind the end is not promised', () => {
      const { ring, producer, consumer } = pair(writes, reads)
      const end = () => {
        ring.close()
        throws(() => consumer.tryPop(), 'ERR_OFFLOOP_CLOSED')
      }
      throws(() => producer.claim(4, end), 'ERR_OFFLOOP_CLOSED')
      assert.equal(consumer.tryPop()?.length, 4, 'a consumer that looks again gets it')
    })

    test('waits are served in order, end in time and by their signal', async () => {
      const { ring, producer, consumer } = pair(writes, reads)
      const abort = new AbortController()
      const pops = [consumer.pop(), consumer.pop({ signal: abort.signal }), consumer.pop({ timeout: 1 }), consumer.pop({ timeout: 60_000 })]
      abort.abort('enough')
      const aborted = await rejection(pops[1])
      assert.deepEqual([aborted.name, aborted.cause], ['AbortError', 'enough'])
      assert.equal((await rejection(pops[2])).code, 'ERR_OFFLOOP_TIMEOUT')
      assert.equal(consumer.tryPop(), null)
      await producer.push(record(1, 1))
      await producer.push(record(2, 2))
      assert.deepEqual(await Promise.all([pops[0], pops[3]]), [record(1, 1), record(2, 2)])
      assert.equal((await rejection(consumer.pop({ signal: abort.signal }))).name, 'AbortError')

      const big = record(ring.maxRecordLength, 0)
      const pushes = Array.from({ length: 6 }, (_, i) =>
        producer.push(i === 3 ? big : record(ring.maxRecordLength, i), i === 3 ? { timeout: 1 } : {}),
      )
      assert.equal((await rejection(pushes[3])).code, 'ERR_OFFLOOP_TIMEOUT')
      const seen = []
      for (let i = 0; i < 5; i++) seen.push((await consumer.pop())[0])
      await Promise.all(pushes.filter((_, i) => i !== 3))
      assert.deepEqual(seen, [0, 1, 2, 4, 5])
    })

    test('a wait sees what comes at any moment of arming', async () => {
      const { producer, consumer } = pair(writes, reads)
      const below = random(7)
      for (let i = 0; i < 2000; i++) {
        const popped = consumer.pop()
        for (let spin = below(3); spin > 0; spin--) await turn()
        producer.tryPush(record(8, i))
        assert.deepEqual(await popped, record(8, i))
      }
    })

    test('for await passes a flood on and lets the loop turn', async () => {
      const { ring, producer, consumer } = pair(writes, reads, { capacity: 1 << 20 })
      const total = 40_000
      const feed = async () => {
        for (let i = 0; i < total; i++) await producer.push(record(16, i))
        ring.close()
      }
      let turns = 0
      let feeding = true
      const watch = async () => {
        for (; feeding; turns++) await turn()
      }
      const feeder = feed()
      const watcher = watch()
      let count = 0
      for await (const one of consumer) {
        if (one[0] !== (count & 255)) assert.equal(one[0], count & 255)
        count++
      }
      feeding = false
      await Promise.all([feeder, watcher])
      assert.equal(count, total)
      assert.ok(turns > 10, `the loop turned ${turns} times`)
    })

    test('a successor goes on where its predecessor stood', () => {
      const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096 })
      const writer = by(writes, ring)
      const reader = by(reads, ring)
      let first = writer.open((own) => own.producer({ batch: true }))
      let last = reader.open((own) => own.consumer())
      throws(() => ring.producer(), 'ERR_OFFLOOP_IN_USE')
      throws(() => ring.consumer(), 'ERR_OFFLOOP_IN_USE')
      const below = random(11)
      let popped = 0
      for (let pushed = 0; popped < 3000; ) {
        for (let i = below(20); i > 0; i--) if (first.tryPush(record(below(100), 0).fill(pushed))) pushed++
        first[Symbol.dispose]()
        first = writer.open((own) => own.producer({ batch: true }))
        for (let i = below(20); i > 0; i--) {
          const one = last.tryPop()
          if (one === null) break
          if (one.length > 0) assert.equal(one[0], popped & 255)
          popped++
        }
        last.close()
        last = reader.open((own) => own.consumer())
        popped += last.read(1, (_, redelivered) => assert.equal(redelivered, false))
      }
    })
  })
}

test('the typed arrays are the path: a stream makes next to no native calls', () => {
  const { producer, consumer } = pair('mapped', 'mapped', { capacity: 1 << 16 })
  const calls = nativeCalls(['producerTryPush', 'producerClaim', 'consumerFind', 'consumerShow', 'ringWake'], () => {
    for (let round = 0; round < 1000; round++) {
      for (let i = 0; i < 20; i++) producer.tryPush(record(50, i))
      assert.equal(
        consumer.read(20, () => {}),
        20,
      )
    }
  })
  assert.ok(calls < 20, `${calls} calls for 20,000 records`)
})

test('without external memory everything goes through native calls', async () => {
  const { code, out, err } = await script(`
        import { createRequire } from 'node:module'
    createRequire(offloopUrl)('./native.cjs').forbidExternal()
    const { RingBuffer } = await import(offloopUrl)
    const ring = RingBuffer.create({ kind: 'spsc' })
    const [producer, consumer] = [ring.producer(), ring.consumer()]
    setTimeout(() => producer.tryPush(Buffer.from('came')), 1)
    console.log(Buffer.from(await consumer.pop()).toString())
    producer.claim(4, (view) => view.set(Buffer.from('copy')))
    consumer.read(9, (view) => console.log(Buffer.from(view).toString()))
  `)
  assert.deepEqual([code, out, err], [0, 'came\ncopy\n', ''])
})

const vector = (name) => JSON.parse(readFileSync(new URL(`../../tests/vectors/ring/${name}.json`, import.meta.url)))

test('the layout is that of the vectors', () => {
  const known = vector('layout')
  const flat = {
    seatsAt: known.seats_at,
    seatLength: known.seat_len,
    recordHeader: known.record_header,
    align: known.align,
    state: known.ring_word.state,
    members: known.ring_word.members,
    ready: known.ring_word.ready,
    live: known.status.live,
    ...Object.fromEntries(
      ['status', 'role', 'pid', 'tail', 'high', 'head', 'seen', 'waiting'].map((name) => [name, known.seat_word[name]]),
    ),
    ...known.state,
    ...known.record,
  }
  for (const [name, value] of Object.entries(flat)) {
    if (name !== 'state') assert.equal(layout[name], value, name)
  }
  assert.equal(layout.state, known.ring_word.state)
})

test('each step leaves the bytes that the vectors have', () => {
  const { capacity, start, steps } = vector('trace')
  for (const [writes, reads] of [
    ['mapped', 'mapped'],
    ['native', 'mapped'],
    ['mapped', 'native'],
  ]) {
    const ring = RingBuffer.create({ kind: 'spsc', capacity })
    const { words, bytes, dataAt } = mapping(ring)
    for (const name of ['tail', 'head', 'seen']) words[seatWord(name)] = start
    const producer = by(writes, ring).open((own) => own.producer())
    const consumer = by(reads, ring).open((own) => own.consumer())
    steps.forEach((step, i) => {
      if (step.push !== undefined) {
        assert.equal(producer.tryPush(new Uint8Array(step.push).fill(step.push)), step.pushed, `step ${i}`)
        for (const { offset, hex } of step.records) {
          const at = dataAt + offset
          assert.equal(Buffer.from(bytes.slice(at, at + 8)).toString('hex'), hex.slice(0, 16), `step ${i}`)
        }
      } else {
        assert.equal(consumer.tryPop()?.length ?? null, step.pop, `step ${i}`)
      }
      for (const [name, value] of Object.entries(step.words)) assert.equal(words[seatWord(name)] >>> 0, value, `step ${i}: ${name}`)
    })
  }
})

test('bytes that cannot be are Corrupt, for everybody and for good', () => {
  const damages = {
    'a length over the ring': ({ words, header }) => (words[header] = 0x7fffffff),
    'a negative length': ({ words, header }) => (words[header] = -1),
    'a length over what was published': ({ words, header }) => (words[header] = 1000),
    'a kind that is none': ({ words, header }) => (words[header + 1] = 9),
    'a padding record that leads nowhere': ({ words, header }) => (words[header + 1] = layout.pad),
    'a tail beyond the lane': ({ words }) => (words[seatWord('tail')] = 1 << 20),
    'a tail that is not aligned': ({ words }) => (words[seatWord('tail')] += 3),
    'a tail behind the head': ({ words }) => (words[seatWord('tail')] = -8),
  }
  for (const [what, scribble] of Object.entries(damages)) {
    const { ring, producer, consumer } = pair('mapped', 'mapped')
    producer.tryPush(record(20, 1))
    const { words, dataAt } = mapping(ring)
    scribble({ words, header: dataAt >> 2 })
    assert.throws(
      () => consumer.tryPop(),
      (error) => error.code === 'ERR_OFFLOOP_CORRUPT',
      what,
    )
    throws(() => consumer.read(1, assert.fail), 'ERR_OFFLOOP_CORRUPT')
    throws(() => producer.tryPush(record(1, 1)), 'ERR_OFFLOOP_CORRUPT', /damaged/)
  }
  for (const head of [8, -4, 4, 1 << 20]) {
    const { ring, producer } = pair('mapped', 'mapped')
    while (producer.tryPush(record(100, 1)));
    const { words } = mapping(ring)
    words[seatWord('head')] = words[seatWord('tail')] + head
    throws(() => producer.tryPush(record(100, 1)), 'ERR_OFFLOOP_CORRUPT')
  }
})

test('a peer that scribbles all the time costs errors, not the process', async () => {
  const { code, out, err } = await script(`
        import { createRequire } from 'node:module'
    const native = createRequire(offloopUrl)('./native.cjs')
    const { RingBuffer } = await import(offloopUrl)
    let x = 5
    const below = (n) => ((x = (Math.imul(x, 1664525) + 1013904223) >>> 0), x % n)
    let corrupt = 0
    for (let round = 0; round < 300; round++) {
      const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096 })
      const { ringMemory } = native
      let memory
      native.ringMemory = (handle) => (memory = ringMemory(handle))
      const producer = ring.producer()
      native.ringMemory = ringMemory
      const consumer = ring.consumer()
      const bytes = new Uint8Array(memory)
      try {
        for (let i = 0; i < 300; i++) {
          producer.tryPush(new Uint8Array(below(300)))
          if (i > 20 && below(3) === 0) bytes[below(2) ? 512 + below(2048) : 4096 + below(4096)] = below(256)
          consumer.read(below(3), (view) => view.length)
        }
      } catch (error) {
        if (!['ERR_OFFLOOP_CORRUPT', 'ERR_OFFLOOP_CLOSED', 'ERR_OFFLOOP_PEER_DIED'].includes(error.code)) throw error
        corrupt++
      }
    }
    console.log(corrupt > 100)
  `)
  assert.deepEqual([code, out, err], [0, 'true\n', ''])
})

test('wrong calls are typed errors', async () => {
  throws(() => new RingBuffer(), 'ERR_OFFLOOP_INVALID')
  throws(() => new Producer(), 'ERR_OFFLOOP_INVALID')
  throws(() => new Consumer(), 'ERR_OFFLOOP_INVALID')
  throws(() => RingBuffer.create(), 'ERR_OFFLOOP_INVALID')
  throws(() => RingBuffer.create({}), 'ERR_OFFLOOP_INVALID', /kind/)
  throws(() => RingBuffer.create({ kind: 'queue' }), 'ERR_OFFLOOP_INVALID', /queue/)
  throws(() => RingBuffer.create({ kind: 'spsc', size: 1 }), 'ERR_OFFLOOP_INVALID', /size/)
  throws(() => RingBuffer.create({ kind: 'spsc', capacity: 1.5 }), 'ERR_OFFLOOP_INVALID', /1\.5/)
  throws(() => RingBuffer.create({ kind: 'spsc', capacity: 0 }), 'ERR_OFFLOOP_INVALID')
  throws(() => RingBuffer.create({ kind: 'spsc', capacity: 2 ** 31 }), 'ERR_OFFLOOP_TOO_LARGE')
  throws(() => RingBuffer.create({ kind: 'spsc', maxParticipants: 3 }), 'ERR_OFFLOOP_INVALID')
  throws(() => RingBuffer.create({ kind: 'spsc', onFull: 'drop' }), 'ERR_OFFLOOP_INVALID', /drop/)
  throws(() => RingBuffer.create({ kind: 'spsc', onFull: 'overwrite' }), 'ERR_OFFLOOP_INVALID')
  throws(() => RingBuffer.create({ kind: 'spsc', path: 7 }), 'ERR_OFFLOOP_INVALID', /path/)
  throws(() => RingBuffer.attach(7), 'ERR_OFFLOOP_INVALID')
  throws(() => RingBuffer.attach([]), 'ERR_OFFLOOP_INVALID')
  throws(() => RingBuffer.attach([-1]), 'ERR_OFFLOOP_INVALID')
  throws(() => RingBuffer.attach(['3']), 'ERR_OFFLOOP_INVALID')
  throws(() => RingBuffer.attach([openSync('/dev/null')]), 'ERR_OFFLOOP_INVALID')
  const { ring, producer, consumer } = pair('mapped', 'mapped')
  throws(() => RingBuffer.attach(ring.fds.slice(1)), 'ERR_OFFLOOP_INVALID')
  throws(() => RingBuffer.attach(ring.fds.slice(0, 2)), 'ERR_OFFLOOP_INVALID')
  throws(() => ring.producer({ batch: 1 }), 'ERR_OFFLOOP_INVALID')
  throws(() => ring.producer({ size: 1 }), 'ERR_OFFLOOP_INVALID')
  throws(() => ring.consumer({ ack: 'never' }), 'ERR_OFFLOOP_INVALID')
  throws(() => ring.consumer({ ack: 'manual' }), 'ERR_OFFLOOP_UNSUPPORTED', /kind=spsc/)
  throws(() => ring.consumer({ ack: 1 }), 'ERR_OFFLOOP_INVALID', /ack/)
  throws(() => RingBuffer.create({ kind: 'spsc', slotSize: 64 }), 'ERR_OFFLOOP_UNSUPPORTED', /slot_size=64/)
  throws(() => RingBuffer.create({ kind: 'mpmc', slotSize: 0 }), 'ERR_OFFLOOP_INVALID')
  throws(() => RingBuffer.create({ kind: 'mpmc', slotSize: 2 ** 22 }), 'ERR_OFFLOOP_TOO_LARGE')
  for (const wrong of ['text', 7, null, undefined, {}, [1]]) {
    throws(() => producer.tryPush(wrong), 'ERR_OFFLOOP_INVALID')
    assert.equal((await rejection(producer.push(wrong))).code, 'ERR_OFFLOOP_INVALID')
  }
  const long = new Uint8Array(ring.maxRecordLength + 1)
  throws(() => producer.tryPush(long), 'ERR_OFFLOOP_TOO_LARGE', /max_record_len/)
  assert.equal((await rejection(producer.push(long))).code, 'ERR_OFFLOOP_TOO_LARGE')
  throws(() => producer.claim(long.length, assert.fail), 'ERR_OFFLOOP_TOO_LARGE')
  for (const wrong of [-1, 1.5, '1', Number.NaN]) {
    throws(() => producer.claim(wrong, assert.fail), 'ERR_OFFLOOP_INVALID')
    throws(() => consumer.read(wrong, assert.fail), 'ERR_OFFLOOP_INVALID')
  }
  throws(() => producer.claim(1), 'ERR_OFFLOOP_INVALID', /fill/)
  throws(() => producer.claim(1, async () => {}), 'ERR_OFFLOOP_INVALID', /promise/)
  assert.equal(consumer.tryPop(), null, 'nothing of it was committed')
  const gone = new Uint8Array(8)
  structuredClone(gone, { transfer: [gone.buffer] })
  throws(() => producer.tryPush(gone), 'ERR_OFFLOOP_DETACHED')
  for (const wrong of [{ timeout: -1 }, { timeout: '1' }, { signal: 1 }, { deadline: 1 }, 7]) {
    assert.equal((await rejection(consumer.pop(wrong))).code, 'ERR_OFFLOOP_INVALID')
    assert.equal((await rejection(producer.push(gone, wrong))).code, 'ERR_OFFLOOP_INVALID')
  }
  producer.claim(1, () => {
    throws(() => producer.tryPush(gone), 'ERR_OFFLOOP_IN_USE')
    throws(() => producer.claim(1, assert.fail), 'ERR_OFFLOOP_IN_USE')
  })
  consumer.read(1, () => throws(() => consumer.tryPop(), 'ERR_OFFLOOP_IN_USE'))
  for (const bytes of [
    new Uint8Array([1, 2]).buffer,
    new DataView(new ArrayBuffer(2)),
    TransferBuffer.from(Uint8Array.of(1, 2)),
    new SharedArrayBuffer(2),
  ]) {
    try {
      producer.tryPush(bytes)
      assert.equal(consumer.tryPop().length, 2)
    } catch (error) {
      assert.equal(error.code, 'ERR_OFFLOOP_INVALID')
    }
  }
})

test('a handle that was closed is closed, and its waits fail', async () => {
  const { ring, producer, consumer } = pair('mapped', 'mapped')
  const pop = consumer.pop()
  consumer.close()
  consumer.close()
  assert.equal((await rejection(pop)).code, 'ERR_OFFLOOP_CLOSED')
  throws(() => consumer.tryPop(), 'ERR_OFFLOOP_CLOSED')
  while (producer.tryPush(record(1000, 1)));
  const push = producer.push(record(1000, 1))
  producer.claim(0, () => {})
  producer.close()
  assert.equal((await rejection(push)).code, 'ERR_OFFLOOP_CLOSED')
  throws(() => producer.flush(), 'ERR_OFFLOOP_CLOSED')
  assert.equal(producer.closed, true)
  const next = ring.consumer()
  let seen = 0
  next.read(99, () => {
    seen++
    next.close()
  })
  assert.equal(seen, 1, 'a callback may close its handle')
  const last = ring.consumer()
  assert.throws(() => last.read(9, () => assert.fail('on purpose')), /on purpose/)
  assert.equal(drain(last).length, 2, 'a record whose callback throws is gone, the others are not')
})

test('memory that was transferred away is an error', {
  skip: !ArrayBuffer.prototype.transfer && 'no ArrayBuffer.prototype.transfer',
}, () => {
  const detach = (view) => view.buffer.transfer() && undefined
  const reading = pair('mapped', 'mapped')
  reading.producer.tryPush(record(9, 9))
  throws(() => reading.consumer.read(1, detach), 'ERR_OFFLOOP_DETACHED')
  throws(() => reading.consumer.tryPop(), 'ERR_OFFLOOP_DETACHED')
  const writing = pair('mapped', 'mapped')
  throws(() => writing.producer.claim(9, detach), 'ERR_OFFLOOP_DETACHED')
  throws(() => writing.producer.tryPush(record(9, 9)), 'ERR_OFFLOOP_DETACHED')
  assert.equal(writing.consumer.tryPop(), null)
})

test('a ring with a name is attached to and looked at by it', (t) => {
  const path = `/dev/shm/offloop-test-${process.pid}`
  throws(() => RingBuffer.attach(path), 'ERR_OFFLOOP_NOT_FOUND')
  const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096, path })
  t.after(() => ring.remove())
  assert.equal(ring.path, path)
  throws(() => ring.fds, 'ERR_OFFLOOP_UNSUPPORTED')
  throws(() => RingBuffer.create({ kind: 'spsc', path }), 'ERR_OFFLOOP_EXISTS')
  const producer = RingBuffer.attach(path).producer()
  producer.tryPush(record(9, 9))
  const { kind, capacity, lanes, participants } = RingBuffer.inspect(path)
  assert.deepEqual([kind, capacity, lanes[0].pushed, lanes[0].popped], ['spsc', 4096, 1, 0])
  assert.deepEqual(
    participants.map(({ role, pid, alive }) => [role, pid, alive]),
    [['producer', process.pid, true]],
  )
  assert.deepEqual(ring.consumer().tryPop(), record(9, 9))
  throws(() => RingBuffer.inspect(7), 'ERR_OFFLOOP_INVALID')
})

test('the collector leaves the seats of handles that nobody has', async () => {
  const ring = RingBuffer.create({ kind: 'spsc', capacity: 4096 })
  ;(() => {
    const [producer, consumer] = [ring.producer({ batch: true }), ring.consumer()]
    producer.tryPush(record(5, 1))
    producer.flush()
    consumer.tryPop()
    producer.tryPush(record(6, 2))
  })()
  const free = (take) => {
    globalThis.gc()
    try {
      return take()
    } catch (error) {
      assert.equal(error.code, 'ERR_OFFLOOP_IN_USE')
      return null
    }
  }
  let consumer = null
  await until(() => (consumer = free(() => ring.consumer())))
  await until(() => free(() => ring.producer()))
  let redelivered
  assert.equal(
    consumer.read(9, (view, again) => {
      assert.deepEqual(new Uint8Array(view), record(6, 2))
      redelivered = again
    }),
    1,
  )
  assert.equal(redelivered, false)
})

test('a wait keeps the process, an idle ring and an unref’d wait do not', async () => {
  const open = `const { RingBuffer } = await import(offloopUrl)
    const ring = RingBuffer.create({ kind: 'spsc' })
    const [producer, consumer] = [ring.producer(), ring.consumer()]
    process.on('exit', () => console.log('exit'))`
  const idle = await script(`${open}; await consumer.pop({ timeout: 1 }).catch(() => {})`)
  assert.deepEqual([idle.code, idle.out, idle.err], [0, 'exit\n', ''])
  const kept = await script(`${open}; consumer.pop({ timeout: 50 }).catch((error) => console.log(error.code))`)
  assert.deepEqual([kept.code, kept.out], [0, 'ERR_OFFLOOP_TIMEOUT\nexit\n'])
  const let_ = await script(`${open}; consumer.unref().pop().then(console.log)`)
  assert.deepEqual([let_.code, let_.out], [0, 'exit\n'])
})

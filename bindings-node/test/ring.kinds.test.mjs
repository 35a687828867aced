// Rings with several participants, between processes and between threads: deaths, stops, ends.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { RingBuffer } from '../lib/index.mjs'
import { drain } from './rings.mjs'
import { entryUrl, openChild, rejection, until } from './support.mjs'

const open = (options) => RingBuffer.create({ capacity: 1 << 16, maxParticipants: 4, ...options })
const forever = 'setInterval(() => {}, 1000);'
const attach = 'const ring = RingBuffer.attach([3, 4, 5, 6, 7]);'
/** A record of producer `who` with number `n`. */
const RECORD = 'const numbered = (who, n) => new Uint8Array(new Uint32Array([who, n, ...new Array(n % 20).fill(n)]).buffer);'
const numbered = (who, n) => new Uint8Array(new Uint32Array([who, n, ...new Array(n % 20).fill(n)]).buffer)

function numberOf(bytes) {
  const [who, n, ...rest] = new Uint32Array(bytes.slice().buffer)
  assert.ok(rest.length === n % 20 && rest.every((word) => word === n), `record ${who}:${n} is torn`)
  return [who, n]
}

const isStopped = (pid) => readFileSync(`/proc/${pid}/stat`, 'latin1').includes(') T ')

for (const way of ['mapped', 'native']) {
  const force =
    way === 'native' ? `(await import('node:module')).createRequire(${JSON.stringify(entryUrl)})('./native.cjs').forbidExternal();` : ''
  const prelude = `${force}${attach}${RECORD}`

  test(`mpsc: kill -9 of ${way} producers loses nothing that they published, and stops nobody`, async (t) => {
    for (let round = 0; round < 4; round++) {
      const ring = open({ kind: 'mpsc' })
      const children = [0, 1].map((who) =>
        openChild(
          t,
          `${prelude}
          const producer = ring.producer({ batch: ${round % 2 === 1} })
          console.log('up')
          for (let n = 0; ; n++) await producer.push(numbered(${who}, n))`,
          ring.fds,
        ),
      )
      for (const child of children) await child.line()
      const consumer = ring.consumer()
      const own = ring.producer()
      const next = [0, 0, 0]
      const see = (bytes) => {
        const [who, n] = numberOf(bytes)
        assert.equal(n, next[who]++)
      }
      // The first dies while all go on, the second when the first one's records are drained.
      for (let n = 0; n < 2000 * (round + 1) || next[0] === 0; n++) see(await consumer.pop())
      children[0].kill('SIGKILL')
      await children[0].exited
      const before = next[1]
      while (next[1] < before + 5000) see(await consumer.pop())
      children[1].kill('SIGKILL')
      await children[1].exited
      drain(consumer).forEach(see)
      await own.push(numbered(2, 0))
      see(await consumer.pop())
      // A successor takes a seat of the dead, and goes on in its lane.
      const successor = ring.producer()
      await successor.push(numbered(2, 1))
      see(await consumer.pop())
      assert.equal(consumer.tryPop(), null)
    }
  })

  test(`mpsc: kill -9 of a ${way} consumer: its successor gets the rest of every lane, marked as far as it was seen`, async (t) => {
    for (let round = 0; round < 4; round++) {
      const ring = open({ kind: 'mpsc' })
      const producers = [ring.producer(), ring.producer()]
      const total = 200
      for (let n = 0; n < total; n++) for (const who of [0, 1]) assert.ok(producers[who].tryPush(numbered(who, n)))
      const child = openChild(
        t,
        `${prelude}
        let left = ${round * 50 + 1}
        ring.consumer().read(1000, () => --left === 0 && process.kill(process.pid, 'SIGKILL'))`,
        ring.fds,
      )
      assert.deepEqual(await child.exited, [null, 'SIGKILL'])
      const next = [0, 0]
      const marked = [0, 0]
      let fresh = 0
      const consumer = ring.consumer()
      while (
        consumer.read(1000, (view, redelivered) => {
          const [who, n] = numberOf(view)
          next[who] ||= n
          assert.equal(n, next[who]++)
          if (redelivered) marked[who] = n + 1
          else fresh++
        }) > 0
      );
      assert.deepEqual(next, [total, total])
      // In turns of 32, and a little further in one lane when the next turn had begun.
      assert.equal(marked[0] + marked[1], round * 50 + 1)
      assert.equal(fresh, 2 * total - marked[0] - marked[1])
    }
  })

  test(`broadcast: the death of a ${way} consumer frees the producer, its stop does not`, async (t) => {
    const ring = open({ kind: 'broadcast' })
    const child = openChild(
      t,
      `${prelude}
      const consumer = ring.consumer()
      console.log('up')
      for (;;) numbered(0, (await consumer.pop()).length)`,
      ring.fds,
    )
    await child.line()
    child.kill('SIGSTOP')
    await until(() => isStopped(child.pid))
    const own = ring.consumer()
    const producer = ring.producer()
    let n = 0
    while (producer.tryPush(numbered(0, n))) n++
    assert.equal(drain(own).length, n)
    let ended = false
    const push = producer.push(numbered(0, n)).then(() => (ended = true))
    for (let i = 0; i < 2000; i++) await turn()
    assert.equal(ended, false)
    child.kill('SIGKILL')
    await push
    assert.deepEqual(numberOf(await own.pop()), [0, n])
  })

  test(`broadcast: kill -9 of a ${way} producer is told to each consumer, after its last record`, async (t) => {
    for (const onFull of ['wait', 'overwrite']) {
      const ring = open({ kind: 'broadcast', onFull })
      const child = openChild(
        t,
        `${prelude}
        const producer = ring.producer()
        console.log('up')
        for (let n = 0; n < 1000; n++) await producer.push(numbered(0, n))
        process.kill(process.pid, 'SIGKILL')`,
        ring.fds,
      )
      const consumers = [ring.consumer(), ring.consumer()]
      const read = async (consumer) => {
        let last = -1
        try {
          for await (const bytes of consumer) {
            const [, n] = numberOf(bytes)
            assert.ok(onFull === 'overwrite' ? n > last : n === last + 1)
            last = n
          }
        } catch (error) {
          return [last, error.code]
        }
      }
      const ends = consumers.map(read)
      await child.line()
      for (const end of ends) assert.deepEqual(await end, [999, 'ERR_OFFLOOP_PEER_DIED'])
      // A successor goes on.
      ring.producer().tryPush(numbered(0, 1000))
      for (const consumer of consumers) assert.deepEqual(numberOf(await consumer.pop()), [0, 1000])
    }
  })

  test(`broadcast: a fast ${way} producer that overwrites shows no torn record to a slow consumer`, async (t) => {
    const ring = open({ kind: 'broadcast', onFull: 'overwrite', capacity: 4096 })
    const child = openChild(
      t,
      `${prelude}
      const producer = ring.producer()
      console.log('up')
      const total = 400_000
      for (let n = 0; n < total; n++) producer.tryPush(numbered(0, n))
      console.log('done')
      ${forever}`,
      ring.fds,
    )
    const consumer = ring.consumer()
    await child.line()
    let [got, last] = [0, -1]
    while (last < 399_999) {
      const see = (bytes) => {
        const [, n] = numberOf(bytes)
        assert.ok(n > last, `${n} after ${last}`)
        last = n
        got++
      }
      see(await consumer.pop())
      consumer.read(50, see)
    }
    assert.equal(got + consumer.lost, 400_000)
    assert.equal(await child.line(), 'done')
  })
}

test('a stopped producer of many is not a dead one', async (t) => {
  const ring = open({ kind: 'mpsc' })
  const child = openChild(
    t,
    `${attach}${RECORD}
    const producer = ring.producer()
    console.log('up')
    for (let n = 0; ; n++) { await producer.push(numbered(0, n)); await new Promise(setImmediate) }`,
    ring.fds,
  )
  await child.line()
  const consumer = ring.consumer()
  await consumer.pop()
  child.kill('SIGSTOP')
  await until(() => isStopped(child.pid))
  drain(consumer)
  let ended = false
  const pop = consumer.pop().finally(() => (ended = true))
  for (let i = 0; i < 1000; i++) await turn()
  assert.equal(ended, false)
  child.kill('SIGCONT')
  assert.equal(numberOf(await pop)[0], 0)
})

const thread = (code, workerData) =>
  new Worker(
    new URL(
      `data:text/javascript,${encodeURIComponent(`import { workerData, parentPort } from 'node:worker_threads'
      import { RingBuffer } from ${JSON.stringify(entryUrl)}
      ${RECORD}
      const ring = RingBuffer.attach(workerData.fds)
      ${code}`)}`,
    ),
    { workerData },
  )
const TOTAL = 20_000

test('worker threads as producers of one consumer', async () => {
  const ring = open({ kind: 'mpsc' })
  const workers = [0, 1, 2].map((who) =>
    thread(
      `const producer = ring.producer({ batch: workerData.who === 1 })
      for (let n = 0; n < ${TOTAL}; n++) {
        const record = numbered(workerData.who, n)
        if (!producer.tryPush(record)) await producer.push(record)
      }
      producer.flush()`,
      { fds: ring.fds, who },
    ),
  )
  const exits = workers.map((worker) => once(worker, 'exit'))
  const consumer = ring.consumer()
  const next = [0, 0, 0]
  for (let i = 0; i < 3 * TOTAL; i++) {
    const [who, n] = numberOf(await consumer.pop())
    if (n !== next[who]++) assert.fail(`record ${who}:${n}`)
  }
  for (const exit of exits) assert.deepEqual(await exit, [0])
  assert.deepEqual(next, [TOTAL, TOTAL, TOTAL])
})

test('worker threads as consumers that each see every record', async () => {
  for (const onFull of ['wait', 'overwrite']) {
    const ring = open({ kind: 'broadcast', onFull })
    const workers = [0, 1].map(() =>
      thread(
        `const consumer = ring.consumer()
        parentPort.postMessage('up')
        let [count, last] = [0, -1]
        for await (const bytes of consumer) {
          const [, n] = new Uint32Array(bytes.slice().buffer)
          if (n <= last) throw new Error(n + ' after ' + last)
          last = n
          count++
        }
        parentPort.postMessage([count + consumer.lost, last])`,
        { fds: ring.fds },
      ),
    )
    await Promise.all(workers.map((worker) => once(worker, 'message')))
    const producer = ring.producer()
    const ends = workers.map((worker) => once(worker, 'message'))
    for (let n = 0; n < TOTAL; n++) {
      const record = numbered(0, n)
      if (!producer.tryPush(record)) await producer.push(record)
    }
    ring.close()
    for (const end of ends) assert.deepEqual((await end)[0], [TOTAL, TOTAL - 1])
  }
})

test('worker threads share tasks', async () => {
  const ring = open({ kind: 'mpmc' })
  const workers = [0, 1].map((who) =>
    thread(
      `const seen = []
      const see = (bytes) => seen.push(new Uint32Array(bytes.slice().buffer)[1])
      const consumer = ring.consumer()
      for await (const bytes of consumer) {
        see(bytes)
        if (workerData.who === 1) try { consumer.read(10, see) } catch (error) { if (error.code !== 'ERR_OFFLOOP_CLOSED') throw error }
      }
      parentPort.postMessage(seen)`,
      { fds: ring.fds, who },
    ),
  )
  const ends = workers.map((worker) => once(worker, 'message'))
  const producer = ring.producer()
  for (let n = 0; n < TOTAL; n++) await producer.push(numbered(0, n))
  ring.close()
  const all = (await Promise.all(ends)).flatMap(([seen]) => seen).sort((a, b) => a - b)
  assert.deepEqual(
    all,
    Array.from({ length: TOTAL }, (_, n) => n),
  )
})

test('a thread that is terminated leaves the seat of its kind, with what it committed', async () => {
  for (const options of [{ kind: 'mpsc' }, { kind: 'broadcast' }, { kind: 'broadcast', onFull: 'overwrite' }, { kind: 'mpmc' }]) {
    const ring = open(options)
    const consumer = ring.consumer()
    for (let round = 0; round < 3; round++) {
      const worker = thread(
        `globalThis.producer = ring.producer({ batch: true })
        producer.tryPush(numbered(0, 3))
        parentPort.postMessage('up')
        ${forever}`,
        { fds: ring.fds },
      )
      await once(worker, 'message')
      assert.equal(await worker.terminate(), 1)
      assert.deepEqual(numberOf(await consumer.pop()), [0, 3])
      ring.producer().close()
    }
  }
})

test('a dead peer of one kind is no error of the others: what waits is told what the kind promises', async (t) => {
  const ring = open({ kind: 'mpsc' })
  const child = openChild(t, `${attach} globalThis.consumer = ring.consumer(); console.log('up'); ${forever}`, ring.fds)
  await child.line()
  const producer = ring.producer()
  while (producer.tryPush(numbered(0, 7)));
  const push = rejection(producer.push(numbered(0, 7)))
  await turn()
  child.kill('SIGKILL')
  assert.equal((await push).code, 'ERR_OFFLOOP_PEER_DIED')
  const consumer = ring.consumer()
  assert.ok(drain(consumer).length > 100)
  assert.equal(producer.tryPush(numbered(0, 7)), true)
})

// Channels within a process, between worker threads' processes, and their place in the loop.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, fstatSync, openSync, readdirSync, readSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { Channel, OffloopError, TransferBuffer } from '../lib/index.mjs'
import { entryUrl, rejection, script, until } from './support.mjs'

function open(t, options) {
  const ends = Channel.pair(options)
  t.after(() => {
    for (const end of ends) end.close()
  })
  return ends
}

/** A child that has the other end, and what it prints. */
function child(t, code, options) {
  const [own, other] = Channel.pair(options)
  const source = `import { Channel, TransferBuffer } from ${JSON.stringify(entryUrl)}\nconst channel = Channel.attach(3);\n${code}`
  const process_ = spawn(process.execPath, ['--input-type=module', '-e', source], { stdio: ['ignore', 'pipe', 'inherit', other.fd] })
  other.close()
  t.after(() => {
    own.close()
    process_.kill('SIGKILL')
  })
  return [own, process_]
}

const nextMessage = async (channel) => (await once(channel, 'message'))[0]

test('values go both ways in order, as they are', async (t) => {
  const [a, b] = open(t)
  const values = [
    null,
    true,
    1.5,
    2n ** 70n,
    'text',
    new Uint8Array([1, 2]),
    { a: [1, { b: null }] },
    new Date(5),
    new Float64Array([1, 2]),
    new Map([[1, 2]]),
  ]
  for (const [from, to] of [
    [a, b],
    [b, a],
  ]) {
    const got = []
    to.on('message', (value) => got.push(value))
    for (const value of values) assert.equal(from.send(value), true)
    await until(() => got.length === values.length)
    assert.deepEqual(got, values)
  }
})

test('an error arrives as an error', async (t) => {
  const [a, b] = open(t)
  a.send(Object.assign(new TypeError('wrong'), { code: 'E_WRONG' }))
  const error = await nextMessage(b)
  assert.ok(error instanceof TypeError)
  assert.deepEqual([error.message, error.code], ['wrong', 'E_WRONG'])
})

test('transfer names what is in the value', (t) => {
  const [a] = open(t)
  const [inside, outside] = [TransferBuffer.alloc(5), TransferBuffer.alloc(5)]
  assert.throws(() => a.send({ inside }, { transfer: [inside, outside] }), { code: 'ERR_OFFLOOP_INVALID' })
  assert.deepEqual([inside.detached, outside.detached], [false, false])
  a.send({ inside }, { transfer: [inside] })
  assert.equal(inside.detached, true)
})

test('buffers inside a message move', async (t) => {
  const [a, b] = open(t)
  const shared = TransferBuffer.alloc(100_000, { shared: true })
  const short = TransferBuffer.from(new Uint8Array([1, 2, 3]))
  const view = short.bytes()
  shared.bytes()[99_999] = 7
  a.send({ list: [shared, short] }, [shared])
  assert.ok(shared.detached && short.detached)
  assert.equal(view.length, 0)
  const { list } = await nextMessage(b)
  assert.equal(list[0].bytes()[99_999], 7)
  assert.deepEqual([...list[1].bytes()], [1, 2, 3])
  assert.notEqual(list[0].fd, null)
})

test('a send that fails moves nothing', (t) => {
  const [a] = open(t, { maxMessage: 1000 })
  const buffer = TransferBuffer.from(new Uint8Array([1, 2, 3]))
  const view = buffer.bytes()
  const code = (code) => (error) => error instanceof OffloopError && error.code === `ERR_OFFLOOP_${code}`
  assert.throws(() => a.send([buffer, new Uint8Array(2000)]), code('TOO_LARGE'))
  assert.throws(() => a.send([buffer, buffer]), code('DETACHED'))
  assert.throws(() => a.send([buffer, () => {}]), code('UNSERIALIZABLE'))
  assert.throws(() => a.send(buffer, { fds: [-1] }), code('INVALID'))
  assert.throws(() => a.send(buffer, [new Uint8Array(1)]), code('INVALID'))
  assert.equal(buffer.detached, false)
  assert.deepEqual([...view], [1, 2, 3])
  a.send(buffer)
  assert.equal(buffer.detached, true)
})

test('a message longer than the ring arrives', async (t) => {
  const [a, b] = open(t, { capacity: 4096 })
  const bytes = new Uint8Array(1_000_000).map((_, i) => i)
  a.send({ bytes })
  assert.deepEqual((await nextMessage(b)).bytes, bytes)
})

test('fds go along', async (t) => {
  const [a, b] = open(t)
  const fd = openSync(new URL(import.meta.url))
  a.send('take', { fds: [fd] })
  closeSync(fd)
  const [value, [got]] = await once(b, 'message')
  assert.equal(value, 'take')
  const bytes = Buffer.alloc(8)
  readSync(got, bytes, 0, 8, 0)
  assert.equal(bytes.toString(), '// Chann')
  closeSync(got)
})

test('an end is handed to a worker thread, and has one owner', async (t) => {
  const [a, b] = open(t)
  const fd = b.fd
  assert.throws(() => Channel.attach(fd), { code: 'ERR_OFFLOOP_IN_USE' })
  assert.equal(b.detach(), fd)
  assert.throws(() => b.detach(), { code: 'ERR_OFFLOOP_CLOSED' })
  await once(b, 'close')
  b.close()
  fstatSync(fd)
  const code = `import { workerData } from 'node:worker_threads'
    import { Channel } from ${JSON.stringify(entryUrl)}
    const channel = Channel.attach(workerData)
    channel.on('request', (request) => request.reply(request.value + 1))
    channel.on('close', () => {})`
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`), { workerData: fd })
  assert.equal(await a.request(1), 2)
  assert.throws(() => Channel.attach(fd), { code: 'ERR_OFFLOOP_IN_USE' })
  assert.throws(() => a.detach(), { code: 'ERR_OFFLOOP_IN_USE' })
  a.close()
  assert.deepEqual(await once(worker, 'exit'), [0])
})

test('fds that nobody takes are closed', async (t) => {
  const [a, b] = open(t)
  b.on('request', () => {})
  const count = () => readdirSync('/proc/self/fd').length
  let sent = 0
  const some = async () => {
    const fd = openSync('/dev/null')
    for (let i = 0; i < 20; i++) a.send(i, { fds: [fd] })
    closeSync(fd)
    sent += 20
    await until(() => b.stats.received === sent)
  }
  // What is opened once, by the channel and by the runtime.
  await some()
  await turn()
  const before = count()
  for (let round = 0; round < 5; round++) await some()
  // The runtime may open one of its own meanwhile; of 100 none may stay.
  await until(() => count() < before + 10)
})

test('requests get their replies, or the error of whoever was asked', async (t) => {
  const [a, b] = open(t)
  b.on('request', async (request) => {
    await turn()
    if (request.value.n === 3) request.fail(new RangeError('three'))
    else request.reply(request.value.n * 2)
  })
  const replies = await Promise.all([1, 2, 4].map((n) => a.request({ n })))
  assert.deepEqual(replies, [2, 4, 8])
  const error = await rejection(a.request({ n: 3 }))
  assert.ok(error instanceof RangeError)
  assert.equal(error.message, 'three')
  assert.equal(a.stats.pending, 0)
})

test('a request is answered once', async (t) => {
  const [a, b] = open(t)
  b.on('request', (request) => {
    request.reply(1)
    assert.throws(() => request.reply(2), { code: 'ERR_OFFLOOP_INVALID' })
  })
  assert.equal(await a.request(null), 1)
})

test('a request that nobody listens for is refused', async (t) => {
  const [a, b] = open(t)
  b.on('message', () => {})
  assert.equal((await rejection(a.request(1))).code, 'ERR_OFFLOOP_NOT_FOUND')
})

test('fds in a reply are the caller’s who asked for them', async (t) => {
  const [a, b] = open(t)
  b.on('request', (request) => {
    const fd = openSync('/dev/null')
    request.reply('here', { fds: [fd] })
    closeSync(fd)
  })
  const { value, fds } = await a.request(null, { withFds: true })
  assert.equal(value, 'here')
  assert.ok(fstatSync(fds[0]).isCharacterDevice())
  closeSync(fds[0])
  assert.equal(await a.request(null), 'here')
})

test('a request ends at its timeout or signal, and a later reply is dropped', async (t) => {
  const [a, b] = open(t)
  const asked = []
  b.on('request', (request) => asked.push(request))
  assert.equal((await rejection(a.request(1, { timeout: 10 }))).code, 'ERR_OFFLOOP_TIMEOUT')
  const abort = new AbortController()
  const aborted = rejection(a.request(2, { signal: abort.signal }))
  abort.abort(new Error('enough'))
  const error = await aborted
  assert.deepEqual([error.name, error.cause.message], ['AbortError', 'enough'])
  await until(() => asked.length === 2)
  for (const request of asked) request.reply(null)
  await until(() => a.stats.lateReplies === 2)
  assert.equal(a.stats.pending, 0)
})

test('what finds no room is queued, told by false and drain, and refused beyond the bound', async (t) => {
  const [a, b] = open(t, { capacity: 4096, maxQueued: 100_000 })
  let sent = 0
  const message = () => [sent, 'x'.repeat(500)]
  while (a.send(message())) sent++
  sent++
  const full = () => {
    for (;;) {
      a.send(message())
      sent++
    }
  }
  assert.throws(full, { code: 'ERR_OFFLOOP_FULL' })
  assert.ok(a.stats.queued > 50_000)
  let next = 0
  b.on('message', ([n]) => assert.equal(n, next++))
  await once(a, 'drain')
  await until(() => next === sent)
  assert.equal(a.stats.queued, 0)
})

test('close is told with its reason on both sides, after the last message', async (t) => {
  const [a, b] = open(t)
  const seen = []
  b.on('message', (value) => seen.push(value))
  a.send(1)
  a.send(2)
  const why = once(b, 'close')
  const own = once(a, 'close')
  a.close()
  assert.equal(a.closed, true)
  assert.match((await own)[0].message, /^closed: channel was closed/)
  assert.match((await why)[0].message, /^closed: other end closed the channel/)
  assert.deepEqual(seen, [1, 2])
  assert.throws(() => b.send(3), { code: 'ERR_OFFLOOP_CLOSED' })
  assert.equal((await rejection(b.request(3))).code, 'ERR_OFFLOOP_CLOSED')
})

test('close sends what was queued first', async (t) => {
  const [a, b] = open(t, { capacity: 4096 })
  for (let i = 0; i < 100; i++) a.send([i, 'x'.repeat(500)])
  a.close()
  let next = 0
  b.on('message', ([n]) => assert.equal(n, next++))
  await once(b, 'close')
  assert.equal(next, 100)
})

test('a request that is not answered ends with the channel', async (t) => {
  const [a, b] = open(t)
  const asking = rejection(a.request(1))
  const [request] = await once(b, 'request')
  assert.equal(request.value, 1)
  b.close()
  assert.equal((await asking).code, 'ERR_OFFLOOP_CLOSED')
})

test('close comes behind what the last reply has set going', async (t) => {
  const [a, b] = open(t)
  b.on('request', (request) => {
    request.reply(1)
    b.close()
  })
  const order = []
  a.on('close', () => order.push('close'))
  await a.request(null)
  await null
  order.push('reply')
  await once(a, 'close')
  assert.deepEqual(order, ['reply', 'close'])
})

test('a listener that throws loses no message', async () => {
  const { code, out, err } = await script(`const { Channel } = await import(offloopUrl)
    const [a, b] = Channel.pair()
    process.on('uncaughtException', (error) => console.log(error.message))
    b.on('message', (value) => {
      if (value === 1) throw new Error('of a listener')
      console.log(value)
      if (value === 2) b.close()
    })
    for (const n of [0, 1, 2]) a.send(n)`)
  assert.deepEqual([code, out.split('\n').sort().join(' ').trim(), err], [0, '0 2 of a listener', ''])
})

test('two processes exchange messages, requests and buffers', async (t) => {
  const [own] = child(
    t,
    `channel.on('message', (value) => channel.send(value))
     channel.on('request', ({ value, reply }) => {})
     channel.removeAllListeners('request')
     channel.on('request', (request) => {
       const bytes = request.value.bytes()
       for (let i = 0; i < bytes.length; i++) bytes[i] *= 2
       request.reply(request.value)
     })`,
    { capacity: 8192 },
  )
  const got = []
  own.on('message', (value) => got.push(value))
  for (let n = 0; n < 2000; n++) own.send({ n, text: 'x'.repeat(n % 700) })
  await until(() => got.length === 2000)
  for (const [n, value] of got.entries()) assert.deepEqual(value, { n, text: 'x'.repeat(n % 700) })
  for (const shared of [false, true]) {
    const buffer = TransferBuffer.alloc(5000, { shared })
    buffer.bytes().fill(21)
    const back = await own.request(buffer)
    assert.ok(back.bytes().every((byte) => byte === 42))
  }
})

test('the death of the other process is told after its last message', async (t) => {
  const [own, process_] = child(
    t,
    "for (let n = 0; n < 10; n++) channel.send(n); channel.on('message', () => {}).on('request', () => {}); channel.send('ready')",
  )
  const seen = []
  own.on('message', (value) => seen.push(value))
  await until(() => seen.includes('ready'))
  const asking = rejection(own.request(1))
  const closed = once(own, 'close')
  process_.kill('SIGKILL')
  assert.equal((await closed)[0].code, 'ERR_OFFLOOP_PEER_DIED')
  assert.equal((await asking).code, 'ERR_OFFLOOP_PEER_DIED')
  assert.deepEqual(seen, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 'ready'])
})

test('a process that ends in peace has closed its channels', async (t) => {
  for (const end of ['process.exit()', 'channel.close()']) {
    const [own] = child(t, `channel.send('bye'); ${end}`)
    const seen = []
    own.on('message', (value) => seen.push(value))
    const [why] = await once(own, 'close')
    assert.deepEqual([why.code, seen], ['ERR_OFFLOOP_CLOSED', ['bye']], end)
  }
})

test('a process that exits with messages queued has closed its channels all the same', async (t) => {
  for (const end of ['process.exit()', 'process.on("uncaughtException", () => process.exit()); throw new Error()', 'channel.unref()']) {
    const [own, process_] = child(t, `while (channel.send('x'.repeat(500))); ${end}`, { capacity: 4096 })
    await once(process_, 'exit')
    let got = 0
    own.on('message', () => got++)
    const [why] = await once(own, 'close')
    assert.deepEqual([why.code, got > 0], ['ERR_OFFLOOP_CLOSED', true], end)
  }
})

test('a listening channel keeps the process alive, an unref’d or idle one does not', async () => {
  const kept = await script(`const { Channel } = await import(offloopUrl)
    const [a, b] = Channel.pair()
    a.unref()
    b.on('message', (value) => { console.log(value); b.close() })
    setTimeout(() => a.send('kept alive'), 20).unref()
    setTimeout(() => {}, 40)`)
  assert.deepEqual([kept.code, kept.out, kept.err], [0, 'kept alive\n', ''])
  const idle = await script(`const { Channel } = await import(offloopUrl)
    const [a, b] = Channel.pair()
    b.on('message', () => {}).unref()
    a.send(1)`)
  assert.deepEqual([idle.code, idle.err], [0, ''])
})

test('channels by a path', async (t) => {
  const path = join(tmpdir(), `offloop-node-channel-${process.pid}`)
  const listener = Channel.listen(path, (channel) => channel.on('request', (request) => request.reply([request.value])))
  t.after(() => listener.close())
  assert.equal(listener.path, path)
  assert.throws(() => Channel.listen(path, () => {}), { code: 'ERR_OFFLOOP_EXISTS' })
  const channels = await Promise.all([1, 2, 3].map(() => Channel.connect(path)))
  t.after(() => {
    for (const channel of channels) channel.close()
  })
  assert.deepEqual(await Promise.all(channels.map((channel, n) => channel.request(n))), [[0], [1], [2]])
  listener.close()
  // Those that were accepted go on.
  assert.deepEqual(await channels[0].request('still'), ['still'])
  assert.equal((await rejection(Channel.connect(path))).code, 'ERR_OFFLOOP_NOT_FOUND')
})

test('bad arguments are named', async (t) => {
  const [a] = open(t)
  const invalid = { code: 'ERR_OFFLOOP_INVALID' }
  assert.throws(() => new Channel(), invalid)
  assert.throws(() => Channel.attach(-1), invalid)
  assert.throws(() => Channel.attach(0.5), invalid)
  const fd = openSync('/dev/null')
  assert.throws(() => Channel.attach(fd), invalid)
  closeSync(fd)
  assert.throws(() => Channel.pair({ capacity: 'much' }), invalid)
  assert.throws(() => Channel.pair({ capasity: 1 }), invalid)
  assert.throws(() => Channel.listen('x', null), invalid)
  assert.throws(() => Channel.listen(5, () => {}), invalid)
  assert.throws(() => a.send(1, { transferr: [] }), invalid)
  assert.equal((await rejection(a.request(1, { timeout: -1 }))).code, invalid.code)
  assert.equal((await rejection(Channel.connect('x'.repeat(50) + '/y'.repeat(50)))).code, 'ERR_OFFLOOP_TOO_LARGE')
  assert.ok(a.fd > 2)
  a.send(1)
  assert.throws(() => a.fd, { code: 'ERR_OFFLOOP_IN_USE' })
})

test('a reply that cannot be sent leaves the request open', async (t) => {
  const [a, b] = open(t, { maxMessage: 10_000 })
  b.on('request', (request) => {
    for (const [value, code] of [
      [new Set(), 'UNSERIALIZABLE'],
      [new Uint8Array(20_000), 'TOO_LARGE'],
    ]) {
      assert.throws(() => request.reply(value), { code: `ERR_OFFLOOP_${code}` })
    }
    assert.throws(() => request.reply(1, { fds: [-1] }), { code: 'ERR_OFFLOOP_INVALID' })
    assert.throws(
      () =>
        request.reply({
          get again() {
            return request.reply(2)
          },
        }),
      { code: 'ERR_OFFLOOP_INVALID' },
    )
    request.fail(new RangeError('none travels'))
    assert.throws(() => request.fail(new Error()), { code: 'ERR_OFFLOOP_INVALID' })
  })
  assert.equal((await rejection(a.request(1))).message, 'none travels')
})

test('a request that nobody listens for, of an end that is gone, is no error of this one', async (t) => {
  const [own, process_] = child(
    t,
    `channel.on('message', () => {
       channel.send('blocked')
       // Until the other end has gone: what follows is read in one turn.
       for (const until = Date.now() + 200; Date.now() < until; );
     })
     channel.on('close', (why) => console.log(why.code))`,
  )
  const exited = once(process_, 'exit')
  let out = ''
  process_.stdout.on('data', (data) => {
    out += data
  })
  own.send('block')
  assert.equal(await nextMessage(own), 'blocked')
  own.request(1).catch(() => {})
  own.close()
  assert.deepEqual(await exited, [0, null])
  assert.equal(out, 'ERR_OFFLOOP_CLOSED\n')
})

test('an exception of the function that is given channels is uncaught, as of any listener', async () => {
  const { code, out, err } = await script(`const { Channel } = await import(offloopUrl)
    const listener = Channel.listen('/tmp/offloop-node-throws-' + process.pid, () => { throw new Error('of fn') })
    process.on('uncaughtException', (error) => {
      console.log(error.message)
      listener.close()
    })
    const channel = await Channel.connect(listener.path)
    channel.close()`)
  assert.deepEqual([code, out, err], [0, 'of fn\n', ''])
})

test('messages wait in their order until somebody listens', async (t) => {
  const [a, b] = open(t)
  b.on('close', () => {})
  a.send('first')
  await until(() => b.stats.received === 1)
  const got = []
  const asked = a.request('second')
  await until(() => b.stats.received === 2)
  b.on('message', (value) => got.push(value))
  b.on('request', (request) => {
    got.push(request.value)
    request.reply(1)
  })
  a.send('third')
  await until(() => got.length === 3)
  assert.deepEqual(got, ['first', 'second', 'third'])
  assert.equal(await asked, 1)
})

test('what is pushed before a reply waits for a listener that comes after it', async (t) => {
  const [a, b] = open(t)
  b.on('request', (request) => {
    b.send('pushed')
    request.reply('ok')
  })
  assert.equal(await a.request('subscribe'), 'ok')
  assert.equal(await nextMessage(a), 'pushed')
})

test('an end that nobody listens to holds the other one back, and keeps what was sent', async (t) => {
  const [a, b] = open(t, { capacity: 4096 })
  const closed = once(b, 'close')
  let sent = 0
  // More than wait in the core and in the ring together.
  while (sent < 2000) a.send(sent++)
  await until(() => b.stats.received === 1024)
  for (let i = 0; i < 5; i++) await turn()
  assert.equal(b.stats.received, 1024)
  assert.ok(a.stats.queued > 0)
  let next = 0
  b.on('message', (n) => assert.equal(n, next++))
  await until(() => next === sent)
  a.close()
  await closed
})

test('the bytes that wait for a listener have a bound, wherever they lie', async (t) => {
  const [a, b] = open(t, { maxQueued: 1_000_000 })
  b.on('close', () => {})
  const payload = (n) => (n % 2 === 0 ? new Uint8Array(300_000) : TransferBuffer.alloc(300_000))
  for (let n = 0; n < 10; n++) assert.equal(a.send([n, payload(n)]), true)
  await until(() => b.stats.received === 4)
  for (let i = 0; i < 5; i++) await turn()
  assert.equal(b.stats.received, 4)
  let next = 0
  b.on('message', ([n]) => assert.equal(n, next++))
  await until(() => next === 10)
})

test('the end is told to who listens for nothing else, and what came before it waits', async (t) => {
  const [a, b] = open(t)
  const closed = once(b, 'close')
  for (let n = 0; n < 1500; n++) a.send(n)
  await until(() => b.stats.received === 1024)
  a.close()
  assert.equal((await closed)[0].code, 'ERR_OFFLOOP_CLOSED')
  let next = 0
  b.on('message', (n) => assert.equal(n, next++))
  await until(() => next === 1500)
})

test('what is queued at close is dropped after its grace', async (t) => {
  const [a] = open(t, { capacity: 4096 })
  while (a.send('x'.repeat(500)));
  assert.throws(() => a.close({ grace: -1 }), { code: 'ERR_OFFLOOP_INVALID' })
  const closed = once(a, 'close')
  a.close({ grace: 20 })
  assert.equal(a.closed, false)
  assert.equal((await closed)[0].code, 'ERR_OFFLOOP_CLOSED')
  assert.equal(a.closed, true)
  const [c] = open(t, { capacity: 4096 })
  while (c.send('x'.repeat(500)));
  c.close({ grace: 0 })
  assert.equal(c.closed, true)
})

test('an end that was closed keeps no fds, whoever closed it', async (t) => {
  const count = () => readdirSync('/proc/self/fd').length
  const kept = []
  const some = async (both) => {
    const ends = open(t, { capacity: 4096 })
    for (const end of ends) end.on('message', () => {}).send(1)
    await until(() => ends.every((end) => end.stats.received === 1))
    const closed = ends.map((end) => once(end, 'close'))
    for (const end of both ? ends : ends.slice(1)) end.close()
    await Promise.all(closed)
    kept.push(...ends)
  }
  await some(true)
  const before = count()
  for (let round = 0; round < 10; round++) await some(round % 2 === 0)
  // The runtime may open one of its own meanwhile; each end had 9 and more.
  await until(() => count() < before + 10)
  for (const end of kept) {
    assert.deepEqual([end.stats.received, end.closed], [1, true])
    assert.throws(() => end.fd, { code: 'ERR_OFFLOOP_CLOSED' })
    end.close()
  }
})

test('a value without a JavaScript form is one message’s error', async () => {
  const { code, out, err } = await script(`const { Channel } = await import(offloopUrl)
    const [a, b] = Channel.pair()
    const form = new Map([[1, 2]])
    b.on('request', (request) => request.reply(request.value === 'bad' ? form : request.value))
    b.on('message', (value) => console.log(value))
    b.on('messageerror', (error) => console.log('lost:', error.message))
    const Plain = Map
    globalThis.Map = class { constructor() { throw new Error('no form') } }
    const others = [1, 2].map((n) => a.request(n))
    const reason = (error) => error.message
    console.log(await a.request('bad').catch(reason), await Promise.all(others))
    console.log(await a.request(form).catch(reason))
    a.send(form)
    a.send('next')
    console.log(await a.request('still'))
    globalThis.Map = Plain
    a.close()`)
  assert.deepEqual([code, err], [0, ''])
  assert.equal(out, 'no form [ 1, 2 ]\nlost: no form\nno form\nlost: no form\nnext\nstill\n')
})

// Messages between a Cluster and its workers.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { Cluster, TransferBuffer } from '../lib/index.mjs'
import { directory, isAlive } from './processes.mjs'
import { rejection, until } from './support.mjs'

const exec = fileURLToPath(new URL('clusters/talks.mjs', import.meta.url))

async function open(t, options = {}) {
  const cluster = new Cluster({ exec, workers: 2, minReady: 0, ...options })
  t.after(() => cluster.stop({ grace: 0 }))
  const said = []
  cluster.on('message', (worker, message) => said.push([worker, message]))
  await cluster.start()
  return { cluster, said, texts: () => said.map(([, message]) => JSON.stringify(message)).sort() }
}

test('messages go to workers of another user', { skip: process.getuid() !== 0 && 'only root may start them' }, async (t) => {
  const cluster = new Cluster({ exec, workers: 1, minReady: 0, uid: 65534, gid: 65534 })
  t.after(() => cluster.stop({ grace: 0 }))
  const heard = once(cluster, 'message')
  try {
    await cluster.start()
  } catch (error) {
    if (!/EACCES|Permission denied|Cannot find module/.test(error.message)) throw error
    return t.skip(`that user may not read this folder: ${error.message.split('\n')[0]}`)
  }
  assert.deepEqual((await heard)[1], { hello: 0, generation: 1 })
  assert.equal(await cluster.request(0, 41), 42)
})

test('messages and requests go both ways', async (t) => {
  const { cluster, said, texts } = await open(t)
  await until(() => said.length === 2)
  assert.deepEqual(texts(), ['{"hello":0,"generation":1}', '{"hello":1,"generation":1}'])
  for (const [worker, { hello }] of said) assert.equal(worker, cluster.workers.get(hello))
  said.length = 0
  assert.equal(cluster.send(1, 'you'), true)
  await until(() => said.length === 1)
  assert.deepEqual(cluster.broadcast({ to: 'all' }), [])
  await until(() => said.length === 3)
  assert.deepEqual(texts(), ['{"slot":0,"heard":{"to":"all"}}', '{"slot":1,"heard":"you"}', '{"slot":1,"heard":{"to":"all"}}'])
  assert.equal(await cluster.request(0, 41), 42)
  assert.equal(await cluster.workers.get(1).request(1), 2)
  const error = await rejection(cluster.request(0, 'six'))
  assert.ok(error instanceof RangeError && error.message === 'not a number: six')
  said.length = 0
  cluster.on('request', (worker, request) => request.reply([worker.slot, request.value * 2]))
  cluster.workers.get(0).send('ask')
  await until(() => said.length === 1)
  assert.deepEqual(said[0][1], { told: [0, 40] })
})

test('what is said to a slot goes to the worker that is ready there', async (t) => {
  const { cluster, said } = await open(t, { workers: 1 })
  const old = cluster.workers.get(0)
  cluster.once('fork', () => cluster.send(0, 'while one starts'))
  cluster.once('draining', () => cluster.send(0, 'while one drains'))
  await cluster.reload()
  cluster.send(0, 'new one')
  const heard = () => said.filter(([, message]) => 'heard' in message)
  await until(() => heard().length === 3)
  assert.deepEqual(
    heard().map(([worker, message]) => [worker.generation, message.heard]),
    [
      [1, 'while one starts'],
      [2, 'while one drains'],
      [2, 'new one'],
    ],
  )
  assert.throws(() => old.send('late'), { code: /ERR_OFFLOOP_(CLOSED|PEER_DIED)/ })
  const none = { code: 'ERR_OFFLOOP_NOT_FOUND', message: 'not found: slot has no worker (slot=7)' }
  assert.throws(() => cluster.send(7, 'nobody'), none)
  assert.deepEqual(await rejection(cluster.request(7, 1)).then(({ code, message }) => ({ code, message })), none)
  await cluster.stop()
  assert.throws(() => cluster.send(0, 'over'), { code: 'ERR_OFFLOOP_CLOSED' })
  assert.throws(() => cluster.broadcast('over'), { code: 'ERR_OFFLOOP_CLOSED' })
})

test('buffers and files travel to a worker', async (t) => {
  const { cluster } = await open(t, { workers: 1 })
  const to = path.join(directory(t), 'bytes')
  const file = fs.openSync(to, 'w')
  const buffer = TransferBuffer.from(Buffer.alloc(100_000, 7))
  assert.throws(() => cluster.broadcast({ buffer }), { code: 'ERR_OFFLOOP_INVALID', message: /a buffer moves to one worker/ })
  assert.throws(() => cluster.broadcast({ buffer }, [buffer]), { code: 'ERR_OFFLOOP_INVALID', message: /a buffer moves to one worker/ })
  assert.equal(buffer.detached, false)
  cluster.send(0, { what: 'bytes', buffer }, { transfer: [buffer], fds: [file] })
  assert.equal(buffer.detached, true)
  fs.closeSync(file)
  await until(() => fs.statSync(to).size === 100_000)
  assert.ok(fs.readFileSync(to).every((byte) => byte === 7))
})

test('a worker that hears nothing holds up nobody', async (t) => {
  const { cluster, said } = await open(t, { env: { DEAF: 0 }, drainTimeout: 100, killGrace: 100 })
  await until(() => said.length === 2)
  const kilobyte = 'x'.repeat(1000)
  let sent = 0
  while (cluster.send(0, kilobyte)) sent++
  assert.ok(sent < 65, `the ring is one of 64 KiB (sent=${sent})`)
  const megabyte = Buffer.alloc(1 << 20)
  const full = { code: 'ERR_OFFLOOP_FULL', message: /max_queued=16777216/ }
  assert.throws(() => {
    for (let i = 0; i < 17; i++) cluster.send(0, megabyte)
  }, full)
  const missed = cluster.broadcast(megabyte)
  assert.deepEqual(
    missed.map(({ worker, error }) => [worker.slot, error.code]),
    [[0, full.code]],
  )
  await until(() => said.length === 3)
  assert.deepEqual([said[2][0].slot, said[2][1].heard.length], [1, 1 << 20])
})

test('what a worker says comes before its exit and nothing after', async (t) => {
  const { cluster, said } = await open(t, { workers: 1 })
  await until(() => said.length === 1)
  said.length = 0
  let atExit
  cluster.once('exit', () => {
    atExit = said.length
  })
  const exited = once(cluster, 'exit')
  cluster.send(0, 'go')
  // All of it happens before this loop turns again.
  const [worker] = await Promise.all([exited.then(([worker]) => worker)])
  assert.equal(atExit, 300)
  assert.deepEqual(
    said.slice(0, 300).map(([, n]) => n),
    Array.from({ length: 300 }, (_, i) => i + 1),
  )
  assert.ok(said.slice(0, 300).every(([from]) => from === worker))
})

test('what came and went while this loop was blocked is told in its order', async (t) => {
  const { cluster, said } = await open(t, { workers: 1 })
  await until(() => said.length === 1)
  said.length = 0
  const told = []
  cluster.on('message', (_, message) => told.push(message))
  cluster.on('exit', () => told.push('exit'))
  const [{ pid }] = cluster.workers.values()
  cluster.send(0, 'go')
  // This loop sees nothing until the worker is long gone, and its successor may be there.
  while (isAlive(pid));
  const end = Date.now() + 300
  while (Date.now() < end);
  await until(() => told.includes('exit'))
  assert.equal(told.indexOf('exit'), 300)
  await until(() => told.length === 302)
  assert.deepEqual(told[301], { hello: 0, generation: 1 })
})

test('messages wait for a listener, and hold back who says more', async (t) => {
  const cluster = new Cluster({ exec, workers: 1, minReady: 0 })
  t.after(() => cluster.stop({ grace: 0 }))
  await cluster.start()
  const said = []
  const listener = (_, message) => said.push(message)
  cluster.on('message', listener)
  await until(() => said.length === 1)
  assert.deepEqual(said, [{ hello: 0, generation: 1 }])
  cluster.off('message', listener)
  const exited = once(cluster, 'exit')
  cluster.send(0, 'fill')
  const [, { exitCode }] = await exited
  assert.equal(exitCode, 0, 'its sends told it that there is no room')
  assert.equal(said.length, 1)
})

test('a worker that only listens for messages lives until it is to leave', async (t) => {
  const { cluster, said } = await open(t, { workers: 1 })
  const [{ pid }] = cluster.workers.values()
  assert.equal(await cluster.request(0, 1), 2)
  const exits = []
  cluster.on('exit', (_, { exitCode, cause, forced }) => exits.push([exitCode, cause, forced]))
  await cluster.stop()
  assert.deepEqual([exits, isAlive(pid)], [[[0, 'stop', false]], false])
  assert.ok(said.length > 0)
})

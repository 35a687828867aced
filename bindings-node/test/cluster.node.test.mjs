// Programs of node:cluster, as they are in its documentation, run with `offloop/cluster` by a change of their import line, and say the same as ever.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { createRequire } from 'node:module'
import net from 'node:net'
import path from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import ours, { fork, isPrimary } from '../lib/cluster.mjs'
import { directory } from './processes.mjs'

const programs = fileURLToPath(new URL('clusters/node/', import.meta.url))
const library = (name) => fileURLToPath(new URL(`../lib/cluster.${name.endsWith('.cjs') ? 'cjs' : 'mjs'}`, import.meta.url))

/** Nobody listens there. */
async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

async function run(file, env) {
  const child = spawn(process.execPath, [file], {
    env: { ...process.env, PORT: await freePort(), ...env },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const [said, [code]] = await Promise.all([text(child.stdout), once(child, 'exit')])
  assert.equal(code, 0, said)
  return said
}

/** What the program says with `node:cluster`, and with this library. */
async function both(t, name, env) {
  const at = directory(t)
  for (const file of fs.readdirSync(programs)) {
    const source = fs.readFileSync(path.join(programs, file), 'utf8')
    fs.writeFileSync(path.join(at, file), source.replace("'node:cluster'", JSON.stringify(library(file))))
  }
  const [theirs, ours] = await Promise.all([run(path.join(programs, name), env), run(path.join(at, name), env)])
  assert.ok(theirs.length > 0)
  return [theirs, ours].map((said) => said.split('\n').slice(0, -1))
}

const same = async (t, name, env) => {
  const [theirs, ours] = await both(t, name, env)
  // Messages, disconnects and exits of different processes have no order.
  assert.deepEqual(ours.toSorted(), theirs.toSorted())
  return ours
}

test('workers share a port, and one that is killed is told of', async (t) => {
  const said = await same(t, 'http.mjs')
  assert.deepEqual(said.slice(-3), ['worker died 1 null SIGKILL', 'worker died 2 null SIGTERM', 'left 0'])
})

test('connections go to the workers by turns', async (t) => {
  assert.deepEqual(await same(t, 'turns.mjs'), ['{"1":10,"2":10}'])
})

test('requests are counted by messages', async (t) => {
  assert.deepEqual(await same(t, 'count.mjs'), ['requests 20'])
})

test('a worker that does not disconnect in time is killed', async (t) => {
  const said = await same(t, 'shutdown.mjs')
  assert.deepEqual(said, ['disconnect', 'exit null SIGTERM true'])
})

test('a worker says what it is at each step', async (t) => {
  const said = await same(t, 'state.mjs')
  assert.ok(said.includes('[[false,true,false],[true,true,false]]'))
})

test('workers are replaced by the program, and by nobody else', async (t) => {
  const said = await same(t, 'respawn.mjs')
  assert.deepEqual([said.length, said.at(-2)], [14, 'worker 13 0 true'])
})

test('another script runs with what was set up, and all are disconnected', async (t) => {
  const said = await same(t, 'exec.mjs')
  assert.equal(said[1], 'disconnected false')
})

test('sockets and servers are sent to a worker', async (t) => {
  assert.deepEqual(await same(t, 'handles.mjs'), ['worker hi', 'ERR_INVALID_HANDLE_TYPE', 'has true', 'server of the worker'])
})

test('a program of CommonJS sends what JSON does not know', async (t) => {
  assert.ok((await same(t, 'both.cjs')).includes('exit 7'))
})

test('it has the names of node:cluster, and says what it has not', async () => {
  const theirs = createRequire(import.meta.url)('node:cluster')
  const names = (one) => Object.keys(one).filter((name) => !name.startsWith('_') && name !== 'domain')
  assert.deepEqual(names(ours).sort(), names(theirs).sort())
  assert.deepEqual([isPrimary, typeof fork, ours.schedulingPolicy], [true, 'function', theirs.schedulingPolicy])
  ours.schedulingPolicy = ours.SCHED_NONE
  assert.throws(() => ours.setupPrimary({ silent: true }), { code: 'ERR_OFFLOOP_UNSUPPORTED', message: /option=silent/ })
})

test('a worker ends itself, and one that is told to leave before it has begun does', async (t) => {
  const said = await same(t, 'ends.mjs')
  assert.deepEqual(said, ['leaves with 0', 'self 0 null true', 'killed false', 'early 0 null true'])
})

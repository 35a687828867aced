// Listener strategies beside `shared`: servers that know nothing of it get connections that the cluster has accepted.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import path from 'node:path'
import { test } from 'node:test'
import { Cluster } from '../lib/index.mjs'
import { directory, isAlive } from './processes.mjs'
import { LOCAL, ask, file, open, portOf } from './servers.mjs'
import { until } from './support.mjs'

const slotOf = ([, headers]) => Number(headers['x-worker'].split(' ')[1])

for (const balance of ['round-robin', 'least-connections', 'ip-hash', 'reuseport']) {
  test(`${balance}: an unmodified server answers, is reloaded and stopped`, async (t) => {
    const cluster = await open(t, { balance })
    const port = portOf(cluster)
    assert.equal(cluster.addresses.length, 1)
    const slots = []
    for (let i = 0; i < 12; i++) slots.push(slotOf(await ask(port)))
    // One after the other, so nothing but the turn counts; and by address all are one worker's.
    if (balance === 'round-robin') assert.equal(slots.filter((slot) => slot === 0).length, 6, `${slots}`)
    if (balance === 'ip-hash') assert.equal(new Set(slots).size, 1)
    assert.equal((await ask(port, { method: 'POST', body: 'x'.repeat(500_000) }))[0], 'first 500000')
    const report = await cluster.reload()
    assert.deepEqual([report.replaced, report.forced], [2, 0])
    if (balance === 'ip-hash') assert.equal(slotOf(await ask(port)), slots[0], 'the place stays')
    const all = [...cluster.workers.values()].map((worker) => worker.pid)
    await cluster.stop()
    assert.ok(!all.some(isAlive))
    await assert.rejects(ask(port), { code: 'ECONNREFUSED' })
  })
}

for (const balance of ['round-robin', 'least-connections', 'ip-hash']) {
  test(`${balance}: a reload loses nothing of a strict client`, async (t) => {
    const cluster = await open(t, { balance })
    const port = portOf(cluster)
    let over = false
    let asked = 0
    const agents = [false, new http.Agent({ keepAlive: true, maxSockets: 4 })]
    const clients = Array.from({ length: 8 }, async (_, i) => {
      const agent = agents[i % 2]
      const post = i >= 6 ? { method: 'POST', body: 'x'.repeat(16_384) } : {}
      while (!over) {
        // Any of these is this machine's own.
        const [body] = await ask(port, { agent, localAddress: agent ? undefined : `127.0.0.${1 + (asked % 200)}`, ...post })
        assert.match(body, post.body ? / 16384$/ : / 0$/)
        asked++
      }
    })
    const all = Promise.all(clients)
    for (let generation = 2; generation <= 5; generation++) {
      const report = await Promise.race([cluster.reload(), all])
      assert.deepEqual([report.generation, report.replaced, report.forced], [generation, 2, 0])
    }
    over = true
    await all
    agents[1].destroy()
    assert.ok(asked > 100)
  })
}

test('a connection that a worker had not taken when it was killed is answered by another', async (t) => {
  const cluster = await open(t, { balance: 'round-robin', heartbeat: false })
  const port = portOf(cluster)
  await ask(port)
  for (const slot of [0, 1]) {
    const { pid } = cluster.workers.get(slot)
    process.kill(pid, 'SIGSTOP')
    const both = [ask(port), ask(port)]
    // The other worker's; that of the stopped one waits.
    const first = await Promise.race(both)
    assert.equal(slotOf(first), 1 - slot)
    // By now the stopped one has as many as it can have.
    for (let i = 0; i < 4; i++) assert.equal(slotOf(await ask(port)), 1 - slot)
    const ready = once(cluster, 'ready')
    process.kill(pid, 'SIGKILL')
    for (const one of await Promise.all(both)) assert.equal(slotOf(one), 1 - slot)
    await ready
  }
})

test('a worker that stands still gets no connection', async (t) => {
  const cluster = await open(t, { balance: 'round-robin', heartbeat: { interval: 50, timeout: 60_000 } })
  const port = portOf(cluster)
  const { pid } = cluster.workers.get(0)
  process.kill(pid, 'SIGSTOP')
  t.after(() => isAlive(pid) && process.kill(pid, 'SIGCONT'))
  for (let i = 0; i < 6; i++) assert.equal(slotOf(await ask(port)), 1)
  process.kill(pid, 'SIGCONT')
  while (slotOf(await ask(port)) !== 0);
})

test('the worker with the fewest open connections gets the next', async (t) => {
  const cluster = await open(t, { balance: 'least-connections' })
  const port = portOf(cluster)
  const agents = Array.from({ length: 6 }, () => new http.Agent({ keepAlive: true, maxSockets: 1 }))
  t.after(() => {
    for (const agent of agents) agent.destroy()
  })
  const slots = []
  for (const agent of agents) slots.push(slotOf(await ask(port, { agent })))
  assert.deepEqual([...slots].sort(), [0, 0, 0, 1, 1, 1])
  for (const [i, agent] of agents.entries()) if (slots[i] === 0) agent.destroy()
  // Slot 0 has none, as soon as it has seen their ends.
  for (let row = 0; row < 3; ) row = slotOf(await ask(port)) === 0 ? row + 1 : 0
})

test('servers of every kind take passed connections', async (t) => {
  const at = directory(t)
  const [said, cert] = [path.join(at, 'said'), path.join(at, 'cert.pem')]
  const command = `req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout ${at}/key.pem -out ${at}/crt.pem`
  const hasCert = spawnSync('openssl', command.split(' '), { stdio: 'ignore' }).status === 0
  if (hasCert) fs.writeFileSync(cert, fs.readFileSync(`${at}/key.pem`) + fs.readFileSync(`${at}/crt.pem`))
  const cluster = await open(t, { exec: file('kinds.mjs'), balance: 'round-robin', env: { HOLD: said, CERT: hasCert ? cert : '' } })
  const lines = () =>
    fs
      .readFileSync(said, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
  const of = (name) => lines().filter((line) => name in line)
  await until(
    () => of('single').length === 2 && of('upgraded').length === 2 && of('brief').length === 2 && (!hasCert || of('secure').length === 2),
  )
  const address = (name) => {
    const [{ [name]: first }, { [name]: second }] = of(name)
    assert.deepEqual(first, second)
    return first
  }

  await t.test('address, listening, connections, maxConnections', async () => {
    const { port, ...rest } = address('single')
    assert.deepEqual(rest, { address: '127.0.0.1', family: 'IPv4' })
    assert.deepEqual([...new Set(of('single').map((line) => `${line.listening} ${line.fd}`))], ['true Intake'])
    const held = [net.connect(port, '127.0.0.1'), net.connect(port, '127.0.0.1')]
    const greetings = await Promise.all(held.map((socket) => once(socket, 'data')))
    assert.deepEqual(greetings.map(String).sort(), ['0 1 1', '1 1 1'])
    const dropped = net.connect(port, '127.0.0.1')
    dropped.resume()
    await once(dropped, 'close')
    await until(() => of('dropped').length === 1)
    assert.deepEqual(of('dropped')[0].dropped, [port, '127.0.0.1'])
    for (const socket of held) socket.end('over')
    await until(() => of('closed').length === 2)
    assert.deepEqual(
      of('closed').map((line) => line.closed),
      [0, 0],
    )
  })

  await t.test('upgraded connections', async () => {
    const { port } = address('upgraded')
    const seen = new Set()
    for (let i = 0; i < 2; i++) {
      const request = http.get({
        host: '127.0.0.1',
        port,
        agent: false,
        headers: {
          Connection: 'Upgrade',
          Upgrade: 'websocket',
          'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ==',
          'Sec-WebSocket-Version': 13,
        },
      })
      const [response, socket] = await once(request, 'upgrade')
      assert.equal(response.headers['sec-websocket-accept'], 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=')
      socket.write('frame')
      const [echo] = await once(socket, 'data')
      const [slot, text] = String(echo).split(' ')
      assert.equal(text, 'frame')
      seen.add(slot)
      socket.destroy()
    }
    assert.deepEqual([...seen].sort(), ['0', '1'])
  })

  await t.test('a server that closes leaves its connections to the others', async () => {
    const { port, ...rest } = address('brief')
    assert.deepEqual(rest, { address: '::1', family: 'IPv6' })
    const slots = []
    for (let i = 0; i < 8; i++) slots.push((await ask(port, { host: '::1' }))[0])
    await until(() => of('over').length === 1)
    assert.equal(of('over')[0].over, false)
    assert.equal(slots.filter((slot) => slot === '0').length, 1, `${slots}`)
  })

  await t.test('TLS', { skip: hasCert ? false : 'openssl is not installed' }, async () => {
    const { port } = address('secure')
    const slots = new Set()
    for (let i = 0; i < 4; i++) slots.add((await ask(port, { ca: fs.readFileSync(`${at}/crt.pem`), servername: 'localhost' }))[0])
    assert.deepEqual([...slots].sort(), ['0', '1'])
  })

  assert.equal((await cluster.reload()).forced, 0)
})

test('what can be said of a balance is checked, and told', async (t) => {
  const exec = file('server.mjs')
  assert.throws(() => new Cluster({ exec, balance: 'random' }), {
    code: 'ERR_OFFLOOP_INVALID',
    message: /there is no such strategy \(option=balance, value=random, want=shared round-robin least-connections ip-hash reuseport\)/,
  })
  assert.throws(() => new Cluster({ exec, balance: 7 }), { code: 'ERR_OFFLOOP_INVALID', message: /option=balance/ })
  const warned = []
  const cluster = new Cluster({ exec, workers: 1, balance: 'reuseport', env: { LISTEN: JSON.stringify(LOCAL) } })
  cluster.on('warning', (error) => warned.push(error))
  t.after(() => cluster.stop({ grace: 0 }))
  await cluster.start()
  const moves = fs.readFileSync('/proc/sys/net/ipv4/tcp_migrate_req', { encoding: 'utf8', flag: 'r' }).trim() === '1'
  assert.deepEqual(
    warned.map((error) => error.code),
    moves ? [] : ['ERR_OFFLOOP_UNSUPPORTED'],
  )
  if (!moves) assert.match(warned[0].message, /net\.ipv4\.tcp_migrate_req/)
})

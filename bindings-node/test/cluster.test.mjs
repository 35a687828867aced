// Clusters of servers that know nothing of it: they listen as ever.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import fs from 'node:fs'
import http from 'node:http'
import http2 from 'node:http2'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { Cluster } from '../lib/index.mjs'
import { directory, isAlive } from './processes.mjs'
import { LOCAL, ask, file, open, portOf } from './servers.mjs'
import { rejection, until } from './support.mjs'

const pids = (cluster) => [...cluster.workers.values()].map((worker) => worker.pid)

test('an unmodified server runs in each worker, on one port', async (t) => {
  const told = []
  const cluster = new Cluster({ exec: file('server.mjs'), workers: 2, minReady: 0, env: { LISTEN: JSON.stringify(LOCAL) } })
  t.after(() => cluster.stop({ grace: 0 }))
  for (const event of ['fork', 'online', 'listening', 'ready']) cluster.on(event, (worker) => told.push(`${event} ${worker.slot}`))
  await cluster.start()
  assert.equal(cluster.start(), cluster.start(), 'a second start is the first one')
  assert.deepEqual([...cluster.workers.keys()].sort(), [0, 1])
  for (const slot of [0, 1]) {
    const own = told.filter((text) => text.endsWith(` ${slot}`)).map((text) => text.split(' ')[0])
    assert.deepEqual(own, ['fork', 'online', 'listening', 'ready'])
  }
  const [address] = cluster.addresses
  assert.equal(cluster.addresses.length, 1, 'both asked for one port of the system’s choice, and have the same')
  assert.match(address, /^127\.0\.0\.1:\d+$/)
  const seen = new Set()
  while (seen.size < 2) {
    const [body, headers] = await ask(portOf(cluster))
    assert.equal(body, 'first 0')
    seen.add(headers['x-worker'].split(' ')[0])
  }
  const { wanted, ready, live, generation } = cluster.stats
  assert.deepEqual({ wanted, ready, live, generation }, { wanted: 2, ready: 2, live: 2, generation: 1 })
})

test('what a worker has served and how late its loop is are read at any time', async (t) => {
  const cluster = await open(t, { workers: 1, heartbeat: { interval: 100, timeout: 60_000 } })
  const [worker] = cluster.workers.values()
  for (let i = 0; i < 3; i++) await ask(portOf(cluster))
  await until(() => worker.served === 3)
  assert.ok(worker.loopDelay >= 0)
  const stalled = ask(portOf(cluster), { path: '/stall' })
  await until(() => worker.loopDelay >= 500)
  await stalled
  await until(() => worker.served === 4 && worker.loopDelay < 500)
  await cluster.stop()
  assert.deepEqual([worker.state, worker.served, worker.loopDelay], ['exited', null, null])
})

test('metrics are served by HTTP', async (t) => {
  const cluster = await open(t, { metrics: '127.0.0.1:0' })
  assert.match(cluster.metricsAddress, /^127\.0\.0\.1:[1-9]\d*$/)
  await ask(portOf(cluster))
  await until(() => cluster.stats.served === 1)
  const [text, headers] = await ask(Number(cluster.metricsAddress.split(':')[1]), { path: '/metrics' })
  assert.equal(headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8')
  assert.match(text, /^offloop_cluster_workers\{cluster="cluster",state="ready"\} 2$/m)
  assert.match(text, /^offloop_cluster_requests_total\{cluster="cluster"\} 1$/m)
  const other = new Cluster({ exec: file('server.mjs'), metrics: cluster.metricsAddress })
  const error = await rejection(other.start())
  assert.equal(error.code, 'ERR_OFFLOOP_OS')
  assert.ok(error.message.includes(cluster.metricsAddress) && error.message.includes('option=metrics'), error.message)
  for (const metrics of ['nonsense', {}, true]) {
    assert.throws(() => new Cluster({ exec: file('server.mjs'), metrics }), { code: 'ERR_OFFLOOP_INVALID' })
  }
  await cluster.stop()
  assert.equal(cluster.metricsAddress, null)
})

test('a stop leaves no process, no socket and no file', async (t) => {
  const at = path.join(directory(t), 'a.sock')
  const cluster = await open(t, {}, [{ path: at }])
  assert.deepEqual(cluster.addresses, [`unix:${at}`])
  const all = pids(cluster)
  const [body] = await ask(undefined, { socketPath: at, host: undefined })
  assert.equal(body, 'first 0')
  const exits = []
  cluster.on('exit', (_, { exitCode, cause, forced }) => exits.push([exitCode, cause, forced]))
  await Promise.all([cluster.stop(), cluster.stop()])
  assert.deepEqual(exits, [
    [0, 'stop', false],
    [0, 'stop', false],
  ])
  assert.ok(!fs.existsSync(at))
  assert.ok(all.length === 2 && !all.some(isAlive))
  assert.deepEqual([cluster.workers.size, cluster.addresses, cluster.stats.live], [0, [], 0])
  assert.equal((await rejection(cluster.reload())).code, 'ERR_OFFLOOP_CLOSED')
  assert.equal((await rejection(cluster.scale(1))).code, 'ERR_OFFLOOP_CLOSED')
  await cluster.stop()
})

test('a reload replaces every worker, and a strict client loses nothing', async (t) => {
  const cluster = await open(t)
  const port = portOf(cluster)
  let over = false
  let asked = 0
  const agents = [false, new http.Agent({ keepAlive: true, maxSockets: 4 })]
  const clients = Array.from({ length: 8 }, async (_, i) => {
    const agent = agents[i % 2]
    const post = i >= 6 ? { method: 'POST', body: 'x'.repeat(16_384) } : {}
    while (!over) {
      const [body] = await ask(port, { agent, ...post })
      assert.match(body, post.body ? / 16384$/ : / 0$/)
      asked++
    }
  })
  const all = Promise.all(clients)
  for (let generation = 2; generation <= 5; generation++) {
    const before = pids(cluster)
    const report = await Promise.race([cluster.reload({ env: { LISTEN: JSON.stringify(LOCAL), VERSION: `v${generation}` } }), all])
    assert.deepEqual([report.generation, report.replaced, report.forced], [generation, 2, 0])
    assert.ok(!before.some(isAlive))
  }
  over = true
  await all
  agents[1].destroy()
  assert.ok(asked > 100)
  const [body, headers] = await ask(port)
  assert.deepEqual([body, headers['x-worker'].split(' ')[2]], ['v5 0', '5'])
})

test('the next request on a kept connection is answered, as the last one', async (t) => {
  const hold = path.join(directory(t), 'hold')
  const cluster = await open(t, { workers: 1, env: { HOLD: hold } })
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
  t.after(() => agent.destroy())
  const [, first] = await ask(portOf(cluster), { agent })
  assert.equal(first.connection, 'keep-alive')
  const [worker] = cluster.workers.values()
  const reloading = cluster.reload()
  await until(() => fs.existsSync(`${hold}.drained`))
  await until(() => worker.state === 'draining')
  const [, second] = await ask(portOf(cluster), { agent })
  assert.deepEqual([second.connection, second['x-worker']], ['close', first['x-worker']])
  const [, third] = await ask(portOf(cluster), { agent })
  assert.notEqual(third['x-worker'], first['x-worker'])
  await reloading
  assert.equal(worker.state, 'exited')
})

test('an answer is the connection’s last, whatever the application says', async (t) => {
  const hold = path.join(directory(t), 'hold')
  const cluster = await open(t, { workers: 1, drainTimeout: 60_000, env: { HOLD: hold } })
  const agents = ['/explicit', '/set', '/raw'].map((at) => [at, new http.Agent({ keepAlive: true, maxSockets: 1 })])
  for (const [at, agent] of agents) {
    t.after(() => agent.destroy())
    assert.equal((await ask(portOf(cluster), { agent, path: at }))[1].connection, 'keep-alive')
  }
  const reloading = cluster.reload()
  await until(() => fs.existsSync(`${hold}.drained`))
  for (const [at, agent] of agents) {
    const [body, headers] = await ask(portOf(cluster), { agent, path: at })
    assert.deepEqual([`/${body}`, headers.connection], [at, 'close'])
  }
  assert.equal((await reloading).forced, 0)
})

test('an answer to a request that has begun before the drain is its connection’s last, too', async (t) => {
  const hold = path.join(directory(t), 'hold')
  const cluster = await open(t, { workers: 1, drainTimeout: 60_000, env: { HOLD: hold } })
  const slow = ['/slow', '/slow?wrapped'].map((at) => {
    const agent = new http.Agent({ keepAlive: true })
    t.after(() => agent.destroy())
    return ask(portOf(cluster), { agent, path: at })
  })
  await until(() => fs.existsSync(`${hold}.began`) && fs.readFileSync(`${hold}.began`, 'utf8').split('\n').length === 3)
  const reloading = cluster.reload()
  await until(() => fs.existsSync(`${hold}.drained`))
  fs.writeFileSync(`${hold}.open`, '')
  for (const [body, headers] of await Promise.all(slow)) assert.deepEqual([body, headers.connection], ['slow', 'close'])
  assert.equal((await reloading).forced, 0)
})

test('a function of onDrain that fails, or listens, cuts no request', async (t) => {
  for (const env of [{ FAILS: 1 }, { LATE: 1 }]) {
    const hold = path.join(directory(t), 'hold')
    const cluster = await open(t, { workers: 1, env: { HOLD: hold, ...env } })
    const exited = once(cluster, 'exit')
    const slow = ask(portOf(cluster), { path: '/slow' })
    await until(() => fs.existsSync(`${hold}.began`))
    const reloading = cluster.reload()
    await until(() => fs.existsSync(`${hold}.drained`))
    fs.writeFileSync(`${hold}.open`, '')
    assert.equal((await slow)[0], 'slow')
    assert.equal((await reloading).forced, 0)
    const [, { exitCode, text }] = await exited
    assert.equal(exitCode, env.FAILS ? 1 : 0)
    if (env.FAILS) assert.match(text, /TypeError: in the drain/)
  }
})

test('a worker that drains finishes what it has, and calls what was to be called', async (t) => {
  const hold = path.join(directory(t), 'hold')
  const cluster = await open(t, { workers: 1, env: { HOLD: hold } })
  const slow = ask(portOf(cluster), { path: '/slow' })
  await until(() => fs.existsSync(`${hold}.began`))
  const [old] = pids(cluster)
  const reloading = cluster.reload()
  await until(() => fs.existsSync(`${hold}.drained`))
  assert.ok(isAlive(old))
  fs.writeFileSync(`${hold}.open`, '')
  assert.equal((await slow)[0], 'slow')
  assert.equal((await reloading).forced, 0)
  assert.equal(fs.readFileSync(`${hold}.drained`, 'utf8'), `${old}\n`)
})

test('who does not finish in time is made to, and the report says so', async (t) => {
  const hold = path.join(directory(t), 'hold')
  const cluster = await open(t, { workers: 1, drainTimeout: 50, killGrace: 50, env: { HOLD: hold } })
  const slow = rejection(ask(portOf(cluster), { path: '/slow' }))
  await until(() => fs.existsSync(`${hold}.began`))
  assert.equal((await cluster.reload()).forced, 1)
  assert.equal((await slow).code, 'ECONNRESET')
})

test('a broken version fails with its own words, and the old one goes on', async (t) => {
  const cluster = await open(t)
  const before = pids(cluster).sort()
  const failed = once(cluster, 'reloadFailed')
  const error = await rejection(cluster.reload({ env: { VERSION: 'broken' } }))
  assert.equal(error.code, 'ERR_OFFLOOP_START_FAILED')
  assert.match(error.message, /SyntaxError: no such version[\s\S]*server\.mjs/)
  assert.equal((await failed)[0].error.message, error.message)
  assert.match((await rejection(cluster.reload({ env: { VERSION: 'exits' } }))).message, /ended before it was ready.*exit_code=3/)
  assert.equal((await rejection(cluster.reload({ exec: '/no/such/file.mjs' }))).code, 'ERR_OFFLOOP_NOT_FOUND')
  assert.deepEqual(pids(cluster).sort(), before)
  const reloading = cluster.reload()
  assert.equal((await rejection(cluster.reload())).code, 'ERR_OFFLOOP_IN_USE')
  await reloading
  assert.equal((await ask(portOf(cluster)))[0], 'first 0', 'what is reloaded next is what was good')
})

test('a reload begins with what runs, and each is told its own outcome', async (t) => {
  const cluster = await open(t, { workers: 1 })
  const seven = { LISTEN: JSON.stringify(LOCAL), VERSION: 'seven' }
  let again
  cluster.once('reload', () => {
    again = cluster.reload()
  })
  const first = await cluster.reload({ env: seven })
  const second = await again
  assert.deepEqual([first.generation, second.generation], [2, 3])
  assert.equal((await ask(portOf(cluster)))[0], 'seven 0')
  // This loop does not turn while the reload ends.
  const third = cluster.reload()
  const end = Date.now() + 1500
  while (Date.now() < end);
  const fourth = await cluster.reload().catch((error) => error.code)
  assert.equal((await third).generation, 4)
  assert.ok(fourth.generation === 5 || fourth === 'ERR_OFFLOOP_IN_USE', String(fourth))
  assert.equal((await ask(portOf(cluster)))[0], 'seven 0')
})

test('a reload as before runs what another has brought that ends meanwhile, or is refused', async (t) => {
  const cluster = await open(t, { workers: 1 })
  const again = async () => {
    for (;;) {
      const error = await cluster.reload().catch((error) => error)
      if (error.generation !== undefined) return
      assert.equal(error.code, 'ERR_OFFLOOP_IN_USE', error)
      await new Promise((resolve) => setImmediate(resolve))
    }
  }
  for (let round = 1; round <= 8; round++) {
    await Promise.all([cluster.reload({ env: { LISTEN: JSON.stringify(LOCAL), VERSION: `v${round}` } }), again()])
    assert.equal((await ask(portOf(cluster)))[0], `v${round} 0`)
  }
})

test('a stop before the start has ended, and listeners that throw', async () => {
  const cluster = new Cluster({ exec: file('server.mjs'), workers: 1, env: { LISTEN: JSON.stringify(LOCAL) } })
  const starting = rejection(cluster.start())
  await cluster.stop({ grace: 0 })
  assert.equal((await starting).code, 'ERR_OFFLOOP_CLOSED')
  assert.equal(cluster.stats.live, 0)
})

test('a worker that ends is replaced, and how it ended is told', async (t) => {
  const cluster = await open(t)
  const port = portOf(cluster)
  const next = async () => {
    const [worker, how] = await once(cluster, 'exit')
    await once(cluster, 'ready')
    assert.ok(!isAlive(worker.pid))
    return how
  }
  let ended = next()
  await rejection(ask(port, { path: '/exit' }))
  const { exitCode, signal, cause } = await ended
  assert.deepEqual([exitCode, signal, cause], [5, null, 'crash'])
  ended = next()
  await rejection(ask(port, { path: '/throw' }))
  assert.match((await ended).text, /RangeError: nobody catches this/)
  ended = next()
  cluster.kill(0)
  assert.deepEqual(await ended.then((how) => [how.signal, how.cause]), ['SIGKILL', 'killed'])
  assert.throws(() => cluster.kill(7), { code: 'ERR_OFFLOOP_NOT_FOUND', message: /slot=7/ })
  assert.equal((await ask(port))[0], 'first 0')
})

test('a blocked loop is noticed, and its worker replaced', async (t) => {
  const cluster = await open(t, { workers: 1, heartbeat: { interval: 50, timeout: 500 } })
  const [blocked] = pids(cluster)
  const suspected = once(cluster, 'unresponsive')
  const exited = once(cluster, 'exit')
  const lost = rejection(ask(portOf(cluster), { path: '/block' }))
  const [worker, { cause }] = await suspected
  assert.deepEqual([worker.pid, cause], [blocked, 'blocked'])
  const [, how] = await exited
  assert.deepEqual([how.cause, how.signal], ['blocked', 'SIGABRT'])
  await lost
  await once(cluster, 'ready')
  assert.equal((await ask(portOf(cluster)))[0], 'first 0')
})

const STALLS = { exec: file('stalls.mjs'), workers: 1, heartbeat: { interval: 50, timeout: 400 } }
const at = (name) => new RegExp(`^at ${name} \\(file://.*/clusters/stalls\\.mjs:\\d+:\\d+\\)$`)

test('a blocked loop is shown by the stack of where it blocks', async (t) => {
  const told = async (way) => {
    const cluster = await open(t, STALLS)
    const said = once(cluster, 'unresponsive')
    const lost = rejection(ask(portOf(cluster), { path: `/${way}` }))
    const [, { cause, stack }] = await said
    assert.equal(cause, 'blocked', way)
    await Promise.all([cluster.stop({ grace: 0 }), lost])
    return stack.split('\n')
  }
  for (const [way, name] of [
    ['loop', 'spin'],
    ['wait', 'waits'],
    ['regexp', 'matches'],
  ]) {
    const lines = await told(way)
    assert.match(lines[0], at(name))
    assert.ok(lines.length > 2 && lines.every((line) => line.startsWith('at ')), lines.join('\n'))
  }
  const deep = await told('deep')
  assert.ok(deep.length > 10 && deep.every((line) => at('deeper').test(line)), 'lines that do not fit are left out whole')
  for (const [way, line] of [
    ['child', /^in system call \d+$/],
    ['native', /^in native code$/],
  ]) {
    const lines = await told(way)
    assert.match(lines[0], line)
    assert.equal(lines.length, 1)
  }
})

test('a loop that goes on before it could say where it stood is asked again the next time', async (t) => {
  const HOLD = path.join(directory(t), 'hold')
  const cluster = await open(t, { ...STALLS, env: { HOLD } })
  const [said, responsive] = [once(cluster, 'unresponsive'), once(cluster, 'responsive')]
  const answer = ask(portOf(cluster), { path: '/pause' })
  const [worker, why] = await said
  assert.match(why.stack, /^in system call \d+$/)
  fs.writeFileSync(HOLD, '')
  assert.equal((await answer)[0], 'back')
  assert.equal((await responsive)[0], worker)
  const again = once(cluster, 'unresponsive')
  const lost = rejection(ask(portOf(cluster), { path: '/loop' }))
  const [same, { stack }] = await again
  assert.equal(same, worker)
  assert.match(stack.split('\n')[0], at('spin'))
  await Promise.all([cluster.stop({ grace: 0 }), lost])
})

test('a process that ends before it could say where it stood ends as it would', async (t) => {
  const HOLD = path.join(directory(t), 'hold')
  const cluster = await open(t, { ...STALLS, env: { HOLD } })
  const [said, ended, lost] = [once(cluster, 'unresponsive'), once(cluster, 'exit'), rejection(ask(portOf(cluster), { path: '/leave' }))]
  assert.match((await said)[1].stack, /^in system call \d+$/)
  fs.writeFileSync(HOLD, '')
  const [, { exitCode, signal }] = await ended
  assert.deepEqual([exitCode, signal], [7, null])
  await lost
})

test('more and fewer workers', async (t) => {
  const cluster = await open(t, { workers: 1 })
  await cluster.scale(3)
  assert.deepEqual([cluster.workers.size, cluster.stats.ready], [3, 3])
  await Promise.all([cluster.scale(2), cluster.scale(1)])
  assert.deepEqual([cluster.workers.size, cluster.stats.live], [1, 1])
  await cluster.scale(1)
  assert.equal((await rejection(cluster.scale(0))).message, 'invalid: option is out of range (option=workers, value=0, min=1, max=1024)')
  assert.equal((await rejection(cluster.scale(10_000))).code, 'ERR_OFFLOOP_INVALID')
  assert.equal((await rejection(cluster.scale('2'))).code, 'ERR_OFFLOOP_INVALID')
  assert.equal((await ask(portOf(cluster)))[0], 'first 0')
})

for (const balance of ['shared', 'round-robin']) {
  test(`${balance}: servers of every kind share the sockets, and a bind that fails is an error of its server`, (t) => everyKind(t, balance))
}

async function everyKind(t, balance) {
  const at = directory(t)
  const [said, echo] = [path.join(at, 'said'), path.join(at, 'echo.sock')]
  const taken = net.createServer().listen(0, '127.0.0.1')
  await once(taken, 'listening')
  t.after(() => taken.close())
  const { port: busy } = taken.address()
  const cluster = new Cluster({
    exec: file('sockets.mjs'),
    workers: 2,
    minReady: 0,
    balance,
    listen: [{ path: echo }],
    env: { HOLD: said, TAKEN: busy },
  })
  t.after(() => cluster.stop({ grace: 0 }))
  await cluster.start()
  const all = () =>
    fs
      .readFileSync(said, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line))
  await until(() => all().length === 8)
  const of = (name) =>
    all()
      .filter((line) => name in line)
      .map((line) => line[name].port)
  for (const name of ['plain', 'second']) assert.equal(new Set(of(name)).size, 1, name)
  const [failed] = all().filter((line) => line.code)
  assert.deepEqual(
    { ...failed, message: undefined },
    { code: 'EADDRINUSE', syscall: 'listen', address: '127.0.0.1', port: busy, message: undefined },
  )
  assert.equal(failed.message, `listen EADDRINUSE: address already in use 127.0.0.1:${busy}`)
  const socket = net.connect(echo).end('over and out')
  assert.equal(String(await once(socket, 'data')), 'over and out')
  assert.equal((await ask(of('plain')[0]))[0], 'plain')
  const session = http2.connect(`http://127.0.0.1:${of('second')[0]}`)
  const stream = session.request({ ':path': '/' })
  assert.equal(String(await once(stream, 'data')), 'second')
  // An HTTP/2 connection is told to go, and ends with its last stream.
  const gone = once(session, 'goaway')
  await Promise.all([cluster.reload(), gone])
  session.close()
}

test('a start that fails rejects with the worker’s own words, and leaves nothing', async (t) => {
  for (const [options, code, message] of [
    [{ env: { VERSION: 'broken' } }, 'ERR_OFFLOOP_START_FAILED', /SyntaxError: no such version/],
    [{ exec: ['/bin/sh', '-c', 'exit 4'] }, 'ERR_OFFLOOP_START_FAILED', /exit_code=4/],
    [{ exec: ['/no/such/program'] }, 'ERR_OFFLOOP_NOT_FOUND', /no such program.*\/no\/such\/program/],
  ]) {
    const cluster = new Cluster({ exec: file('server.mjs'), workers: 1, env: { LISTEN: '[0]' }, ...options })
    const error = await rejection(cluster.start())
    assert.equal(error.code, code)
    assert.match(error.message, message)
    assert.equal(cluster.stats.live, 0)
  }
  const taken = net.createServer().listen(0, '127.0.0.1')
  await once(taken, 'listening')
  t.after(() => taken.close())
  const cluster = new Cluster({ exec: file('server.mjs'), listen: [`127.0.0.1:${taken.address().port}`] })
  const error = await rejection(cluster.start())
  assert.deepEqual([error.code, error.syscall], ['ERR_OFFLOOP_OS', 'bind'])
  assert.match(error.message, new RegExp(`listen=127.0.0.1:${taken.address().port}`))
})

test('bad options are refused before anything starts', () => {
  const exec = file('server.mjs')
  for (const [options, message] of [
    [{}, /option has the wrong type \(option=exec/],
    [{ exec: '/no/such.mjs' }, /not found: script is not there \(exec=\/no\/such\.mjs/],
    [{ exec: [] }, /option=exec/],
    [{ exec: ['node', 'a.mjs'], args: ['x'] }, /a command has its arguments in exec \(option=args/],
    [{ exec, workers: 0 }, /option=workers, value=0, min=1, max=1024/],
    [{ exec, workers: 10_000 }, /option=workers, value=10000, .*max=1024/],
    [{ exec, workers: 'many' }, /option=workers/],
    [{ exec, listen: 3000 }, /option=listen/],
    [{ exec, listen: ['nonsense'] }, /not an address to listen at.*listen=nonsense/],
    [{ exec, listen: [{ port: 1, hots: 'x' }] }, /unknown option \(option=hots/],
    [{ exec, listen: [{ fd: '3' }] }, /option=listen, want=.*\{ fd \}/],
    [{ exec, listen: [{ fd: 3, port: 1 }] }, /option=listen/],
    [{ exec, listen: [{ fd: -1 }] }, /listen=fd:-1/],
    [{ exec, heartbeat: { interval: 1 } }, /option=heartbeat\.interval, value_ms=1, min_ms=10/],
    [{ exec, heartbeat: { interval: 100, timeout: 200 } }, /option=heartbeat\.timeout, value_ms=200, min_ms=400/],
    [{ exec, readyTimeout: 0 }, /option=readyTimeout/],
    [{ exec, drainTimeout: -1 }, /drainTimeout/],
    [{ exec, wrokers: 2 }, /unknown option \(option=wrokers, did_you_mean=workers, known=exec args/],
    [{ exec, Worker: 2 }, /\(option=Worker, did_you_mean=workers, known=/],
    [{ exec, threads: 2 }, /\(option=threads, known=/],
    [{ exec, heartbeat: { intervall: 1 } }, /\(option=intervall, did_you_mean=interval, known=/],
    [{ exec, env: 'A=b' }, /option=env/],
  ]) {
    assert.throws(() => new Cluster(options), { name: 'OffloopError', message }, JSON.stringify(options))
  }
  assert.throws(() => new Cluster({ exec }).stats, { code: 'ERR_OFFLOOP_CLOSED' })
})

test('a worker that has answered enough is replaced, and a client sees nothing of it', async (t) => {
  const cluster = await open(t, { workers: 1, maxRequests: 100, heartbeat: { interval: 20, timeout: 10_000 } })
  const port = portOf(cluster)
  const [first] = pids(cluster)
  const [expired, exited] = [once(cluster, 'expired'), once(cluster, 'exit')]
  let over = false
  const client = (async () => {
    let asked = 0
    for (; !over; asked++) assert.equal((await ask(port))[0], 'first 0')
    return asked
  })()
  const [worker, why] = await expired
  assert.deepEqual([worker.pid, why], [first, { reason: 'requests' }])
  const [gone, { exitCode, cause, forced }] = await exited
  assert.deepEqual([gone.pid, exitCode, cause, forced], [first, 0, 'retire', false])
  over = true
  assert.ok((await client) >= 90)
  assert.notEqual(pids(cluster)[0], first)
  assert.ok(cluster.stats.expired >= 1 && cluster.stats.crashed === 0)
})

test('a worker that is too old, or too big, is replaced', async (t) => {
  for (const [limit, reason] of [
    [{ maxAge: 1000 }, 'age'],
    [{ maxMemory: 2 ** 20 }, 'memory'],
  ]) {
    const cluster = await open(t, { workers: 1, ...limit })
    const [first] = pids(cluster)
    const [worker, why] = await once(cluster, 'expired')
    assert.deepEqual([worker.pid, why], [first, { reason }])
    const [gone, { cause }] = await once(cluster, 'exit')
    assert.deepEqual([gone.pid, cause], [first, 'retire'])
    await cluster.stop({ grace: 0 })
  }
  for (const [option, least] of [
    ['maxAge', 'min_ms=1000'],
    ['maxMemory', 'min=1048576'],
    ['maxRequests', 'min=1'],
  ]) {
    assert.throws(() => new Cluster({ exec: file('server.mjs'), [option]: 0 }), new RegExp(`option=${option}, value.*=0, ${least}`))
  }
})

test('workers have the niceness, core, user and limits that they were given', async (t) => {
  const confined = new URL('./clusters/confined.mjs', import.meta.url)
  // Another user's worker might not be let read its script here; core's tests start one.
  const user = { uid: process.getuid(), gid: process.getgid() }
  const cluster = await open(t, { exec: confined, nice: 2, pinCpus: true, ...user, limits: { nofile: 200, core: 0 }, oomScore: 300 })
  const seen = new Map()
  while (seen.size < 2) {
    const said = JSON.parse((await ask(portOf(cluster)))[0])
    seen.set(said.slot, said)
  }
  for (const { nice, uid, gid, files, core, oom, cpus } of seen.values()) {
    assert.deepEqual([uid, gid, files, core, oom], [user.uid, user.gid, '200', '0', '300'])
    assert.equal(nice, os.getPriority() + 2)
    assert.match(cpus, /^\d+$/)
  }
  if (os.availableParallelism() > 1) assert.notEqual(seen.get(0).cpus, seen.get(1).cpus)
})

test('what the kernel does not allow is the error of the start, and what cannot be that of the constructor', async (t) => {
  const exec = file('server.mjs')
  for (const [options, ...parts] of [
    [{ limits: { files: 3 } }, 'limit=files', 'nofile'],
    [{ limits: { nofile: -1 } }, 'limits', 'nofile: -1'],
    [{ limits: 5 }, 'limits'],
    [{ oomScore: 1001 }, 'oomScore', 'max=1000'],
    [{ uid: -1 }, 'uid'],
    [{ uid: 'root' }, 'uid'],
    [{ pinCpus: 1 }, 'pinCpus'],
    [{ nice: 0.5 }, 'nice'],
  ]) {
    const refused = (error) => error.code === 'ERR_OFFLOOP_INVALID' && parts.every((part) => error.message.includes(part))
    assert.throws(() => new Cluster({ exec, ...options }), refused, JSON.stringify(options))
  }
  const cluster = new Cluster({ exec, workers: 1, limits: { nofile: 2 ** 40 } })
  t.after(() => cluster.stop({ grace: 0 }))
  const error = await rejection(cluster.start())
  assert.ok(error.code === 'ERR_OFFLOOP_START_FAILED' && error.message.includes('prlimit'), error.message)
})

test('what workers print goes to files, as whole lines with who has printed them', async (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'offloop-log-'))
  t.after(() => fs.rmSync(dir, { recursive: true }))
  const log = path.join(dir, 'log')
  const cluster = await open(t, { exec: file('prints.mjs'), log: { file: log, size: 300, keep: 50 } })
  const pids = [...cluster.workers.values()].map(({ slot, pid }) => `${slot}:${pid}`)
  await cluster.stop()
  const files = fs.readdirSync(dir)
  assert.ok(files.length > 2, `${files}`)
  const lines = files.flatMap((name) => fs.readFileSync(path.join(dir, name), 'utf8').trimEnd().split('\n'))
  for (const name of files) assert.ok(fs.statSync(path.join(dir, name)).size <= 300)
  for (const pid of pids) {
    const own = lines.filter((line) => line.startsWith(`[${pid}] `)).map((line) => Number(/ line (\d+)$/.exec(line)[1]))
    assert.deepEqual(
      own.toSorted((a, b) => a - b),
      Array.from({ length: 50 }, (_, i) => i + 1),
    )
  }
  assert.equal(lines.length, 100)
})

test('a log that cannot be is refused', async () => {
  const exec = file('prints.mjs')
  for (const [log, ...parts] of [
    [5, 'log'],
    ['', 'option=log'],
    [{ size: 5 }, 'log.file'],
    [{ file: 'x', size: 0 }, 'option=log.size', 'value=0', 'min=1'],
    [{ file: 'x', size: 1.5 }, 'log.size'],
    [{ file: 'x', keep: 1001 }, 'option=log.keep', 'value=1001', 'max=1000'],
    [{ file: 'x', keep: -1 }, 'log.keep'],
    [{ file: 'x', count: 5 }, 'count'],
  ]) {
    const refused = (error) => error.code === 'ERR_OFFLOOP_INVALID' && parts.every((part) => error.message.includes(part))
    assert.throws(() => new Cluster({ exec, log }), refused, JSON.stringify(log))
  }
  const error = await rejection(new Cluster({ exec, log: '/no/such/directory/log' }).start())
  assert.ok(error.code === 'ERR_OFFLOOP_OS' && error.message.includes('/no/such/directory/log'), error.message)
})

test('a request of the cluster that a worker has taken is answered before it leaves', async (t) => {
  const cluster = await open(t, { exec: new URL('./clusters/answers.mjs', import.meta.url), workers: 1, killGrace: 500 })
  const asked = cluster.request(0, 'slow')
  // It is there: what comes next is answered.
  assert.equal(await cluster.request(0, 'quick'), 'quick')
  const report = await cluster.reload()
  assert.deepEqual([await asked, report.forced], ['slow', 0])
})

test('addresses of `listen` are sockets of their own, each once', async (t) => {
  const cluster = await open(t, { exec: file('server.mjs'), listen: [0, 0], env: { LISTEN: '[{ "fd": 3 }]' } })
  assert.equal(new Set(cluster.addresses).size, 2)
  const port = portOf(cluster)
  await cluster.stop()
  for (const listen of [
    [port, port],
    [port, `127.0.0.1:${port}`],
  ]) {
    const error = await rejection(new Cluster({ exec: file('server.mjs'), listen }).start())
    assert.ok(error.code === 'ERR_OFFLOOP_INVALID' && error.message.includes(`${port}`), error.message)
  }
})

test('a socket of this process is inherited, and stays its own', async (t) => {
  const own = net.createServer().listen(0, '127.0.0.1')
  await once(own, 'listening')
  t.after(() => own.close())
  const { port } = own.address()
  const cluster = await open(t, { listen: [{ fd: own._handle.fd }], env: { LISTEN: '[{ "fd": 3 }]' } })
  assert.deepEqual(cluster.addresses, [`127.0.0.1:${port}`])
  own.close()
  await once(own, 'close')
  assert.equal((await ask(port))[0], 'first 0')
  await cluster.stop()
  const refused = await rejection(ask(port))
  assert.equal(refused.code, 'ECONNREFUSED')
  const nothing = fs.openSync('/dev/null')
  t.after(() => fs.closeSync(nothing))
  for (const [fd, text] of [
    [nothing, `fd is no socket that listens (is=not a socket, listen=fd:${nothing})`],
    [2 ** 31 - 1, 'fd is not open (listen=fd:2147483647)'],
  ]) {
    const error = await rejection(new Cluster({ exec: file('server.mjs'), listen: [{ fd }] }).start())
    assert.ok(error.code === 'ERR_OFFLOOP_INVALID' && error.message.includes(text), error.message)
  }
})

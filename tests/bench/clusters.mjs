// Cluster beside node:cluster, and `offloop run` beside uvicorn's own workers, two workers of the same server each, asked by `offloop bench http`. Rates by kind of connection, requests that
// fail while the workers are replaced, and how long nobody answers when the only worker is killed.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import http from 'node:http'
import { fileURLToPath } from 'node:url'
import { freePort, print } from './load.mjs'

const file = (name) => fileURLToPath(new URL(name, import.meta.url))
const OFFLOOP = file('../../bindings-node/bin/offloop.cjs')
const SERVER = file('cluster/server.mjs')
const PYTHON = file('../../.venv/bin/python')
const ROUNDS = Number(process.env.ROUNDS ?? 3)
const SECONDS = 2
const RELOADS = 3

/** How each is started, with `WORKERS`. Both reload at SIGHUP. */
const OURS = [process.execPath, file('cluster/offloop_cluster.mjs')]
const THEIRS = [process.execPath, file('cluster/node_cluster.mjs')]

/** The report of one load; `command` runs meanwhile. */
async function load(command, options, env = {}) {
  const port = await freePort()
  const variables = Object.entries({ PORT: port, ...env }).map(([name, value]) => `${name}=${value}`)
  const args = ['bench', 'http', `http://127.0.0.1:${port}/`, '--json', ...options, '--', 'env', ...variables, ...command]
  const child = spawn(process.execPath, [OFFLOOP, ...args], { stdio: ['ignore', 'pipe', 'inherit'] })
  let text = ''
  child.stdout.on('data', (data) => {
    text += data
  })
  await once(child, 'close')
  const line = text.trim().split('\n').at(-1)
  return JSON.parse(line)
}

async function rates(name, mix, sides) {
  for (let round = 0; round < ROUNDS; round++) {
    for (const [who, command, env] of sides) {
      print(name, who, (await load(command, ['-d', SECONDS, '--mix', mix], env)).requests_per_s)
    }
  }
}

const KERNEL = ['node:cluster-none', THEIRS, { SCHED: 'none' }]
const TURNS = ['node:cluster-rr', THEIRS, {}]
await rates('node.cluster_keep', 'keep', [['offloop', OURS], KERNEL])
await rates('node.cluster_new', 'new', [['offloop', OURS], KERNEL])
await rates('node.cluster_new_turns', 'new', [['offloop', OURS], TURNS])

// What node:cluster does by itself: the primary accepts, and gives each worker one in turn.
const IN_TURN = { BALANCE: 'round-robin' }
await rates('node.cluster_passed_new', 'new', [['offloop', OURS, IN_TURN], TURNS])
await rates('node.cluster_passed_keep', 'keep', [['offloop', OURS, IN_TURN], TURNS])

const UVICORN = `${PYTHON} -m uvicorn --app-dir ${file('cluster')} --log-level error --port $PORT asgi:app`
const served = (command) => ['sh', '-c', `exec ${command}`]
const ASGI = [
  ['offloop', served(`${PYTHON} -m offloop run -w 2 -- ${UVICORN}`)],
  ['uvicorn', served(`${UVICORN} --workers 2`)],
]
await rates('py.cluster_keep', 'keep', ASGI)
await rates('py.cluster_new', 'new', ASGI)

/** Of a cluster with nothing else to do: the most connections that a worker got, of 200 that were opened one after the other and stay open, by the fewest. */
async function spread(balance) {
  const port = await freePort()
  const host = spawn(OURS[0], OURS.slice(1), { env: { ...process.env, PORT: port, WORKERS: 4, BALANCE: balance }, stdio: 'ignore' })
  const ask = (agent) =>
    new Promise((resolve) => {
      http
        .get({ host: '127.0.0.1', port, agent }, (response) => response.resume().on('end', () => resolve(response.headers['x-worker'])))
        .on('error', () => resolve(null))
    })
  const seen = new Set()
  while (seen.size < 4) {
    const worker = await ask(false)
    if (worker !== null) seen.add(worker)
  }
  const counts = new Map([...seen].map((worker) => [worker, 0]))
  const agents = Array.from({ length: 200 }, () => new http.Agent({ keepAlive: true }))
  for (const agent of agents) {
    const worker = await ask(agent)
    counts.set(worker, (counts.get(worker) ?? 0) + 1)
  }
  for (const agent of agents) agent.destroy()
  host.kill('SIGTERM')
  await once(host, 'exit')
  return Math.max(...counts.values()) / Math.min(...counts.values())
}

for (const balance of ['round-robin', 'least-connections']) print(`node.cluster_spread_${balance.split('-')[0]}`, 'offloop', await spread(balance))

// Long enough apart for either to be done with one.
const reloads = ['--every', '7', '--settle', '6', '--run', 'kill -HUP {pid}', '--times', RELOADS]
for (const [who, command, env] of [['offloop', OURS], KERNEL, TURNS]) {
  const report = await load(command, reloads, env)
  print('node.cluster_failed', who, report.failed)
  if (who === 'offloop') print('node.cluster_p99', who, report.p99_ratio)
}

/** ms from the SIGKILL of the only worker to the next answer; with SPARES once one waits. */
async function crash(command, env = {}) {
  const port = await freePort()
  const stdio = ['ignore', 'ignore', 'ignore', 'ipc']
  const host = spawn(command[0], command.slice(1), { env: { ...process.env, PORT: port, WORKERS: 1, ...env }, stdio })
  const spare = env.SPARES === undefined ? null : once(host, 'message')
  const ask = () =>
    new Promise((resolve) => {
      http
        .get({ host: '127.0.0.1', port, agent: false }, (response) => response.resume().on('end', () => resolve(Number(response.headers['x-worker']))))
        .on('error', () => resolve(null))
    })
  let pid = null
  while (pid === null) pid = await ask()
  await spare
  const begun = performance.now()
  process.kill(pid, 'SIGKILL')
  for (let next = pid; next === null || next === pid; ) next = await ask()
  const took = performance.now() - begun
  host.kill('SIGKILL')
  await once(host, 'exit')
  return took
}

for (let round = 0; round < ROUNDS; round++) {
  // What a start takes that nobody supervises.
  const bare = await bareStart()
  const ours = await crash(OURS)
  print('node.cluster_crash', 'offloop', ours)
  print('node.cluster_crash', 'node:cluster-none', await crash(THEIRS, { SCHED: 'none' }))
  print('node.cluster_crash', 'bare-start', bare)
  print('node.cluster_crash_over', 'offloop', ours - bare)
  print('node.cluster_crash_spare', 'offloop', await crash(OURS, { SPARES: 1 }))
}

async function bareStart() {
  const port = await freePort()
  const begun = performance.now()
  const child = spawn(process.execPath, [SERVER], { env: { ...process.env, PORT: port }, stdio: 'ignore' })
  for (let answered = false; !answered; ) {
    answered = await new Promise((resolve) => {
      http.get({ host: '127.0.0.1', port, agent: false }, (r) => r.resume().on('end', () => resolve(true))).on('error', () => resolve(false))
    })
  }
  const took = performance.now() - begun
  child.kill()
  await once(child, 'exit')
  return took
}

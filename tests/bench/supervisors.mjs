// What `offloop run` itself takes beside eight workers that nobody asks, and how soon a Cluster tells of a worker that was killed.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Cluster } from '../../bindings-node/lib/index.mjs'
import { freePort, print } from './load.mjs'

const file = (name) => fileURLToPath(new URL(name, import.meta.url))
const SERVER = file('cluster/server.mjs')
const ROUNDS = Number(process.env.ROUNDS ?? 3)
const WORKERS = 8
const IDLE_MS = 10_000

/** Memory of a process, in MB: pages that others have too count in parts. */
const pss = (pid) => (/^Pss:\s+(\d+) kB/m.exec(fs.readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))[1] * 1024) / 1e6

/** ms that all threads of a process have run. */
function ran(pid) {
  const of = (thread) => Number(fs.readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0])
  return fs.readdirSync(`/proc/${pid}/task`).reduce((sum, thread) => sum + of(thread), 0) / 1e6
}

async function run() {
  const args = [file('../../bindings-node/bin/offloop.cjs'), 'run', '-w', String(WORKERS), '--', process.execPath, SERVER]
  const host = spawn(process.execPath, args, { env: { ...process.env, PORT: await freePort() }, stdio: ['ignore', 'ignore', 'pipe'] })
  await new Promise((resolve) => {
    host.stderr.on('data', (data) => /are ready/.test(data) && resolve())
  })
  await pause(2000)
  print('run.memory', 'offloop', pss(host.pid))
  const before = ran(host.pid)
  await pause(IDLE_MS)
  print('run.idle', 'offloop', ((ran(host.pid) - before) / IDLE_MS) * 100)
  host.kill('SIGTERM')
  await once(host, 'exit')
}

/** p99 of the times from the SIGKILL of a worker to its `exit` event; each has been replaced before the next. */
async function told() {
  const cluster = new Cluster({ exec: SERVER, env: { PORT: String(await freePort()) }, workers: WORKERS, minReady: 0 })
  await cluster.start()
  const times = []
  for (let slot = 0; slot < WORKERS; slot++) {
    const exited = once(cluster, 'exit')
    const replaced = once(cluster, 'ready')
    const from = performance.now()
    process.kill(cluster.workers.get(slot).pid, 'SIGKILL')
    await exited
    times.push(performance.now() - from)
    await replaced
  }
  await cluster.stop()
  times.sort((a, b) => a - b)
  return times[Math.floor(times.length * 0.99)]
}

for (let round = 0; round < ROUNDS; round++) {
  await run()
  print('node.cluster_told', 'offloop', await told())
}

// A server on two workers, whose work one pool of processes does for both. `node cluster.mjs`, with PORT. SIGHUP reloads it; SIGUSR2 kills a process of the pool, whatever that does.
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Cluster, ProcessPool } from '../../bindings-node/lib/index.mjs'

// Who is lost with its process runs again.
const pool = new ProcessPool(new URL('own_primes.mjs', import.meta.url), { maxWorkers: 2 })
const exec = fileURLToPath(new URL('cluster_server.mjs', import.meta.url))
const cluster = new Cluster({ exec, workers: 2, pool, minReady: 100, listen: [`127.0.0.1:${process.env.PORT}`] })

const children = () => fs.readdirSync('/proc/self/task').flatMap((id) => fs.readFileSync(`/proc/self/task/${id}/children`, 'utf8').split(' '))
process.on('SIGHUP', () => cluster.reload())
process.on('SIGUSR2', () => {
  const victim = children().map(Number).find((pid) => pid > 0 && fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('worker-main'))
  if (victim === undefined) throw new Error('the pool has no process')
  process.kill(victim, 'SIGKILL')
})
process.on('SIGTERM', () => cluster.stop().then(() => process.exit()))
await pool.exports.primes(2)
await cluster.start()

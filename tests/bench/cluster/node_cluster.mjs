// node:cluster with WORKERS (2) workers of server.mjs. SIGHUP replaces them by its own means, one after the other: a new one is forked and listens before
// `disconnect()` is called on an old one, which is killed when it has not left after 3 s (a kept-alive connection keeps it for ever).
// PORT, else 8080. SCHED=none leaves the distribution to the kernel; else it is round-robin. Prints a line when a reload has ended.

import cluster from 'node:cluster'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

cluster.schedulingPolicy = process.env.SCHED === 'none' ? cluster.SCHED_NONE : cluster.SCHED_RR
cluster.setupPrimary({ exec: fileURLToPath(new URL('server.mjs', import.meta.url)) })

const start = () => once(cluster.fork(), 'listening')
for (let i = 0; i < Number(process.env.WORKERS ?? 2); i++) await start()

async function replace(old) {
  await start()
  const left = once(old, 'exit')
  old.disconnect()
  const limit = setTimeout(() => old.process.kill('SIGKILL'), 3000)
  await left
  clearTimeout(limit)
}

let reloading = Promise.resolve()
process.on('SIGHUP', () => {
  reloading = reloading.then(async () => {
    for (const old of Object.values(cluster.workers)) await replace(old)
    console.log('reloaded')
  })
})
cluster.on('exit', (worker) => worker.exitedAfterDisconnect || start())

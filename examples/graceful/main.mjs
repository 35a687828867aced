// The server of server.mjs on all cores. SIGTERM and Ctrl-C: what has begun is answered, each worker closes what it has open, and this process ends with status 0.
import { Cluster } from 'offloop'

const cluster = new Cluster({ exec: new URL('server.mjs', import.meta.url), workers: 2, drainTimeout: 20_000 })
cluster.on('exit', (worker, { exitCode, signal, forced, text }) => {
  console.log(`worker ${worker.slot} ended: ${signal ?? exitCode}`)
  // It has not finished in time, or failed: then so has this process.
  if (forced || exitCode !== 0) process.exitCode = 1
  if (text) console.error(text)
})
for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => cluster.stop())

await cluster.start()
console.log(`listening on ${cluster.addresses}, ${cluster.workers.size} workers`)

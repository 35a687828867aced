// A server on all cores whose workers share one queue of tasks, one limit and one count. SIGTERM and Ctrl-C end it when its requests are answered.
import { Cluster, Counter, ProcessPool } from 'offloop'

// Two processes compute for all workers; what they do not get to waits here.
const pool = new ProcessPool(new URL('primes.mjs', import.meta.url), { maxWorkers: 2, maxQueue: 1000 })
const cluster = new Cluster({ exec: new URL('server.mjs', import.meta.url), workers: 2, pool })
cluster.on('exit', (worker, { signal }) => signal && console.log(`worker ${worker.slot} ended by ${signal}`))

for (const signal of ['SIGTERM', 'SIGINT']) {
  process.once(signal, async () => {
    const answered = new Counter('answered', { cluster })
    await cluster.stop()
    console.log(`${answered.value} answered`)
    await pool.close()
  })
}

await cluster.start()
console.log(`listening on ${cluster.addresses}, ${cluster.workers.size} workers`)

// The WebSocket room of room.mjs on all cores. A client comes to the same worker each time, and what is said to one worker is heard by the clients of all.
import { fileURLToPath } from 'node:url'
import { Cluster } from 'offloop'

const cluster = new Cluster({ exec: fileURLToPath(new URL('room.mjs', import.meta.url)), workers: 2, balance: 'ip-hash', drainTimeout: 5000 })
cluster.on('message', (_worker, line) => {
  // Who is about to end, or reads nothing, misses it.
  for (const { worker, error } of cluster.broadcast(line)) console.error(`worker ${worker.slot} has missed a line: ${error.message}`)
})
process.on('SIGHUP', () => cluster.reload().catch((error) => console.error(`not reloaded: ${error.message}`)))
for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => cluster.stop())

await cluster.start()
console.log(`listening on ${cluster.addresses}, ${cluster.workers.size} workers`)

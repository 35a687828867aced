// The server of server.mjs on all cores: SIGHUP reloads it, SIGTERM and Ctrl-C end it when its requests are answered.
import { fileURLToPath } from 'node:url'
import { Cluster } from 'offloop'

const cluster = new Cluster({ exec: fileURLToPath(new URL('server.mjs', import.meta.url)), workers: 2 })
cluster.on('exit', (worker, { text }) => text && console.error(`worker ${worker.slot}: ${text}`))

// All workers count together: what each has done is said here, and who wants to know asks.
let hashes = 0
cluster.on('message', (_worker, { hashed }) => {
  hashes += hashed
})
cluster.on('request', (_worker, request) => request.reply(hashes))

process.on('SIGHUP', () =>
  cluster.reload().catch((error) => {
    // What did not come up; the workers of before go on. A reload that a stop overtakes is no failure.
    if (error.code !== 'ERR_OFFLOOP_CLOSED') console.error(`not reloaded: ${error.message}`)
  }),
)
for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => cluster.stop())

await cluster.start()
console.log(`listening on ${cluster.addresses}, ${cluster.workers.size} workers`)

// A cluster of two workers, by BALANCE. SIGHUP reloads it, and says so on the fifo DONE: `ok`, or why not. SIGTERM stops it.
import fs from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Cluster } from '../../bindings-node/lib/index.mjs'

const cluster = new Cluster({ exec: fileURLToPath(new URL('../bench/cluster/server.mjs', import.meta.url)), workers: 2, balance: process.env.BALANCE, minReady: 0 })
let forced = 0
cluster.on('exit', (worker, { cause, signal, text }) => {
  if (cause !== 'retire' && cause !== 'stop') console.error(`worker ${worker.slot} ended: ${cause} ${signal} ${text}`)
})
await cluster.start()

process.on('SIGHUP', async () => {
  let said = 'ok'
  try {
    forced += (await cluster.reload()).forced
    if (forced > 0) said = `${forced} workers were forced to end`
  } catch (error) {
    said = error.message
  }
  fs.writeFileSync(process.env.DONE, `${said}\n`)
})
process.on('SIGTERM', () => cluster.stop())

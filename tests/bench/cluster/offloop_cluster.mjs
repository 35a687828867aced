// Our cluster of WORKERS (2) of server.mjs, by BALANCE (shared), with SPARES (0). SIGHUP reloads it. PORT, else 8080. Whoever has started it with a channel hears of each spare.

import { fileURLToPath } from 'node:url'
import { Cluster } from '../../../bindings-node/lib/index.mjs'

const exec = fileURLToPath(new URL('server.mjs', import.meta.url))
const { WORKERS = 2, SPARES = 0, BALANCE } = process.env
const cluster = new Cluster({ exec, workers: Number(WORKERS), spares: Number(SPARES), balance: BALANCE, minReady: 0 })
cluster.on('spare', () => process.send?.('spare'))
await cluster.start()
process.on('SIGHUP', () => cluster.reload())
process.on('SIGTERM', () => cluster.stop())

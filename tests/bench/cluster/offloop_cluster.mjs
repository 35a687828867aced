// Our cluster of WORKERS (2) of server.mjs, by BALANCE (shared). SIGHUP reloads it. PORT, else 8080.

import { fileURLToPath } from 'node:url'
import { Cluster } from '../../../bindings-node/lib/index.mjs'

const exec = fileURLToPath(new URL('server.mjs', import.meta.url))
const cluster = new Cluster({ exec, workers: Number(process.env.WORKERS ?? 2), balance: process.env.BALANCE, minReady: 0 })
await cluster.start()
process.on('SIGHUP', () => cluster.reload())
process.on('SIGTERM', () => cluster.stop())

import offloop = require('offloop')

const pool: offloop.ThreadPool = new offloop.ThreadPool()
const result: Promise<Uint8Array> = pool.run('sha256', Buffer.from('x'))
void result

const workers: offloop.WorkerPool = new offloop.WorkerPool('w.cjs')
void workers.exports.anything?.(1)

import cluster = require('offloop/cluster')
if (cluster.isPrimary) cluster.fork({ NAME: 'first' }).on('exit', (code: number, signal: string) => console.log(code, signal))
else cluster.worker?.send({ cmd: 'notifyRequest' })

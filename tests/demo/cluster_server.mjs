// A worker of cluster.mjs: each request is a call of the pool.
import http from 'node:http'
import { currentWorker } from '../../bindings-node/lib/worker.mjs'

const { primes } = currentWorker().pool.options({ retries: 3 }).exports

http
  .createServer(async (request, response) => {
    for await (const _ of request);
    response.setHeader('x-worker', process.pid)
    response.end(`${await primes(20_000)}\n`)
  })
  .listen(Number(process.env.PORT), '127.0.0.1')

// Counts its requests, and lets ten through, together with the other workers.
import http from 'node:http'
import { Counter, RateLimiter } from '../../lib/index.mjs'

const hits = new Counter('hits')
const few = new RateLimiter('few', { rate: Number(process.env.RATE ?? 1e-6), burst: 10 })

http
  .createServer((request, response) => {
    const { allowed, remaining, retryAfter } = few.take(request.headers['x-key'])
    hits.add()
    response.writeHead(allowed ? 200 : 429, { 'retry-after': Math.ceil(retryAfter / 1000), 'x-remaining': remaining, connection: 'close' })
    response.end(String(process.pid))
  })
  .listen(0, '127.0.0.1')

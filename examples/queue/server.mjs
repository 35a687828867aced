// GET /100000: how many primes are below it. Each client may ask 20 times at once, and once a second from then on.
import { createServer } from 'node:http'
import { Counter, RateLimiter } from 'offloop'
import { currentWorker } from 'offloop/worker'

const { pool } = currentWorker()
const answered = new Counter('answered')
const clients = new RateLimiter('clients', { rate: 1, burst: 20 })

const server = createServer(async (request, response) => {
  const { allowed, retryAfter } = clients.take(request.socket.remoteAddress)
  if (!allowed) {
    response.writeHead(429, { 'retry-after': Math.ceil(retryAfter / 1000) })
    return response.end('later\n')
  }
  try {
    // A client that is in a hurry passes those that wait.
    const priority = request.headers.urgent === undefined ? 0 : 10
    const primes = await pool.options({ timeout: 30_000, priority }).exports.below(Number(request.url.slice(1)))
    answered.add()
    response.end(`${primes} primes\n`)
  } catch (error) {
    response.writeHead(error.code === 'ERR_OFFLOOP_FULL' ? 503 : 400)
    response.end(`${error.message}\n`)
  }
})
server.listen(Number(process.env.PORT ?? 3000))

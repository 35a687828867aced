// An HTTP server that hashes passwords off its event loop: POST one to /hash; GET / says what the pool does.
import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'
import { WorkerPool } from 'offloop'

/** @type {WorkerPool<typeof import('./worker.mjs')>} */
const pool = new WorkerPool(new URL('worker.mjs', import.meta.url), { maxQueue: 100, timeout: 30_000 })
const STATUS = { ERR_OFFLOOP_FULL: 503, ERR_OFFLOOP_TIMEOUT: 504 }

const server = createServer(async (request, response) => {
  if (request.url !== '/hash') {
    const { running, queued, completed, cancelled } = pool.stats
    response.setHeader('content-type', 'application/json').end(`${JSON.stringify({ running, queued, completed, cancelled })}\n`)
    return
  }
  // Nobody waits for the hash of a client that has left.
  const left = new AbortController()
  response.once('close', () => left.abort())
  try {
    const password = await text(request)
    response.end(`${await pool.options({ signal: left.signal }).exports.hash(password, 'salt')}\n`)
  } catch (error) {
    response.statusCode = STATUS[error.code] ?? 500
    response.end(`${error.message}\n`)
  }
})

server.listen(process.env.PORT ?? 3000, () => console.log(`listening on ${server.address().port}`))
process.once('SIGTERM', async () => {
  server.close()
  server.closeAllConnections()
  await pool.close({ grace: 1000 })
})

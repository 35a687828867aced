// An HTTP server that hashes passwords: 50 ms of CPU each, and /health answers at once meanwhile.
//
//   node examples/node/server.mjs
//   curl -d 'correct horse' localhost:3000/hash

import { createServer } from 'node:http'
import { buffer } from 'node:stream/consumers'
import { ThreadPool } from 'offloop'

// Bounded: beyond 64 waiting requests the answer is 503, not a longer queue.
const pool = new ThreadPool({ maxQueue: 64, queueTimeout: 2000 })

const server = createServer(async (request, response) => {
  if (request.url === '/health') return response.end('ok\n')
  const gone = new AbortController()
  response.on('close', () => gone.abort())
  try {
    const phc = await pool.run('password.hash', await buffer(request), null, { signal: gone.signal })
    response.end(`${phc}\n`)
  } catch (error) {
    if (error.name === 'AbortError') return
    const busy = error.code === 'ERR_OFFLOOP_FULL' || error.code === 'ERR_OFFLOOP_TIMEOUT'
    response.writeHead(busy ? 503 : 500).end(`${error.message}\n`)
  }
})

server.listen(process.env.PORT ?? 3000, () => console.log(`listening on ${server.address().port}`))

process.once('SIGTERM', () => {
  server.close(() => pool.close())
})

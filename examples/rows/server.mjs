// An HTTP server that streams rows which a Python process makes, as fast as the client reads them.
//
// * A slow client slows the Python process down: the ring is full, and nothing is queued anywhere else.
// * When the client goes away the ring is closed, and the Python process ends by itself.
// * When the Python process dies, the client gets every row that it had published, a last line that says why there are no more, and a
//   response that is cut short, so that it cannot be taken for a whole one. Without a single row it is an error 502.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { RingBuffer } from 'offloop'

const script = fileURLToPath(new URL('rows.py', import.meta.url))

/** The rows in pieces of about 16 KiB: one write per row would cost more than the row. Fails behind the last one if `exited` was no success. */
async function* pieces(consumer, exited) {
  let piece = []
  let length = 0
  let rows = 0
  try {
    for await (const row of consumer) {
      rows++
      piece.push(row)
      length += row.length
      if (length < 16_384) continue
      yield Buffer.concat(piece, length)
      piece = []
      length = 0
    }
  } catch (error) {
    if (error.code !== 'ERR_OFFLOOP_PEER_DIED') throw error
  }
  if (length > 0) yield Buffer.concat(piece, length)
  const [code, signal] = await exited
  if (code !== 0) throw new Error(`rows end after ${rows}: their process ended with ${signal ?? code}`)
}

const server = createServer(async (request, response) => {
  const rows = new URL(request.url, 'http://localhost').searchParams.get('rows') ?? '1000'
  const ring = RingBuffer.create({ kind: 'spsc', capacity: 1 << 16 })
  const consumer = ring.consumer()
  const child = spawn(process.env.PYTHON ?? 'python3', [script, rows], { stdio: ['ignore', 'inherit', 'inherit', ...ring.fds] })
  console.log(`${request.url}: process ${child.pid}`)
  const exited = once(child, 'exit')
  exited.finally(() => ring.close()) // what it has published is read first
  response.setHeader('content-type', 'application/x-ndjson')
  try {
    await pipeline(Readable.from(pieces(consumer, exited)), response, { end: false })
    response.end()
  } catch (error) {
    if (response.destroyed) return console.log(`${request.url}: the client has left`)
    const line = `${JSON.stringify({ error: error.message })}\n`
    if (response.headersSent) response.write(line, () => response.destroy())
    else response.writeHead(502).end(line)
  } finally {
    consumer.close()
    ring.close() // a push in the other process fails with ClosedError from here on
  }
})

server.listen(process.env.PORT ?? 3000, () => console.log(`listening on ${server.address().port}`))

process.once('SIGTERM', () => server.close())

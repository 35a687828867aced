// An HTTP server that streams rows which another process makes, as fast as the client reads them.
//
//   node examples/node/ring-server.mjs
//   curl 'localhost:3000/?rows=1000000' | tail -1

import { spawn } from 'node:child_process'
import { createServer } from 'node:http'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { RingBuffer } from 'offloop'

const maker = fileURLToPath(new URL('ring-rows.mjs', import.meta.url))

/** Rows in pieces of about 16 KiB: one write per row would cost more than the row. */
async function* pieces(consumer) {
  let piece = []
  let length = 0
  for await (const row of consumer) {
    piece.push(row)
    length += row.length
    if (length < 16_384) continue
    yield Buffer.concat(piece, length)
    piece = []
    length = 0
  }
  yield Buffer.concat(piece, length)
}

const server = createServer(async (request, response) => {
  const rows = Number(new URL(request.url, 'http://localhost').searchParams.get('rows') ?? 1000)
  const ring = RingBuffer.create({ kind: 'spsc', capacity: 1 << 20 })
  const child = spawn(process.execPath, [maker, String(rows)], { stdio: ['ignore', 'inherit', 'inherit', ...ring.fds] })
  const consumer = ring.consumer()
  try {
    // If the other process is killed, the iteration throws after its last row, and the client sees an aborted response.
    await pipeline(Readable.from(pieces(consumer)), response)
  } catch (error) {
    console.error(error.message)
  } finally {
    consumer.close()
    child.kill()
  }
})

server.listen(process.env.PORT ?? 3000, () => console.log(`listening on ${server.address().port}`))

process.once('SIGTERM', () => server.close())

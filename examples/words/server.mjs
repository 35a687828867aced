// An HTTP server that asks a Python process: POST a text to it, and get its words counted.
//
// The two speak over a channel whose other end the child inherits. A child that dies is replaced, and whoever waited for it gets a 503.
import { spawn } from 'node:child_process'
import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { Channel } from 'offloop'

const worker = fileURLToPath(new URL('words.py', import.meta.url))
let channel

function start() {
  const [own, other] = Channel.pair()
  const child = spawn(process.env.PYTHON ?? 'python3', [worker], { stdio: ['ignore', 'inherit', 'inherit', other.fd] })
  other.close() // the child's from here on
  channel = own
  own.on('close', (why) => {
    if (stopping) return
    console.error(`python: ${why.message}`)
    child.once('exit', start)
  })
}

let stopping = false
start()

const server = createServer(async (request, response) => {
  try {
    const counts = await channel.request(await text(request), { timeout: 5000 })
    response.setHeader('content-type', 'application/json').end(`${JSON.stringify(counts)}\n`)
  } catch (error) {
    response.statusCode = 503
    response.end(`${error.message}\n`)
  }
})

server.listen(process.env.PORT ?? 3000, () => console.log(`listening on ${server.address().port}`))
process.once('SIGTERM', () => {
  stopping = true
  server.close()
  server.closeAllConnections()
  channel.close() // which ends the child
})

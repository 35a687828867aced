// One worker: a WebSocket for each client. `/name ada` gives a client its name, anything else is said to all. Who has which name is known to this worker alone, in its memory: with
// `balance: 'ip-hash'` all connections of a client come here, so it has its name still when it connects again.
import { createServer } from 'node:http'
import { currentWorker } from 'offloop/worker'
import { WebSocketServer } from 'ws'

/** "Service restart" of RFC 6455: connect again. */
const RESTART = 1012

const worker = currentWorker()
const names = new Map()
const server = createServer((_request, response) => response.writeHead(426, { connection: 'close', upgrade: 'websocket' }).end())
const room = new WebSocketServer({ server })

room.on('connection', (client, request) => {
  const from = request.socket.remoteAddress
  client.on('error', (error) => console.error(`${from}: ${error.message}`))
  client.on('message', (data) => {
    const text = String(data)
    if (text.startsWith('/name ')) names.set(from, text.slice(6))
    else worker.send(`${names.get(from) ?? 'somebody'}: ${text}`)
  })
  client.send(`worker ${worker.slot}`)
})
worker.on('message', (line) => {
  for (const client of room.clients) client.send(line)
})
// Open connections would be waited for: the worker that takes this one's place is there already.
worker.onDrain(() => {
  for (const client of room.clients) client.close(RESTART)
})
server.listen(Number(process.env.PORT ?? 3000))

// One worker: POST a name to /name, then what you say to /say; GET / is everything that anybody says, as server-sent events. Who has which name is known
// to this worker alone, in its memory: with `balance: 'ip-hash'` a client's requests all come here.
import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'
import { currentWorker } from 'offloop/worker'

const worker = currentWorker()
const names = new Map()
const listeners = new Set()

worker.on('message', (line) => {
  for (const response of listeners) response.write(`data: ${line}\n\n`)
})
// An open stream would be waited for: its client comes again, by itself, to the worker that takes this one's place.
worker.onDrain(() => {
  for (const response of listeners) response.end()
})

createServer(async (request, response) => {
  const client = request.socket.remoteAddress
  switch (`${request.method} ${request.url}`) {
    case 'POST /name':
      names.set(client, await text(request))
      return response.end()
    case 'POST /say':
      worker.send(`${names.get(client) ?? 'somebody'}: ${await text(request)}`)
      return response.end()
    case 'GET /':
      response.writeHead(200, { 'content-type': 'text/event-stream', connection: 'close' })
      response.write(`retry: 100\n: worker ${worker.slot}\n\n`)
      listeners.add(response)
      return response.on('close', () => listeners.delete(response))
  }
  response.writeHead(404).end()
}).listen(Number(process.env.PORT ?? 3000))

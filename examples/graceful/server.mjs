// GET /500 takes 500 ms, and then a row in the store.
import { once } from 'node:events'
import { createServer } from 'node:http'
import { setTimeout } from 'node:timers/promises'
import { currentWorker } from 'offloop/worker'
import { Store } from './store.mjs'

const worker = currentWorker()
const store = new Store('rows.txt')

const server = createServer(async (request, response) => {
  console.log(`begun ${request.url}`)
  await setTimeout(Number(request.url.slice(1)))
  store.add({ path: request.url })
  response.end('done\n')
})

worker.onDrain(async () => {
  // It is called when the server accepts no more, and what has begun needs the store still: the server closes with its last connection.
  await once(server, 'close')
  console.log(`worker ${worker.slot} has closed its store, ${await store.close()} rows`)
})

server.listen(Number(process.env.PORT ?? 3000))

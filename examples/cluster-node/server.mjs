// One of several servers on the same port: POST a password to /, and get its hash; GET how many all of them have made. Processes share the traffic; what would block one of them is done by
// threads of its own. `node server.mjs` runs it alone.
import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'
import { WorkerPool } from 'offloop'
import { currentWorker } from 'offloop/worker'

const pool = new WorkerPool(new URL('hash.mjs', import.meta.url), { minWorkers: 1, maxWorkers: 2 })
const worker = currentWorker()
const { slot = 0, generation = 1 } = worker ?? {}

const server = createServer(async (request, response) => {
  if (request.method === 'GET') return response.end(`${await worker?.request('hashes')} hashes\n`)
  const hash = await pool.run(await text(request))
  worker?.send({ hashed: 1 })
  response.end(`${hash} worker ${slot} of generation ${generation}\n`)
})
server.listen(Number(process.env.PORT ?? 3000))

// Work that takes longer than a request: POST /jobs answers at once with an id; GET /jobs/ID tells how far it is, DELETE /jobs/ID cancels it.
import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import { json } from 'node:stream/consumers'
import { WorkerPool } from 'offloop'

const MOST_WAITING = 100
const KEEP = 10 * 60_000 // ms that a job which has ended can be asked for

const pool = new WorkerPool(new URL('worker.mjs', import.meta.url))
const jobs = new Map()

function start(task) {
  const id = randomUUID()
  const abort = new AbortController()
  const job = { abort, shown: { state: 'queued', progress: 0 } }
  jobs.set(id, job)
  const { signal } = abort
  const onProgress = (progress) => Object.assign(job.shown, { state: 'running', progress })
  const done = (result) => Object.assign(job.shown, { state: 'done', progress: 1, result })
  const failed = ({ name, message }) => Object.assign(job.shown, name === 'AbortError' ? { state: 'cancelled' } : { state: 'failed', error: message })
  pool
    .run(task, { name: 'primes', signal, onProgress })
    .then(done, failed)
    .finally(() => setTimeout(() => jobs.delete(id), KEEP).unref())
  return id
}

const server = createServer(async (request, response) => {
  const answer = (status, body, headers = {}) => response.writeHead(status, headers).end(body === undefined ? '' : `${body}\n`)
  const [, place, id] = request.url.split('/')
  if (place !== 'jobs') return answer(404)
  if (request.method === 'POST' && id === undefined) {
    if (pool.stats.queued >= MOST_WAITING) return answer(503, 'too many jobs wait', { 'retry-after': '1' })
    try {
      const started = start(await json(request))
      answer(202, started, { location: `/jobs/${started}` })
    } catch (error) {
      answer(400, error.message)
    }
    return
  }
  const job = jobs.get(id)
  if (job === undefined) answer(404)
  else if (request.method === 'GET') answer(200, JSON.stringify(job.shown), { 'content-type': 'application/json' })
  else if (request.method === 'DELETE') {
    job.abort.abort()
    answer(202)
  } else answer(405)
})

server.listen(process.env.PORT ?? 3000, () => console.log(`listening on ${server.address().port}`))
process.once('SIGTERM', async () => {
  server.close()
  server.closeAllConnections()
  await pool.close({ grace: 1000 })
})

// An HTTP server whose model is numpy: POST rows of numbers to /, and get the class of each. The model runs in Python processes, one call at a time
// in each; a crash there costs the request that ran.
import { createServer } from 'node:http'
import { json } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { ProcessPool } from 'offloop'

const FEATURES = 4
const CLASSES = ['chair', 'desk', 'lamp']

const model = fileURLToPath(new URL('model.py', import.meta.url))
const pool = new ProcessPool({ python: model }, { context: { seed: 1, features: FEATURES }, minWorkers: 1, timeout: 10_000 })

/** The rows side by side, as numpy has them: they travel as they lie in memory. */
function flat(rows) {
  if (!Array.isArray(rows) || !rows.every((row) => Array.isArray(row) && row.length === FEATURES)) throw new TypeError(`rows of ${FEATURES} numbers`)
  return Float64Array.from(rows.flat())
}

const server = createServer(async (request, response) => {
  const answer = (status, body) => response.writeHead(status, { 'content-type': 'application/json' }).end(`${JSON.stringify(body)}\n`)
  let features
  try {
    features = flat(await json(request))
  } catch (error) {
    return answer(400, { error: error.message })
  }
  try {
    const scores = await pool.exports.predict(features)
    const classOf = (_, row) => {
      const three = scores.subarray(row * 3, row * 3 + 3)
      return CLASSES[three.indexOf(Math.max(...three))]
    }
    answer(200, Array.from({ length: features.length / FEATURES }, classOf))
  } catch (error) {
    answer(error.code === 'ERR_OFFLOOP_FULL' ? 503 : 500, { error: error.message })
  }
})

server.listen(process.env.PORT ?? 3000, () => console.log(`listening on ${server.address().port}`))
process.once('SIGTERM', async () => {
  server.close()
  server.closeAllConnections()
  await pool.close({ grace: 1000 })
})

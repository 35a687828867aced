// Answers requests of its cluster, `slow` ones only once it is to leave.
import { currentWorker } from '../../lib/worker.mjs'

const worker = currentWorker()
let leaves
const leaving = new Promise((resolve) => {
  leaves = resolve
})
worker.onDrain(leaves)
worker.on('request', async (request) => {
  if (request.value === 'slow') await leaving.then(() => new Promise((resolve) => setTimeout(resolve, 1000)))
  request.reply(request.value)
})
worker.ready()

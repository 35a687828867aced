// A worker that listens for messages, and for nothing else, unless it is asked to.
import fs from 'node:fs'
import { currentWorker } from '../../lib/worker.mjs'

const worker = currentWorker()
if (process.env.DEAF !== String(worker.slot)) {
  worker.on('message', async (message, fds) => {
    switch (message.what ?? message) {
      case 'ask':
        worker.send({ told: await worker.request(20) })
        break
      case 'bytes': {
        const { buffer } = message
        fs.writeSync(fds[0], buffer.bytes())
        fs.closeSync(fds[0])
        break
      }
      case 'go':
        for (let i = 1; i <= 300; i++) worker.send(i)
        process.exit(3)
        break
      case 'fill':
        while (worker.send('x'.repeat(1000)));
        process.exit(0)
        break
      default:
        worker.send({ slot: worker.slot, heard: message })
    }
  })
  worker.on('request', (request) => {
    if (typeof request.value === 'number') request.reply(request.value + 1)
    else request.fail(new RangeError(`not a number: ${request.value}`))
  })
}
// It keeps nothing alive by itself.
if (process.env.DEAF !== undefined) setInterval(() => {}, 1000)
worker.send({ hello: worker.slot, generation: worker.generation })
worker.ready()

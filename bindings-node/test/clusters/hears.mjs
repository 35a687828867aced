// A host that hears what its worker prints, and says it when all is over; the first line makes its listener throw.
import { fileURLToPath } from 'node:url'
import { Cluster } from '../../lib/index.mjs'

const heard = []
const cluster = new Cluster({
  exec: fileURLToPath(new URL('says.mjs', import.meta.url)),
  workers: 1,
  minReady: 0,
  log: process.argv[2],
})
process.on('uncaughtException', (error) => heard.push(error.message))
const sixth = new Promise((resolve) => {
  cluster.on('log', (_, { text }) => {
    heard.push(text)
    if (text === 'line 5') resolve()
    if (text === 'line 0') throw new Error('mine')
  })
})
await cluster.start()
cluster.send(0, { out: 'line #\n', times: 6 })
await sixth
await cluster.stop({ grace: 0 })
console.log(JSON.stringify(heard))

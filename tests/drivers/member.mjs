// The worker of the Node.js driver's clusters: `member.mjs <mode> <version> <at>`. Its servers need not know of the cluster.
import { createServer } from 'node:net'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { Counter, RateLimiter } from '../../bindings-node/lib/index.mjs'
import { currentWorker } from '../../bindings-node/lib/worker.mjs'

const [mode, version, at] = process.argv.slice(2)
if (mode === 'quits') process.exit(3)
if (mode === 'never') await setTimeout(1 << 30)

const worker = currentWorker()
if (mode === 'broken' || (mode === 'half' && worker.slot > 0)) throw new Error('no model')

async function answer(line) {
  const [what, value] = line.split(' ')
  switch (what) {
    case 'tell':
      worker.send(Number(value))
      return 'ok'
    case 'ask':
      return `ok int=${await worker.request(Number(value))}`
    case 'count':
      return `ok int=${new Counter(value).add()}`
    case 'take':
      return `ok allowed=${Number(new RateLimiter(value, { rate: 1e-6, burst: 3, keys: 64 }).take().allowed)}`
  }
  return `ok slot=${worker.slot} generation=${worker.generation} pid=${process.pid} version=${version}`
}

function serve(connection) {
  // A client that is gone needs no answer.
  connection.on('error', () => {})
  createInterface({ input: connection }).once('line', async (line) => {
    try {
      const reply = await answer(line)
      worker.served()
      connection.end(`${reply}\n`)
    } catch {
      connection.destroy()
    }
  })
}

const listens = at ? [{ host: at.split(':')[0], port: Number(at.split(':')[1]) }] : worker.fds.map((fd) => ({ fd }))
for (const options of listens) createServer(serve).listen(options)
if (listens.length === 0) worker.ready()

worker.on('message', (message) => {
  if (message === 'exit') process.exit(3)
  if (message === 'say') process.stdout.write('one\nhalf', () => process.exit(3))
  else worker.send(message)
})
worker.on('request', (request) => {
  const known = { pid: process.pid, slot: worker.slot, generation: worker.generation, version }
  if (request.value === 'fail') request.fail(new TypeError('no such color'))
  else if (request.value !== 'never') request.reply(typeof request.value === 'number' ? 2 * request.value : known[request.value])
})

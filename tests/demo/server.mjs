// A Node.js server that does real work: `node server.mjs inline|offload DIR`. It prints its port and serves until it is killed.
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { MessageChannel, Worker, isMainThread, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { ThreadPool } from '../../bindings-node/lib/index.mjs'

const [mode, dir] = isMainThread ? process.argv.slice(2) : ['offload', workerData.dir]
const photos = [readFileSync(`${dir}/china.jpg`), readFileSync(`${dir}/flower.jpg`)]
const table = readFileSync(`${dir}/table.csv`)
const text = readFileSync(`${dir}/text.csv`)
const movies = readFileSync(`${dir}/movies.json`)

// `nice` lets the loop go first when cores are short.
const pool = new ThreadPool(isMainThread ? { nice: 10 } : { maxWorkers: 1 })
let turn = 0

const work = {
  '/thumbnail': () => pool.run('image.thumbnail', photos[turn++ % 2], { width: 200 }),
  '/password': () => pool.run('password.hash', Buffer.from('correct horse battery staple'), { algorithm: 'argon2id' }),
  '/gzip': () => pool.run('gzip', text, { level: 6 }),
  '/csv': () => pool.run('csv.to_arrow', table),
  '/json': () => pool.run('json.query', movies, { path: '$[?@["IMDB Rating"] > 8.5].Title' })
}

/** The same op with the loop thread blocked until it is done: what a server without a pool does. */
function inline(path) {
  Atomics.store(flag, 0, 0)
  channel.port1.postMessage(path)
  Atomics.wait(flag, 0, 0)
  const { message } = receiveMessageOnPort(channel.port1)
  if (message instanceof Error) throw message
  return message
}

// Lateness of a 1 ms timer, in milliseconds.
let late = []
let due = performance.now() + 1
function tick() {
  const now = performance.now()
  late.push(Math.max(0, now - due))
  due = now + 1
  setTimeout(tick, 1)
}

async function answer(path) {
  if (path === '/health') return 'ok'
  if (path === '/late') {
    const body = late.map((ms) => ms.toFixed(3)).join('\n')
    late = []
    due = performance.now() + 1
    return body
  }
  return mode === 'inline' ? inline(path) : work[path]()
}

let flag, channel
if (isMainThread) {
  if (mode === 'inline') {
    flag = new Int32Array(new SharedArrayBuffer(4))
    channel = new MessageChannel()
    new Worker(new URL(import.meta.url), { workerData: { dir, flag, port: channel.port2 }, transferList: [channel.port2] }).unref()
  }
  const server = createServer((request, response) => {
    answer(request.url).then(
      (body) => {
        const bytes = typeof body === 'string' || body instanceof Uint8Array ? body : JSON.stringify(body)
        response.writeHead(200, { 'Content-Length': Buffer.byteLength(bytes) }).end(bytes)
      },
      (error) => response.writeHead(500, { 'Content-Length': Buffer.byteLength(error.message) }).end(error.message)
    )
  })
  server.keepAliveTimeout = 60_000
  server.listen(0, '127.0.0.1', () => {
    console.log(server.address().port)
    tick()
  })
} else {
  const { port, flag: done } = workerData
  port.on('message', async (path) => {
    port.postMessage(await work[path]().catch((error) => error))
    Atomics.store(done, 0, 1)
    Atomics.notify(done, 0)
  })
}

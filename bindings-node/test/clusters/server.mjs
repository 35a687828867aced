// A server as anybody writes one. What it does at a path is what the tests ask for.
import fs from 'node:fs'
import http from 'node:http'
import { currentWorker } from '../../lib/worker.mjs'

const { VERSION = 'first', HOLD } = process.env
if (VERSION === 'broken') throw new SyntaxError('no such version')
if (VERSION === 'exits') process.exit(3)

const worker = currentWorker()
const late = http.createServer()
worker?.onDrain(() => {
  if (process.env.LATE) late.listen(0)
  if (process.env.FAILS) throw new TypeError('in the drain')
})
worker?.onDrain(() => HOLD && fs.appendFileSync(`${HOLD}.drained`, `${process.pid}\n`))

const server = http.createServer(async (request, response) => {
  const { pathname } = new URL(request.url, 'http://host')
  response.setHeader('x-worker', `${process.pid} ${worker?.slot} ${worker?.generation}`)
  switch (pathname) {
    case '/explicit':
      response.writeHead(200, { Connection: 'keep-alive', 'content-type': 'text/plain' })
      response.end('explicit')
      break
    case '/set':
      response.setHeader('connection', 'keep-alive')
      response.end('set')
      break
    case '/raw':
      response.writeHead(200, ['Connection', 'keep-alive', 'content-type', 'text/plain'])
      response.end('raw')
      break
    case '/exit':
      process.exit(5)
      break
    case '/throw':
      setImmediate(() => {
        throw new RangeError('nobody catches this')
      })
      break
    case '/block':
      for (;;);
    case '/stall':
      // In its loop, which turns meanwhile for nobody.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000)
      response.end('stall')
      break
    case '/slow':
      // Until the test says so. As middleware does it: it keeps what was there when the request came.
      if (request.url.endsWith('?wrapped')) {
        const { writeHead } = response
        response.writeHead = (...args) => writeHead.apply(response, args)
      }
      fs.appendFileSync(`${HOLD}.began`, `${process.pid}\n`)
      while (!fs.existsSync(`${HOLD}.open`)) await new Promise((resolve) => setTimeout(resolve, 5))
      response.end('slow')
      break
    default: {
      let length = 0
      for await (const chunk of request) length += chunk.length
      response.end(`${VERSION} ${length}`)
    }
  }
})
server.listen(...JSON.parse(process.env.LISTEN))

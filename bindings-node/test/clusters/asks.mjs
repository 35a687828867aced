// Asks the pool of its cluster what a request's path names.
import { readFileSync } from 'node:fs'
import http from 'node:http'
import { Channel } from '../../lib/index.mjs'
import { currentWorker } from '../../lib/worker.mjs'

const { pool } = currentWorker()

const paths = {
  '/none': () => String(pool),
  '/pid': () => pool.exports.pid(),
  '/add': () => pool.exports.add(20, 22),
  '/run': () => pool.run({ deep: [1, 2] }),
  '/named': () => pool.run(7, { name: 'double', priority: 5 }),
  '/bytes': async () => (await pool.exports.reversed(new Uint8Array([1, 2, 3]))).join(),
  '/fails': () => pool.exports.fails('no such user'),
  '/missing': () => pool.exports.missing(),
  '/late': () => pool.options({ timeout: 50 }).exports.holds(),
  '/option': () => pool.run(1, { timout: 50 }),
  '/abort': () => {
    const over = new AbortController()
    setTimeout(() => over.abort(new Error('enough')), 50)
    return pool.options({ signal: over.signal }).exports.holds()
  },
  '/aborted': () => pool.run(1, { signal: AbortSignal.abort() }),
  // As a worker in Python asks.
  '/by-name': async () => {
    const [, path] = /\0OFFLOOP_POOL=([^\0]*)/.exec(readFileSync('/proc/self/environ', 'utf8'))
    const channel = await Channel.connect(path)
    try {
      return await channel.request({ call: 1, name: 'add', args: [1], spread: true, options: {}, kwargs: { b: 2 } })
    } finally {
      channel.close()
    }
  },
  // Far more than there is room for.
  '/full': async () => {
    const over = new AbortController()
    await new Promise((resolve) => setTimeout(resolve, 500))
    // First in large pieces, so that in the end there is no room for a cancellation either.
    const sizes = [100_000, 1000, 0].flatMap((size) => Array(400).fill(size))
    const calls = sizes.map((size) => pool.options({ signal: over.signal }).exports.holds('x'.repeat(size)))
    const ended = Promise.allSettled(calls)
    await new Promise(setImmediate)
    over.abort()
    const names = (await ended).map(({ reason }) => (reason.name === 'AbortError' ? reason.name : reason.code))
    return ['ERR_OFFLOOP_FULL', 'AbortError'].map((name) => names.filter((other) => other === name).length)
  },
  '/inherits': () => process.env.OFFLOOP_POOL ?? 'nothing',
  '/leaves': () => {
    pool.exports.holds().catch(() => {})
    return pool.exports.add(1, 1)
  },
}

http
  .createServer(async (request, response) => {
    response.setHeader('connection', 'close')
    response.setHeader('x-pid', process.pid)
    try {
      response.end(JSON.stringify({ value: await paths[request.url]() }))
    } catch ({ name, code, message, user, cause }) {
      response.end(JSON.stringify({ name, code, message, user, cause: cause?.message }))
    }
  })
  .listen(0, '127.0.0.1')

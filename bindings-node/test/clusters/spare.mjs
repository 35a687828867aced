// A server that says who answers, and tells its cluster whether it is a spare, and when that ended.
import http from 'node:http'
import { currentWorker } from '../../lib/worker.mjs'

if (process.env.VERSION === 'broken') throw new SyntaxError('no such version')

const worker = currentWorker()
const active = new Promise((resolve) => worker.once('active', () => resolve(`active ${worker.slot} ${process.env.OFFLOOP_SLOT}`)))
worker.on('request', async (request) => request.reply(request.value === 'active' ? await active : worker.spare))
http
  .createServer((_, response) => response.setHeader('x-worker', `${worker.slot} ${worker.generation} ${process.pid}`).end())
  .listen(0, '127.0.0.1')

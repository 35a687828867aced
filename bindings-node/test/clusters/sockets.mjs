// Servers of several kinds in one worker: TLS and HTTP/2 aside, whatever listens shares the cluster's sockets.
import fs from 'node:fs'
import http from 'node:http'
import http2 from 'node:http2'
import net from 'node:net'
import { currentWorker } from '../../lib/worker.mjs'

const worker = currentWorker()
const say = (what) => fs.appendFileSync(process.env.HOLD, `${JSON.stringify(what)}\n`)

const echo = net.createServer((socket) => socket.pipe(socket))
echo.listen({ fd: worker.fds[0] }, () => say({ echo: { port: worker.fds[0] } }))

const plain = http.createServer((_, response) => response.end('plain'))
plain.listen(0, '127.0.0.1', () => say({ plain: plain.address() }))

const second = http2.createServer((_, response) => response.end('second'))
second.listen(0, () => say({ second: second.address() }))

const failing = net.createServer()
failing.on('error', ({ code, syscall, address, port, message }) => say({ code, syscall, address, port, message }))
failing.listen(Number(process.env.TAKEN), '127.0.0.1')

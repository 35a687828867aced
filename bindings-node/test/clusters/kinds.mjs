// A server of each kind, at ports of the system's choice: what they say goes to HOLD, a line each.
import fs from 'node:fs'
import https from 'node:https'
import net from 'node:net'
import http from 'node:http'
import { createHash } from 'node:crypto'
import { currentWorker } from '../../lib/worker.mjs'

const { slot } = currentWorker()
const say = (what) => fs.appendFileSync(process.env.HOLD, `${JSON.stringify({ slot, ...what })}\n`)

// One connection at a time, and those that come meanwhile are dropped.
const single = net.createServer((socket) => {
  single.getConnections((_, count) => socket.write(`${slot} ${count} ${single._connections}`))
  socket.on('data', () => socket.end())
  socket.on('close', () => say({ closed: single._connections }))
})
single.maxConnections = 1
single.on('drop', ({ localPort, remoteAddress }) => say({ dropped: [localPort, remoteAddress] }))
single.listen(0, '127.0.0.1')
single.on('listening', () => say({ single: single.address(), listening: single.listening, fd: single._handle.constructor.name }))

const upgraded = http.createServer()
upgraded.on('upgrade', (request, socket, head) => {
  const key = createHash('sha1').update(`${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64')
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${key}\r\n\r\n`)
  if (head.length > 0) socket.unshift(head)
  socket.on('data', (data) => socket.write(`${slot} ${data}`))
})
upgraded.listen(0, '127.0.0.1', () => say({ upgraded: upgraded.address() }))

// Closes by itself, and its worker goes on.
const brief = http.createServer((_, response) => {
  response.end(`${slot}`)
  if (slot === 0 && brief.listening) brief.close(() => say({ over: brief.listening }))
})
brief.listen(0, '::1', () => say({ brief: brief.address() }))

if (process.env.CERT) {
  const secure = https.createServer({ cert: fs.readFileSync(process.env.CERT), key: fs.readFileSync(process.env.CERT) }, (_, response) =>
    response.end(`${slot}`),
  )
  secure.listen(0, '127.0.0.1', () => say({ secure: secure.address() }))
}

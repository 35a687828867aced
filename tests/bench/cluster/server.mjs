// The server of the Node.js peers: reads the body, answers with as many bytes as the path says (`/20000`; `/` is 2), names its process in `x-worker`.
// PORT, else 8080. With `node`, `pm2 start -i 2` or, by node_cluster.mjs, as a worker of node:cluster.

import http from 'node:http'

const server = http.createServer((request, response) => {
  request.resume().on('end', () => {
    response.setHeader('x-worker', process.pid)
    response.end('x'.repeat(Number(request.url.slice(1)) || 2))
  })
})
server.listen(Number(process.env.PORT ?? 8080), '127.0.0.1', () => process.send?.('ready'))

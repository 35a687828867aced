// A server that knows nothing of its cluster: reads the body, answers with as many bytes as the path says, names its process.
import http from 'node:http'

const server = http.createServer((request, response) => {
  request.resume().on('end', () => {
    response.setHeader('x-worker', process.pid)
    response.end('x'.repeat(Number(request.url.slice(1)) || 2))
  })
})
server.listen(Number(process.env.PORT), '127.0.0.1')

// An HTTP server as everybody writes it. It knows nothing of any cluster.
const http = require('node:http')

const answer = (request, response) => {
  request.resume().on('end', () => response.setHeader('X-Worker', process.pid).end('ok'))
}
http.createServer(answer).listen(Number(process.argv[2]), '127.0.0.1')

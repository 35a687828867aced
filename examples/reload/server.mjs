// Any server would do: this one says which process answers.
import { createServer } from 'node:http'

createServer((request, response) => {
  request.resume().on('end', () => response.setHeader('x-worker', process.pid).end('hello\n'))
}).listen(Number(process.env.PORT ?? 3000))

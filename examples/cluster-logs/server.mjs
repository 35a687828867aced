// An ordinary server that logs to its standard output, and knows of no cluster. It writes each line in two pieces: in a file that processes write together, lines would tear.
import { createServer } from 'node:http'

let lines = 0
/** Returns the number of the line. */
function log(fields) {
  process.stdout.write(JSON.stringify({ line: lines, ...fields }))
  process.stdout.write('\n')
  return lines++
}

const server = createServer((request, response) => {
  const line = log({ asked: request.url })
  response.end(`line ${line} of process ${process.pid}\n`)
})
server.listen(Number(process.env.PORT ?? 3000), () => log({ listening: server.address().port }))

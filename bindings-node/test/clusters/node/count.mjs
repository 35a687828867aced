// Workers tell the primary of each request.
import cluster from 'node:cluster'
import http from 'node:http'
import process from 'node:process'

if (cluster.isPrimary) {
  let requests = 0
  function messageHandler(message) {
    if (message.cmd && message.cmd === 'notifyRequest') requests += 1
  }
  for (let i = 0; i < 2; i++) cluster.fork()
  for (const id in cluster.workers) cluster.workers[id].on('message', messageHandler)
  let listening = 0
  cluster.on('listening', async (_, { port }) => {
    if (++listening < 2) return
    for (let i = 0; i < 20; i++) await (await fetch(`http://127.0.0.1:${port}/`)).text()
    while (requests < 20) await new Promise((resolve) => setTimeout(resolve, 5))
    console.log(`requests ${requests}`)
    for (const worker of Object.values(cluster.workers)) worker.kill()
  })
} else {
  http
    .Server((_, response) => {
      response.writeHead(200)
      response.end('hello world\n')
      process.send({ cmd: 'notifyRequest' })
    })
    .listen(Number(process.env.PORT))
}

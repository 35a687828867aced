// Connections go to the workers by turns.
import cluster from 'node:cluster'
import http from 'node:http'
import process from 'node:process'

if (cluster.isPrimary) {
  for (let i = 0; i < 2; i++) cluster.fork()
  let listening = 0
  cluster.on('listening', async (_, { port }) => {
    if (++listening < 2) return
    const counts = {}
    for (let i = 0; i < 20; i++) {
      const id = await (await fetch(`http://127.0.0.1:${port}/`, { headers: { connection: 'close' } })).text()
      counts[id] = (counts[id] ?? 0) + 1
    }
    console.log(JSON.stringify(counts))
    for (const worker of Object.values(cluster.workers)) worker.kill()
  })
} else {
  http.createServer((_, response) => response.end(String(cluster.worker.id))).listen(Number(process.env.PORT))
}

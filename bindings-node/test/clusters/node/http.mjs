// Workers share a port.
import cluster from 'node:cluster'
import http from 'node:http'
import process from 'node:process'

if (cluster.isPrimary) {
  console.log(`primary ${cluster.isMaster} ${cluster.isWorker}`)
  for (let i = 0; i < 2; i++) cluster.fork()
  cluster.on('exit', (worker, code, signal) => console.log(`worker died ${worker.id} ${code} ${signal}`))
  process.on('exit', () => console.log(`left ${Object.keys(cluster.workers).length}`))
  let listening = 0
  cluster.on('listening', async (worker, { address, port, addressType }) => {
    if (worker.id === 1) console.log(`listening ${address} ${port > 0} ${addressType}`)
    if (++listening < 2) return
    const seen = new Set()
    while (seen.size < 2) {
      const response = await fetch(`http://127.0.0.1:${port}/`, { headers: { connection: 'close' } })
      seen.add(await response.text())
    }
    console.log(`answers ${[...seen].sort()}`)
    cluster.workers[1].process.kill('SIGKILL')
    cluster.once('exit', () => cluster.workers[2].kill())
  })
} else {
  http.createServer((_, response) => response.end(`hello from ${cluster.worker.id} ${cluster.isWorker}`)).listen(Number(process.env.PORT))
}

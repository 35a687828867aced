// A worker that is disconnected, and killed if its connections do not end.
import cluster from 'node:cluster'
import net from 'node:net'
import process from 'node:process'

if (cluster.isPrimary) {
  const worker = cluster.fork()
  let timeout
  worker.on('listening', ({ port }) => {
    // It never ends by itself.
    net.connect(port, '127.0.0.1').on('error', () => {})
    worker.on('message', () => {
      worker.send('shutdown')
      worker.disconnect()
      timeout = setTimeout(() => worker.kill(), 300)
    })
  })
  worker.on('disconnect', () => {
    clearTimeout(timeout)
    console.log('disconnect')
  })
  worker.on('exit', (code, signal) => console.log(`exit ${code} ${signal} ${worker.exitedAfterDisconnect}`))
} else if (cluster.isWorker) {
  const server = net.createServer((socket) => {
    socket.on('error', () => {})
    process.send('connected')
  })
  server.listen(Number(process.env.PORT))
  process.on('message', (message) => {
    if (message === 'shutdown' && process.env.POLITE) server.getConnections(() => {})
  })
}

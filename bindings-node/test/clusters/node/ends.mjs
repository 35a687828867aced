// A worker that ends itself, and one that is told to leave before it has begun.
import cluster from 'node:cluster'
import net from 'node:net'

if (cluster.isPrimary) {
  const self = cluster.fork({ ROLE: 'self' })
  self.on('exit', (code, signal) => {
    console.log('self', code, signal, self.exitedAfterDisconnect)
    // Its process is gone by now, and that is no error.
    console.log('killed', self.process.kill())
    const early = cluster.fork({ ROLE: 'early' })
    early.disconnect()
    early.on('exit', (code, signal) => console.log('early', code, signal, early.exitedAfterDisconnect))
  })
} else if (process.env.ROLE === 'self') {
  process.on('exit', (code) => console.log('leaves with', code))
  net.createServer().listen(0, '127.0.0.1', () => cluster.worker.kill())
} else net.createServer().listen(0, '127.0.0.1')

// The primary's own handler replaces what ends by itself.
import cluster from 'node:cluster'
import process from 'node:process'

if (cluster.isPrimary) {
  let died = 0
  cluster.fork()
  cluster.on('exit', (worker, code, signal) => {
    console.log(`worker ${worker.id} ${signal ?? code} ${worker.exitedAfterDisconnect}`)
    if (worker.exitedAfterDisconnect === true) {
      console.log('Oh, it was just voluntary – no need to worry')
    } else if (++died < 12) {
      cluster.fork()
    } else {
      cluster.fork({ POLITE: 1 })
    }
  })
  cluster.on('online', (worker) => worker.id > 12 && worker.disconnect())
} else if (!process.env.POLITE) {
  process.exit(cluster.worker.id)
}

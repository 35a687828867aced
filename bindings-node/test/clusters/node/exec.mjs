// Another script, with other arguments for each worker; it knows nothing of clusters.
import cluster from 'node:cluster'
import path from 'node:path'
import process from 'node:process'

const setups = []
cluster.on('setup', ({ args }) => setups.push(args.join(' ')))
cluster.setupPrimary({
  exec: path.join(import.meta.dirname ?? path.dirname(new URL(import.meta.url).pathname), 'said.cjs'),
  args: ['--use', 'https'],
})
const first = cluster.fork()
cluster.setupPrimary({ args: ['--use', 'http'] })
const second = cluster.fork()
console.log(cluster.settings.args.join(' '), path.basename(cluster.settings.exec), process.argv.length)
let said = 0
for (const worker of [first, second]) {
  worker.on('message', (message) => {
    worker.said = message
    if (++said === 2)
      cluster.disconnect(() => console.log(`disconnected ${Object.values(cluster.workers).some((one) => one.isConnected())}`))
  })
}
process.on('exit', () => console.log(JSON.stringify([first.said, second.said, setups])))

// CommonJS, 'advanced' messages, an error in a worker.
const cluster = require('node:cluster')

if (cluster.isPrimary) {
  cluster.setupPrimary({ serialization: 'advanced' })
  const worker = cluster.fork()
  worker.on('message', (message) => console.log(message))
  worker.on('online', () => worker.send({ map: new Map([[1, new Date(0)]]), big: 10n }))
  worker.on('exit', (code) => console.log(`exit ${code}`))
  try {
    cluster.setupPrimary({ serialization: 'xml' })
    cluster.fork()
  } catch (error) {
    console.log(error.code)
  }
} else {
  process.once('message', ({ map, big }) => {
    process.send({ map, big: big + 1n })
    process.send('last', () => process.exit(7))
  })
}

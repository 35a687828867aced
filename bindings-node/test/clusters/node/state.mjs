// What a worker is at each step.
import cluster from 'node:cluster'
import process from 'node:process'

if (cluster.isPrimary) {
  const worker = cluster.fork({ NAME: 'first', GONE: undefined })
  const say = (what) => console.log(what, worker.isConnected(), worker.isDead(), worker.exitedAfterDisconnect, worker.id in cluster.workers)
  // Which of the two comes first is not said.
  const ends = {}
  say('forked')
  console.log(worker.process.pid > 0, worker instanceof cluster.Worker)
  for (const event of ['fork', 'online', 'disconnect', 'exit'])
    cluster.on(event, (one) => console.log(`cluster ${event} ${one === worker}`))
  cluster.on('message', (one, message) => console.log('cluster message', one === worker, JSON.stringify(message)))
  worker.on('online', () => {
    say('online')
  })
  try {
    worker.send()
  } catch (error) {
    console.log(error.code)
  }
  worker.once('message', () => {
    worker.send({ hello: [1, 'two', { three: null }], when: new Date(0), not: undefined, bytes: Buffer.from('ab') })
  })
  worker.on('message', (message) => {
    if (message.over) worker.disconnect()
  })
  worker.on('disconnect', () => {
    ends.disconnect = [worker.isConnected(), worker.exitedAfterDisconnect, worker.id in cluster.workers]
  })
  process.on('exit', () => console.log(JSON.stringify([ends.disconnect, ends.exit])))
  worker.on('exit', (code, signal) => {
    ends.exit = [worker.isDead(), worker.exitedAfterDisconnect, worker.id in cluster.workers]
    console.log(code, signal, worker.process.exitCode, worker.process.signalCode)
    worker.process.once('close', () => worker.send('late', (error) => console.log(error.code)))
  })
} else {
  const { worker } = cluster
  console.log = (...all) => process.send({ said: all.map(String) })
  console.log(worker.id, worker.isConnected(), worker.isDead(), process.connected, process.env.NAME, typeof process.env.NODE_UNIQUE_ID)
  process.on('message', (message) => {
    process.send({ heard: message, type: typeof message.when }, undefined, undefined, () => process.send({ over: true }))
  })
}

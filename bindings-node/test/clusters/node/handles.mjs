// Sockets and servers are sent to workers.
import cluster from 'node:cluster'
import net from 'node:net'
import process from 'node:process'

const ask = (port) =>
  new Promise((resolve) => {
    let text = ''
    net
      .connect(port, '127.0.0.1')
      .on('data', (data) => (text += data))
      .on('end', () => resolve(text))
      .write('hi')
  })

if (cluster.isPrimary) {
  const worker = cluster.fork()
  await new Promise((resolve) => worker.once('message', resolve))
  const byHand = net.createServer({ pauseOnConnect: true }, (socket) => worker.send('socket', socket))
  const shared = net.createServer((socket) => socket.end('primary'))
  await new Promise((resolve) => byHand.listen(0, '127.0.0.1', resolve))
  await new Promise((resolve) => shared.listen(0, '127.0.0.1', resolve))
  console.log(await ask(byHand.address().port))
  worker.send('server', shared)
  worker.once('message', async (message) => {
    console.log(message)
    const { port } = shared.address()
    shared.close()
    console.log(await ask(port))
    byHand.close()
    worker.kill()
  })
  try {
    worker.send('nothing', {})
  } catch (error) {
    console.log(error.code)
  }
} else {
  process.send('here')
  process.on('message', (message, handle) => {
    if (message === 'socket') handle.on('data', (data) => handle.end(`worker ${data}`))
    else handle.on('connection', (socket) => socket.end('server of the worker')) && process.send(`has ${handle instanceof net.Server}`)
  })
}

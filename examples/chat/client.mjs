// `node client.mjs NAME TEXT...`: says each text as NAME, and prints what it hears until it is killed. It connects again when its worker is replaced.
import { WebSocket } from 'ws'

const [name, ...texts] = process.argv.slice(2)

function connect(said) {
  const socket = new WebSocket(`ws://localhost:${process.env.PORT ?? 3000}`)
  socket.on('open', () => {
    for (const text of said) socket.send(text)
  })
  socket.on('message', (data) => console.log(String(data)))
  socket.on('error', (error) => console.error(error.message))
  // A worker that is new knows no names.
  socket.on('close', () => setTimeout(connect, 100, [`/name ${name}`]))
}

connect([`/name ${name}`, ...texts])

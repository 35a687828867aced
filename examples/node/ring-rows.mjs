// A process that makes rows and writes them where ring-server.mjs reads them. Started by it, with the ring's fds from 3 on.

import { RingBuffer } from 'offloop'

const ring = RingBuffer.attach([3, 4, 5])
// Rows become visible 4 KiB at a time, or at once while the server has nothing to send.
const producer = ring.producer({ batch: true })

const rows = Number(process.argv[2])
for (let i = 0; i < rows; i++) {
  // Waits while the ring is full: a slow client slows this process down, and no memory grows.
  await producer.push(Buffer.from(`${i},${(Math.sin(i) * 1e6).toFixed(3)}\n`))
}
producer.flush()
ring.close()

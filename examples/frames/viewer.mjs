// Looks at the frames of camera.c every 10 ms, as a screen would: viewer.mjs FDS…. Started by viewer.py.
import { setInterval } from 'node:timers/promises'
import { RingBuffer } from 'offloop'

const HEADER = 8
const consumer = RingBuffer.attach(process.argv.slice(2).map(Number)).consumer()
console.log('ready')

let seen = 0
let torn = 0

/** The view ends with the call; in a ring that does not overwrite it is the memory in which the camera drew. */
function look(view) {
  const pixel = new DataView(view.buffer, view.byteOffset).getUint32(0, true) % 256
  seen++
  if (!view.subarray(HEADER).every((byte) => byte === pixel)) torn++
}

try {
  for await (const _ of setInterval(10)) consumer.read(4, look)
} catch (error) {
  if (error.code !== 'ERR_OFFLOOP_CLOSED') throw error
}
console.log(`node: ${seen} seen, ${consumer.lost} lost, ${torn} torn`)

// Functions that give away what they return.
import { MessageChannel } from 'node:worker_threads'
import { move } from '../../lib/worker.mjs'

let last = new Uint8Array(1)
const make = (length) => {
  last = new Uint8Array(length).fill(9)
  return move(last)
}

export const sum = (bytes) => bytes.reduce((a, b) => a + b, 0)
export const sumOf = (buffer) => sum(buffer.bytes())
export const give = make
export const given = () => last.length
export const back = (bytes) => move(bytes)
export const givesPort = () => move(new MessageChannel().port1)
export function* yields(length) {
  yield make(length)
  // The one before was taken, or waits as a copy.
  if (last.length > 0) throw new Error('it was not detached')
  yield make(length)
}

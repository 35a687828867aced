// The first thread starts at once, every other one when the word behind the count is set.
import { setTimeout as sleep } from 'node:timers/promises'
import { workerData } from 'node:worker_threads'

const words = new Int32Array(workerData)
if (Atomics.add(words, 0, 1) > 0) while (Atomics.load(words, 1) === 0) await sleep(1)

export const echo = (value) => value

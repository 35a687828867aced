// A task queue across languages: this process makes tasks, workers in Python do them, and one that is killed loses none.

import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { RingBuffer } from 'offloop'

const TASKS = 200
const script = fileURLToPath(new URL('worker.py', import.meta.url))
const tasks = RingBuffer.create({ kind: 'mpmc', capacity: 1 << 16, slotSize: 1024 })
const results = RingBuffer.create({ kind: 'mpsc', capacity: 1 << 16 })

/** A worker with both rings; what it says goes on to our standard error. */
function start(...options) {
  const fds = [tasks.fds, results.fds]
  const numbers = fds.map((list, i) => list.map((_, j) => 3 + j + (i === 0 ? 0 : fds[0].length)).join())
  const stdio = ['pipe', 'pipe', 'inherit', ...fds.flat()]
  return spawn(process.env.PYTHON ?? 'python3', [script, ...numbers, ...options], { stdio })
}

const producer = tasks.producer()
const answers = results.consumer()

// This one takes a task, says so, and does not live to finish it.
const unlucky = start('--stuck')
await producer.push(Buffer.from(JSON.stringify({ id: 0, text: 'task 0' })))
for await (const _ of createInterface({ input: unlucky.stdout })) break
const workers = [start(), start()]
const done = new Map()
let again = 0
const collect = (async () => {
  while (done.size < TASKS) {
    const { id, length, redelivered } = JSON.parse(Buffer.from(await answers.pop()).toString())
    if (done.has(id)) throw new Error(`task ${id} was done twice`)
    done.set(id, length)
    again += Number(redelivered)
  }
})()
for (let id = 1; id < TASKS; id++) await producer.push(Buffer.from(JSON.stringify({ id, text: `task ${id}` })))
unlucky.kill('SIGKILL')
tasks.close()
await collect
for (const worker of workers) if (worker.exitCode === null) await new Promise((resolve) => worker.once('exit', resolve))
console.log(`${TASKS} tasks: ${done.size} done, ${again} of them again after its worker was killed`)

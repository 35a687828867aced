// What one does with child_process, each beside what there is here instead, with the same result.
import { execFile, fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { ProcessPool, WorkerPool } from 'offloop'

const here = (name) => fileURLToPath(new URL(name, import.meta.url))
const script = here('readings.py')

// One process each, kept for the next call. Where a crash takes nothing else along, or the language is another one; threads elsewhere.
const python = new ProcessPool({ python: script }, { maxWorkers: 1 })
const processes = new ProcessPool(here('primes.mjs'), { maxWorkers: 1 })
const threads = new WorkerPool(here('primes.mjs'), { maxWorkers: 1 })

// exec: a script for its result, which it prints and this side parses. `execFile` rather than `exec`, as no shell has to read the arguments.
const { stdout } = await promisify(execFile)('python3', [script, 'total', '1000'])
console.log(`exec: ${Number(stdout)}`)
console.log(`  a call: ${await python.exports.total(1000)}`)

// spawn: a script for what it makes, piece by piece, no faster than it is taken.
async function spawned(count) {
  const child = spawn('python3', [script, 'each', String(count)], { stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = once(child, 'close')
  let [readings, sum] = [0, 0]
  for await (const line of createInterface({ input: child.stdout })) {
    readings++
    sum += JSON.parse(line).value
  }
  // Its output ends as well when it fails in the middle.
  const [code, signal] = await ended
  if (code !== 0) throw new Error(`ended with ${signal ?? code} after ${readings} readings`)
  return `${readings} readings, ${sum}`
}

async function streamed(count) {
  let [readings, sum] = [0, 0]
  for await (const { value } of python.stream(count, { name: 'each' })) {
    readings++
    sum += value
  }
  return `${readings} readings, ${sum}`
}

console.log(`spawn: ${await spawned(1000)}`)
console.log(`  a stream: ${await streamed(1000)}`)

// fork: a function that would block this loop.
function forked(name, ...args) {
  return new Promise((resolve, reject) => {
    const child = fork(here('forked.mjs'))
    child.once('error', reject)
    // Who forgets this one waits for ever for a process that has crashed.
    child.once('exit', (code, signal) => reject(new Error(`ended with ${signal ?? code}`)))
    child.once('message', (result) => {
      resolve(result)
      child.disconnect()
    })
    child.send({ name, args })
  })
}

const told = (error) => error.code ?? error.message
console.log(`fork: ${await forked('below', 100_000)} primes`)
console.log(`  a call: ${await threads.exports.below(100_000)} primes`)
console.log(`fork, and a crash: ${await forked('crash').catch(told)}`)
console.log(`  a call: ${await processes.exports.crash().catch(told)}, and the next one: ${await processes.exports.below(100)} primes`)

// Another program is what child_process is for: nothing here runs one.
const sort = spawn('sort', { stdio: ['pipe', 'pipe', 'inherit'] })
sort.stdin.end('pear\napple\nplum\n')
console.log(`another program: ${(await text(sort.stdout)).trim().replaceAll('\n', ', ')}`)

await Promise.all([python, processes, threads].map((pool) => pool.close()))

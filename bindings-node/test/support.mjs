// What several tests need. Nothing here waits for a time: tests await events or counters.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { setImmediate as turn } from 'node:timers/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { ThreadPool, WorkerPool } from '../lib/index.mjs'

export const entry = fileURLToPath(new URL('../lib/index.mjs', import.meta.url))
export const entryUrl = pathToFileURL(entry).href

/** A pool that ends with its test. */
export function openPool(t, options) {
  const pool = new ThreadPool(options)
  t.after(() => pool.close({ grace: 0 }))
  return pool
}

/** Turns the loop until `check()` is true. What is not true after minutes is a hang, which fails by name. */
export async function until(check) {
  const begun = Date.now()
  while (!check()) {
    await turn()
    if (Date.now() - begun > 120_000) throw new Error(`not true within 120 s: ${check}`)
  }
}

/** Occupies a worker of `pool` until it is let go. */
export async function hold(pool) {
  const running = pool.stats.running
  const abort = new AbortController()
  const task = pool.run('noop', undefined, { sleepMs: 600_000 }, { signal: abort.signal }).catch(() => {})
  await until(() => pool.stats.running > running)
  return {
    async release() {
      abort.abort()
      await task
    },
  }
}

/** What a promise rejects with. */
export async function rejection(promise) {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error('expected a rejection')
}

/** Runs `code` as a module in a fresh process. */
export async function script(code, { args = [], env = {} } = {}) {
  const child = spawn(
    process.execPath,
    [...args, '--input-type=module', '-e', `const offloopUrl = ${JSON.stringify(entryUrl)};\n${code}`],
    {
      env: { ...process.env, NODE_OPTIONS: '', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  )
  let out = ''
  let err = ''
  child.stdout.on('data', (data) => {
    out += data
  })
  child.stderr.on('data', (data) => {
    err += data
  })
  const [code_, signal] = await once(child, 'close')
  return { code: code_, signal, out, err }
}

/** A generator of numbers from 0 to below `n`, the same for the same seed. */
export function random(seed) {
  let x = seed >>> 0
  return (n) => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0
    return Math.floor((x / 2 ** 32) * n)
  }
}

/** A child that runs `code` as a module and inherits `fds` as 3, 4, …; its lines come through `line()`. */
export function openChild(t, code, fds = []) {
  const child = spawn(
    process.execPath,
    ['--expose-gc', '--input-type=module', '-e', `import { RingBuffer } from ${JSON.stringify(entryUrl)};\n${code}`],
    {
      env: { ...process.env, NODE_OPTIONS: '' },
      stdio: ['ignore', 'pipe', 'inherit', ...fds],
    },
  )
  t.after(() => child.kill('SIGKILL'))
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const exited = once(child, 'exit')
  return {
    pid: child.pid,
    kill: (signal) => child.kill(signal),
    line: async () => (await lines.next()).value,
    exited,
  }
}

/** The URL of a worker file of the tests. */
export const workerFile = (name) => new URL(`./workers/${name}`, import.meta.url)

/** A WorkerPool that ends with its test; `file` is one of the tests' own or a URL. */
export function openWorkers(t, file = 'tasks.mjs', options = {}) {
  const pool = new WorkerPool(file.startsWith('data:') ? file : workerFile(file), options)
  // A test may wait for an event of an idle pool, which keeps no process alive.
  const alive = setInterval(() => {}, 1 << 30)
  t.after(() => {
    clearInterval(alive)
    return pool.close({ grace: 0 })
  })
  return pool
}

/** Memory through which a test holds tasks of workers: `started` counts them, `release` lets all of them go. */
export function gate() {
  const flags = new SharedArrayBuffer(8)
  const words = new Int32Array(flags)
  return {
    flags,
    started: (n = 1) => until(() => Atomics.load(words, 0) >= n),
    release() {
      Atomics.store(words, 1, 1)
      Atomics.notify(words, 1)
    },
  }
}

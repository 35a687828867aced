// What the tests of ProcessPool need.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { ProcessPool } from '../lib/index.mjs'
import { until, workerFile } from './support.mjs'

/** A pool that ends with its test. */
export function openProcesses(t, worker = workerFile('process.mjs'), options = {}) {
  const pool = new ProcessPool(worker, options)
  // A test may wait for an event of an idle pool, which keeps no process alive.
  const alive = setInterval(() => {}, 1 << 30)
  t.after(() => {
    clearInterval(alive)
    return pool.close({ grace: 0 })
  })
  return pool
}

/** The command of a worker in JavaScript as one of any language: what it is asked comes in the common form. */
export const commonWorker = (name = 'process.mjs') => ({
  command: [process.execPath, fileURLToPath(new URL('../lib/worker-main.cjs', import.meta.url)), fileURLToPath(workerFile(name))],
})

/** A directory that ends with its test. */
export function directory(t) {
  const made = fs.mkdtempSync(path.join(os.tmpdir(), 'offloop-'))
  t.after(() => fs.rmSync(made, { recursive: true }))
  return made
}

/** Files through which a test holds tasks of processes. */
export function door(t) {
  const at = path.join(directory(t), 'door')
  return {
    at,
    began: (n = 1) => until(() => fs.existsSync(`${at}.began`) && fs.readFileSync(`${at}.began`, 'utf8').trim().split('\n').length >= n),
    open: () => fs.writeFileSync(`${at}.open`, ''),
  }
}

/** Whether a process of this number is there. */
export function isAlive(pid) {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

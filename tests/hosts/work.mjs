// What the workers of host.mjs run.
import { setTimeout as after } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { currentTask } from '../../bindings-node/lib/worker.mjs'

export const echo = (value) => value
/** Says who runs it, and never ends. */
export async function hold() {
  currentTask().progress(process.pid)
  await new Promise(() => {})
}
export async function sleep(ms) {
  await after(ms, undefined, { signal: currentTask().signal })
  return ms
}
export function fail(n) {
  throw new RangeError(`no row ${n}`)
}
/** The heap as small as it gets, so that what is measured is what is kept. */
export function collect() {
  setFlagsFromString('--expose-gc')
  runInNewContext('gc')({ type: 'major', execution: 'sync', flavor: 'last-resort' })
}

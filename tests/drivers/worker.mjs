// The functions of the driver's own pools of workers: what the scenarios name as `op`.
import { setTimeout as sleep } from 'node:timers/promises'
import { currentTask } from '../../bindings-node/lib/worker.mjs'

/** Gives its input back, after a while. */
export async function noop({ input, sleep_ms: ms }) {
  const { signal } = currentTask()
  if (ms) await sleep(ms, undefined, { signal })
  return input ?? null
}
/** The length of its input, moved or not. */
export const length = ({ input }) => input.byteLength
export const exit = ({ code }) => process.exit(code)
export function spin() {
  for (;;);
}
export function fail({ text }) {
  throw new TypeError(text)
}
export const odd = () => () => {}

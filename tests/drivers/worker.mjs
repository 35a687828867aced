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
/** Ends its own process by a signal, SIGSEGV too: JavaScript has no bad pointer. */
export async function kill({ signal }) {
  process.kill(process.pid, signal)
  await new Promise(() => {})
}
export const fault = () => kill({ signal: 'SIGSEGV' })
/** Uses memory until there is none. */
export function eat() {
  for (const all = []; ; ) all.push(Buffer.alloc(1 << 24, 1))
}
export function spin() {
  for (;;);
}
export function fail({ text, code, cause }) {
  const error = new TypeError(text, cause === undefined ? undefined : { cause: new Error(cause) })
  throw code === undefined ? error : Object.assign(error, { code })
}
/** Gives 0, 1, … below `n`, each after a while; then it fails, or ends its worker. */
export async function* count({ n, sleep_ms: ms, text, code }) {
  for (let i = 0; i !== n; i++) {
    if (ms) await sleep(ms)
    yield i
  }
  if (code !== undefined) exit({ code })
  if (text !== undefined) fail({ text })
}
export const odd = () => () => {}
export const echo = (value) => value
/** What its argument is here. */
export const what = (value) => value?.constructor?.name ?? String(value)


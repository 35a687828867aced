import { setTimeout as sleep } from 'node:timers/promises'
import { currentTask, currentWorker } from '../../lib/worker.mjs'

export const outside = currentTask()
export default () => [outside, currentTask().context, typeof currentWorker().threadId]

/** Whether the task is the same one before and after an `await`, with others between. */
export async function same() {
  const before = currentTask()
  await sleep(1)
  const after = currentTask()
  return before !== null && before === after
}
const reasons = []
export const seen = () => reasons.splice(0)
/** Ends when its signal is aborted. */
export async function untilAborted(flags) {
  const { signal } = currentTask()
  Atomics.add(new Int32Array(flags), 0, 1)
  // It may be late before it begins.
  if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve))
  reasons.push(signal.reason.code)
}
/** A loop that never lets the event loop turn, and looks at its signal. */
export function loopUntilAborted(flags) {
  const { signal } = currentTask()
  Atomics.add(new Int32Array(flags), 0, 1)
  while (!signal.aborted);
  reasons.push(signal.reason.code)
}
export function throwIfAborted(flags) {
  const { signal } = currentTask()
  Atomics.add(new Int32Array(flags), 0, 1)
  try {
    for (;;) signal.throwIfAborted()
  } catch (error) {
    reasons.push(error.code)
  }
}

export function steps(n) {
  const task = currentTask()
  for (let i = 1; i <= n; i++) task.progress({ step: i, of: n })
  return n
}
/** Tells 1, waits for the gate, tells 2. */
export async function stepAt(flags) {
  const task = currentTask()
  task.progress(1)
  const words = new Int32Array(flags)
  Atomics.add(words, 0, 1)
  while (Atomics.load(words, 1) === 0) await sleep(1)
  task.progress(2)
}
let kept
export function keep() {
  kept = currentTask()
}
export function tellLate() {
  kept.progress('late')
  return 'told'
}
export const tellFunction = () => currentTask().progress({ f() {} })
export async function* tellEach(n) {
  const task = currentTask()
  for (let i = 1; i <= n; i++) {
    task.progress(i)
    await sleep(1)
    yield currentTask() === task
  }
}
export async function* yieldUntilAborted(flags) {
  const { signal } = currentTask()
  yield 1
  Atomics.add(new Int32Array(flags), 0, 1)
  // It may be late before it begins.
  if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve))
  reasons.push(signal.reason.code)
}

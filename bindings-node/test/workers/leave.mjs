// What the tests of streams that are left run, in threads and processes.
import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { currentTask } from '../../lib/worker.mjs'

export default (value) => value
/** Gives `n` values. Once they are taken it says by a file that it goes on. */
async function* numbers({ n, file }) {
  for (let i = 0; i < n; i++) yield i
  while (!fs.existsSync(`${file}.taken`)) await sleep(1)
  fs.writeFileSync(`${file}.began`, '')
}
/** Then gives none, without an end. */
export async function* stuckAfter(task) {
  yield* numbers(task)
  await new Promise(() => {})
}
/** The same, and never lets its loop turn. */
export async function* spinAfter(task) {
  yield* numbers(task)
  for (;;);
}
/** The same, until its signal is aborted: writes why. */
export async function* untilAborted(task) {
  const { signal } = currentTask()
  try {
    yield* numbers(task)
    await sleep(1 << 30, undefined, { signal })
  } finally {
    fs.writeFileSync(`${task.file}.ended`, signal.reason?.code ?? 'not aborted')
  }
}
/** Without an end; says by a file that it was left. */
export function* endless({ file }) {
  try {
    for (let i = 0; ; i++) yield i
  } finally {
    fs.writeFileSync(`${file}.ended`, '')
  }
}

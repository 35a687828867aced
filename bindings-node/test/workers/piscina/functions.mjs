// What the tests of `offloop/piscina` run. `PISCINA` names another module with the same API.
import fs from 'node:fs'
import os from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { BroadcastChannel, parentPort, resourceLimits, threadId } from 'node:worker_threads'

const Piscina = (await import(process.env.PISCINA ?? '../../../lib/piscina.mjs')).default
const { isWorkerThread, move, transferableSymbol, valueSymbol, workerData } = Piscina

export default ({ a, b }) => a + b
export const echo = (value) => value
export const thread = () => threadId
export async function later(value) {
  await sleep(2)
  return value
}
export const fails = (text) => {
  throw Object.assign(new RangeError(text), { code: 'E_MINE' })
}
export const rejects = async (text) => {
  throw new TypeError(text)
}
/** Blocks its thread until `flags[1]` is set; `flags[0]` counts those that have begun. */
export function hold({ flags }) {
  const words = new Int32Array(flags)
  Atomics.add(words, 0, 1)
  Atomics.notify(words, 0)
  Atomics.wait(words, 1, 0)
  return threadId
}
export async function holdSoftly({ flags }) {
  const words = new Int32Array(flags)
  Atomics.add(words, 0, 1)
  while (Atomics.load(words, 1) === 0) await sleep(1)
  return threadId
}
export function log({ flags, value }) {
  const words = new Int32Array(flags)
  words[1 + Atomics.add(words, 0, 1)] = value
}
export function spin({ flags }) {
  Atomics.add(new Int32Array(flags), 0, 1)
  for (;;);
}
export const exit = (code) => process.exit(code)
export function uncaught(text) {
  setImmediate(() => {
    throw new EvalError(text)
  })
  return new Promise(() => {})
}
/** The function returns, its thread ends afterwards. */
export function throwsLater({ flags, text }) {
  const words = new Int32Array(flags)
  const timer = setInterval(() => {
    if (Atomics.load(words, 1) === 0) return
    clearInterval(timer)
    throw new EvalError(text)
  }, 1)
}
export function fill() {
  const all = []
  for (;;) all.push(new Array(1000).fill(Math.random()))
}
export const about = () => ({
  isWorkerThread,
  workerData,
  argv: process.argv.slice(2),
  execArgv: process.execArgv,
  env: process.env.OF_THE_TEST,
  old: resourceLimits.maxOldGenerationSizeMb,
  nice: os.getPriority(0),
})
export function says(message) {
  parentPort.postMessage(message)
}
export function listens(name) {
  const channel = new BroadcastChannel(name)
  return new Promise((resolve) => {
    channel.onmessage = ({ data }) => {
      channel.close()
      resolve(data)
    }
    parentPort.postMessage('listening')
  })
}
export const opens = (path) => fs.openSync(path)
export const length = (bytes) => bytes.byteLength

/** Tells in `flags` whether a buffer that it returned is gone from here. */
let kept
export const moved = (how) => {
  kept = new Uint8Array([1, 2, 3])
  if (how === 'view') return move(kept)
  if (how === 'buffer') return move(kept.buffer)
  if (how === 'copy') return kept
  const whole = {
    deep: { bytes: kept },
    get [transferableSymbol]() {
      return [this.deep.bytes.buffer]
    },
    get [valueSymbol]() {
      return { bytes: this.deep.bytes, by: 'surrogate' }
    },
  }
  return move(whole)
}
export const left = () => kept.byteLength

// What the tests of WorkerPool run.
import { setTimeout as sleep } from 'node:timers/promises'
import threads, { threadId, workerData } from 'node:worker_threads'
import { TransferBuffer } from '../../lib/index.mjs'
import { move } from '../../lib/move.cjs'

let ticks = 0
setInterval(() => ticks++, 1).unref()

export default (value) => value
export const add = (a, b) => a + b
export const count = (...args) => args.length
export const identity = (value) => value
export const thread = () => threadId
export const tickCount = () => ticks
export const data = () => [workerData, threads.workerData, process.argv.slice(2), process.env.OFFLOOP_TEST, process.execArgv]
export const limits = () => threads.resourceLimits

/** Blocks its thread until `release` is set; `started` counts. */
export function hold(flags) {
  const words = new Int32Array(flags)
  Atomics.add(words, 0, 1)
  Atomics.wait(words, 1, 0)
  return 'held'
}
/** The same without blocking the loop. */
export async function holdSoftly(flags) {
  const words = new Int32Array(flags)
  Atomics.add(words, 0, 1)
  while (Atomics.load(words, 1) === 0) await sleep(1)
  return 'held'
}
/** Never ends; `flags` are those of a gate, if there is one. */
export function spin(flags) {
  if (flags) Atomics.add(new Int32Array(flags), 0, 1)
  for (;;);
}
export async function later(value, ms = 1) {
  await sleep(ms)
  return value
}
export function log(shared, value) {
  const words = new Int32Array(shared)
  words[1 + Atomics.add(words, 0, 1)] = value
  return threadId
}
let now = 0
let most = 0
export async function overlap() {
  most = Math.max(most, ++now)
  await sleep(2)
  now--
  return most
}
export const exit = (code) => process.exit(code)
export function fill() {
  const all = []
  for (;;) all.push(new Array(1000).fill(Math.random()))
}
export function uncaught() {
  setImmediate(() => {
    throw new RangeError('nobody catches this')
  })
  return new Promise(() => {})
}
export class Own extends Error {
  name = 'Own'
}
export function fail() {
  const cause = new TypeError('inner')
  cause.code = 'E_INNER'
  const error = new Own('outer', { cause })
  error.code = 'E_OUTER'
  error.details = { rows: [1, 2], again: cause }
  throw error
}
export const failLate = async () => fail()
export const throwValue = (value) => {
  throw value
}
export const reject = (value) => Promise.reject(value)
export const makeFunction = () => ({ deep: [{ f() {} }] })
export const makeShared = (shared) => ({ shared, view: new Int32Array(shared) })
export const large = (n) => new Uint8Array(n).fill(7)
export const throwLarge = (n) => {
  throw new Error('x'.repeat(n))
}
/** What `value` is over there, to compare with a clone of it. */
export const isSame = (a, b) => a === b
export const throwOdd = () => {
  throw Object.assign(new Error('odd'), { kept: 1, f() {} })
}
export const throwLoop = () => {
  const error = new Error('loop')
  throw Object.assign(error, { cause: error })
}
export const holdIfShared = (value) => (typeof value === 'number' ? value : holdSoftly(value))
export const throwIfNull = (value) => {
  if (value === null) throw new Error('null')
  return value
}

export function usePort(port, text) {
  port.postMessage(`${text} from ${threadId}`)
  port.close()
}
export const giveBack = (bytes) => {
  bytes[0] = 9
  return { inside: [move(bytes)] }
}
export const wasMoved = (n) => {
  const bytes = move(new Uint8Array(n))
  last = bytes
  return bytes
}
let last
export const lastLength = () => last.length
/** Ends its thread in its first `exits` runs, which `count` counts. */
export function exitFirst({ count, exits, value, log: entry }) {
  if (Atomics.add(count, 0, 1) < exits) process.exit(7)
  if (entry !== undefined) log(...entry)
  return value
}
export const bump = (shared) => Atomics.add(new Int32Array(shared), 0, 1)

/** What `numbers` and its like have made, and how many have ended. */
export function* numbers({ n, made, ended, fail: at }) {
  try {
    for (let i = 0; i < n; i++) {
      if (i === at) throw Object.assign(new RangeError(`at ${i}`), { code: 'E_AT' })
      if (made) Atomics.add(made, 0, 1)
      yield i
    }
  } finally {
    if (ended) Atomics.add(ended, 0, 1)
  }
}
export async function* numbersLater({ n, made, ended, fail: at, ms = 0 }) {
  try {
    for (let i = 0; i < n; i++) {
      await sleep(ms)
      if (i === at) throw Object.assign(new RangeError(`at ${i}`), { code: 'E_AT' })
      if (made) Atomics.add(made, 0, 1)
      yield i
    }
  } finally {
    await sleep(1)
    if (ended) Atomics.add(ended, 0, 1)
  }
}
export function* yieldAll(values) {
  yield* values
}
export function* yieldOdd() {
  yield new Map([['k', 1n]])
  yield new SharedArrayBuffer(8)
  yield move(new Uint8Array([1, 2]))
  yield new Uint8Array(100_000).fill(3)
  yield Object.assign(new Error('kept whole'), { code: 'E_KEPT' })
  yield Promise.resolve('settled')
}
export function* yieldFunction(ended) {
  try {
    yield 1
    yield () => {}
  } finally {
    Atomics.add(ended, 0, 1)
  }
}
export function* exitAt(n) {
  for (let i = 0; ; i++) {
    if (i === n) process.exit(9)
    yield i
  }
}
export function* throwAtEnd() {
  try {
    yield 1
    yield 2
  } finally {
    // biome-ignore lint/correctness/noUnsafeFinally: what a clean-up that goes wrong does
    throw new TypeError('from finally')
  }
}
export function* spinAfter(n) {
  for (let i = 0; i < n; i++) yield i
  for (;;);
}

let lastBuffers = []
export function addToBuffers({ all, plain }, n) {
  let sum = 0
  for (const buffer of all) {
    const bytes = buffer.bytes()
    for (let i = 0; i < bytes.length; i++) {
      sum += bytes[i]
      bytes[i] += n
    }
  }
  lastBuffers = all
  return { all, sum, kept: plain }
}
export const lastBufferLengths = () => lastBuffers.map((buffer) => buffer.byteLength)
export { lastBufferLengths as lastBuffers }
export function badBuffers(how) {
  const buffer = TransferBuffer.alloc(1)
  if (how === 'twice') return [buffer, buffer]
  if (how === 'besideShared') return [new Uint8Array(new SharedArrayBuffer(8)), buffer]
  if (how === 'inMap') return new Map([['k', buffer]])
  if (how === 'inError') throw Object.assign(new Error('has a buffer'), { buffer })
  buffer.transfer()
  return { buffer }
}
export function exitWithBuffer(buffer) {
  process.exit(buffer.bytes()[0])
}
export function spinWithBuffer(buffer) {
  while (buffer.byteLength > 0);
}
/** Gives a buffer after nobody waits for it. */
export async function lateBuffer(flags) {
  await holdSoftly(flags)
  return TransferBuffer.alloc(1, { shared: true })
}

// What the tests of ProcessPool run.
import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import threads, { workerData } from 'node:worker_threads'
import { TransferBuffer } from '../../lib/index.mjs'
import { currentTask, currentWorker } from '../../lib/worker.mjs'

let ticks = 0
setInterval(() => ticks++, 1).unref()

let got = null
export async function init(context) {
  await sleep(1)
  got = context
}
export async function teardown(context) {
  await sleep(1)
  if (context?.ended) fs.appendFileSync(context.ended, `${process.pid}\n`)
}

export default (value) => value
export const add = (a, b) => a + b
export const count = (...args) => args.length
export const pid = () => process.pid
export const tickCount = () => ticks
export const where = () => ({
  argv: process.argv.slice(2),
  file: process.argv[1],
  env: process.env.OFFLOOP_TEST,
  flags: process.execArgv,
  data: [workerData, threads.workerData],
})
export const seen = () => [got, currentTask().context, currentWorker()]

export async function later(value, ms = 1) {
  await sleep(ms)
  return value
}
/** Says that it runs by a file, and waits for another one. */
export async function hold(door) {
  fs.appendFileSync(`${door}.began`, `${process.pid}\n`)
  while (!fs.existsSync(`${door}.open`)) await sleep(1)
  return 'held'
}
export function spin() {
  for (;;);
}
export function log(file, value) {
  fs.appendFileSync(file, `${value}\n`)
  return process.pid
}
let now = 0
let most = 0
export async function overlap() {
  most = Math.max(most, ++now)
  await sleep(2)
  now--
  return most
}

const hoarded = []
export function hoard(bytes) {
  hoarded.push(Buffer.alloc(bytes, 1))
  return process.pid
}
export const exit = (code) => process.exit(code)
export const kill = (signal) => process.kill(process.pid, signal)
export function uncaught() {
  setImmediate(() => {
    throw new RangeError('nobody catches this')
  })
  return new Promise(() => {})
}
/** Dies at its first run. */
export function once(file) {
  try {
    // Of several at once, one makes the file.
    fs.writeFileSync(file, '', { flag: 'wx' })
  } catch {
    return 'second'
  }
  process.exit(9)
}
export class Own extends Error {
  name = 'Own'
}
export function fail() {
  const error = new Own('outer', { cause: new TypeError('inner') })
  error.code = 'E_OUTER'
  error.details = { rows: [1, 2] }
  throw error
}
export function failOddly() {
  throw { code: 5 }
}
export const giveFunction = () => ({ rows: [1, () => {}] })

/** The sum of its bytes, as text: a look at all of them. */
export const sum = (bytes) => bytes.reduce((a, b) => a + b, 0)
export const kind = (value) => [Object.prototype.toString.call(value), value?.constructor?.name]
export const sameMemory = (a, b) => a.buffer === b.buffer
export function change(bytes) {
  bytes[0] = 255
  return bytes
}
let buffer
export function giveKept() {
  buffer = TransferBuffer.alloc(10)
  return buffer
}
/** Writes the byte at `i` once more, that far from the end. */
export function touch(buffer, i) {
  const bytes = buffer.bytes()
  bytes[bytes.length - 1 - i] = bytes[i]
  return buffer
}
export function touchOnce(buffer, file) {
  if (!fs.existsSync(file)) {
    fs.writeFileSync(file, '')
    buffer.bytes().fill(1)
    process.exit(9)
  }
  return buffer
}
export function keepBuffer(given) {
  buffer = given
}
export const giveBuffer = () => buffer
export function throwWith(given) {
  throw Object.assign(new Error('with a buffer'), { given: given.byteLength })
}
const buffers = []
export function keepAllBuffers(given) {
  buffers.push(given)
}
export const sameBuffers = () => buffers.every((one, i) => one.bytes().every((byte) => byte === i % 256))
export const keptIsGone = () => buffer.detached
const kept = []
export function keep(bytes) {
  kept.push(bytes)
  return kept.every((one, i) => one[0] === i % 251 && one.at(-1) === i % 251)
}

/** Ends when its signal is aborted, and writes the reason. */
export async function untilAborted(file) {
  const { signal } = currentTask()
  fs.appendFileSync(`${file}.began`, `${process.pid}\n`)
  // It may be late before it begins.
  if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve))
  fs.writeFileSync(file, signal.reason.code)
}
/** The same, where nobody asked for a signal as the task began. */
export async function lateUntilAborted(file) {
  const task = currentTask()
  await sleep(5)
  const { signal } = task
  fs.appendFileSync(`${file}.began`, `${process.pid}\n`)
  // It may be late before it begins.
  if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve))
  fs.writeFileSync(file, signal.reason.code)
}
/** The same in a loop that never lets the event loop turn. */
export function loopUntilAborted(file) {
  const { signal } = currentTask()
  fs.appendFileSync(`${file}.began`, `${process.pid}\n`)
  while (!signal.aborted);
  fs.writeFileSync(file, signal.reason.code)
}
export async function steps(door) {
  const task = currentTask()
  task.progress({ step: 1 })
  while (!fs.existsSync(`${door}.open`)) await sleep(1)
  task.progress(2)
  return 'done'
}
export const tellLong = () => currentTask().progress('x'.repeat(5000))

let made = 0
let ended = 0
/** How many values the streams of this process made, and how many of them ended. */
export const counts = () => [made, ended]
export function* numbers({ n, fail: at }) {
  try {
    for (let i = 0; i < n; i++) {
      if (i === at) throw Object.assign(new RangeError(`at ${i}`), { code: 'E_AT' })
      made++
      yield i
    }
  } finally {
    ended++
  }
}
export async function* numbersLater({ n, fail: at, ms = 0 }) {
  try {
    for (let i = 0; i < n; i++) {
      await sleep(ms)
      if (i === at) throw Object.assign(new RangeError(`at ${i}`), { code: 'E_AT' })
      made++
      yield i
    }
  } finally {
    await sleep(1)
    ended++
  }
}
export function* yieldAll(values) {
  yield* values
}
export function* yieldOdd() {
  yield new Map([['k', 1n]])
  yield TransferBuffer.from(new Uint8Array([1, 2]))
  yield Object.assign(new Error('kept whole'), { code: 'E_KEPT' })
  yield Promise.resolve('settled')
}
/** The same bytes again and again, changed after each yield. */
export function* yieldChanged(n) {
  const bytes = new Uint8Array(10_000)
  for (let i = 0; i < n; i++) {
    bytes.fill(i % 251)
    yield { i, bytes }
    bytes.fill(252)
  }
}
export function* yieldFunction() {
  try {
    yield 1
    yield () => {}
  } finally {
    ended++
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
export function* tellEach(n) {
  for (let i = 1; i <= n; i++) {
    currentTask().progress(i)
    yield i
  }
}
/** Yields until its signal is aborted, and writes the reason. */
export async function* yieldUntilAborted(file) {
  const { signal } = currentTask()
  try {
    for (let i = 0; ; i++) {
      yield i
      await sleep(1)
      signal.throwIfAborted()
    }
  } finally {
    if (signal.aborted) fs.writeFileSync(file, signal.reason.code)
  }
}
export const text = (length) => 'x'.repeat(length)

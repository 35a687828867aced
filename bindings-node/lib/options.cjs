'use strict'
// Options that every pool has.

const native = require('./native.cjs')
const { fail, aborted, typeName, checkOptions, checkKnown, noSuchOption } = require('./error.cjs')

// Node 20 before 20.5 has no such symbol.
if (!Symbol.asyncDispose) Object.defineProperty(Symbol, 'asyncDispose', { value: Symbol('Symbol.asyncDispose') })

const RUN_OPTIONS = ['signal', 'timeout', 'queueTimeout', 'priority', 'key', 'retries', 'onProgress']

/** Options that only one kind of pool has. */
const BELONGS_TO = {
  transferList: 'run',
  filename: 'run',
  stdout: 'WorkerPool',
  stderr: 'WorkerPool',
  resourceLimits: 'WorkerPool',
  trackUnmanagedFds: 'WorkerPool',
  maxWorkerMemory: 'ProcessPool',
  nice: 'ProcessPool',
  python: 'ProcessPool',
}

const MEANT_FOR = {
  run: 'option is for a call, not for a pool or for several calls',
  WorkerPool: 'option is for threads of JavaScript, which this pool does not have',
  ProcessPool: 'option is for worker processes, which this pool does not have',
}

function unknownOption(option, known) {
  const belongs = Object.hasOwn(BELONGS_TO, option) ? BELONGS_TO[option] : undefined
  if (belongs === undefined) return noSuchOption(option, known)
  return fail('Invalid', MEANT_FOR[belongs], { option, belongs_to: belongs, known })
}

const wrongType = (option, want, got) => fail('Invalid', 'option has the wrong type', { option, want, got: typeName(got) })

/** A list of texts, or none. */
function texts(option, given) {
  if (given === undefined || given === null) return []
  if (!Array.isArray(given) || given.some((part) => typeof part !== 'string')) throw wrongType(option, 'array of text', given)
  return given
}

/** The environment of a worker: an object, or none. */
function checkEnv(env) {
  if (env === undefined || env === null) return
  if (typeof env !== 'object' || Array.isArray(env)) throw wrongType('env', 'object', env)
}

/** In ms; longest wait for a worker that starts. */
function checkReadyTimeout(value) {
  if (value === undefined || value === null) return
  if (!(typeof value === 'number' && value >= 1)) {
    throw fail('Invalid', 'option is out of range', { option: 'readyTimeout', value: String(value), min: 1 })
  }
}

/** Splits run options, those with these `names`, from the rest, and checks what native code does not see. `also` is named in errors. */
function runOptions(given, onlyThose, names = RUN_OPTIONS, also = '') {
  const run = {}
  const rest = {}
  for (const [name, value] of Object.entries(checkOptions(given))) {
    if (value === undefined || value === null) continue
    if (names.includes(name)) run[name] = value
    else if (onlyThose) throw unknownOption(name, [...names, also].join(' ').trim())
    else rest[name] = value
  }
  const wrong = (option, want) => wrongType(option, want, run[option])
  const { signal, onProgress, retries } = run
  if (
    signal !== undefined &&
    (typeof signal !== 'object' ||
      typeof signal.aborted !== 'boolean' ||
      typeof signal.addEventListener !== 'function' ||
      typeof signal.removeEventListener !== 'function')
  ) {
    throw wrong('signal', 'AbortSignal')
  }
  if (onProgress !== undefined && typeof onProgress !== 'function') throw wrong('onProgress', 'function')
  if (retries !== undefined && !(Number.isInteger(retries) && retries >= 0)) {
    throw fail('Invalid', 'option is out of range', { option: 'retries', value: retries, min: 0 })
  }
  return { run, rest }
}

/** Throws what a call with these options ends with before it is anywhere: its signal was aborted, or it has no time at all. */
function checkBegin({ signal, timeout, queueTimeout }) {
  if (signal?.aborted) throw aborted(signal.reason)
  if (timeout === 0) throw fail('Timeout', 'the task has no time to run', { limit_ms: 0 })
  if (queueTimeout === 0) throw fail('Timeout', 'the task has no time to wait in the queue', { limit_ms: 0 })
}

/** The grace of a close in ms, checked before anything is closed. */
function closeGrace(options) {
  const { grace, ...unknown } = checkOptions(options)
  checkKnown(unknown, 'grace')
  if (grace === undefined || grace === null) return Number.POSITIVE_INFINITY
  if (typeof grace === 'number' && grace >= 0) return grace
  throw fail('Invalid', 'option has the wrong type or is out of range', { option: 'grace', value: grace, want: 'milliseconds from 0' })
}

function resize(handle, options) {
  const { minWorkers, maxWorkers, ...unknown } = checkOptions(options)
  checkKnown(unknown, 'minWorkers maxWorkers')
  native.poolResize(handle, minWorkers, maxWorkers)
}

/** An object whose functions `make(name)` makes when they are first asked for: what it has costs nothing more than any other property. */
function madeWhenAsked(make) {
  const made = Object.create(
    new Proxy(Object.create(null), {
      get: (_, name) => {
        // Not a promise: `await pool.exports` would call it.
        if (typeof name !== 'string' || name === 'then') return undefined
        const value = make(name)
        Object.defineProperty(made, name, { value, enumerable: true })
        return value
      },
      set: () => false,
    }),
  )
  return made
}

module.exports = {
  RUN_OPTIONS,
  unknownOption,
  wrongType,
  texts,
  checkEnv,
  checkReadyTimeout,
  runOptions,
  checkBegin,
  closeGrace,
  resize,
  madeWhenAsked,
}

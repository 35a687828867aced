'use strict'
// ProcessPool: functions in worker processes. The core keeps the processes, queues, schedules, times and cancels
// (core/src/pool/process.rs); this file turns calls into frames and settles promises. lib/worker-main.cjs is the other side.

const { AsyncResource } = require('node:async_hooks')
const native = require('./native.cjs')
const { OffloopError, fail, aborted, signalName } = require('./error.cjs')
const { whenClosed, begin, end, newNote, onNote, offNote, listen, unlisten, abortOf, report, onProcess, inFlight } =
  require('./completion.cjs')
const { runOptions } = require('./options.cjs')
const { Calls, RUN_OPTIONS, pick } = require('./calls.cjs')
const { Writer, read, readParts, NODE, FAILED, HEAD } = require('./frame.cjs')
const { commandOf, checkWorker } = require('./launch.cjs')

const MADE_HERE = Symbol('made here')
/** Options that native code checks. */
const POOL_OPTIONS = [
  'minWorkers',
  'maxWorkers',
  'idleTimeout',
  'maxTasksPerWorker',
  'maxWorkerMemory',
  'maxWorkerAge',
  'maxQueue',
  'name',
  'nice',
  'concurrency',
  'cancelGrace',
  'readyTimeout',
]
const OWN_OPTIONS = ['onFull', 'context']
/** Options of the processes. */
const PROCESS_OPTIONS = ['workerData', 'argv', 'execArgv', 'env']

/** Flag of a frame: the value is a list of arguments. The same number as in lib/worker-main.cjs. */
const SPREAD = 1

// What `processEvents` tells; the same numbers as in src/process.rs.
const READY = 0
const EXITED = 1
const DEGRADED = 2
const STOPPED = 3

// Kinds of records; the same numbers as in src/pool.rs.
const BYTES = 0
const VALUE = 2
const ERROR = 3
const PROGRESS = 4
const THROWN = 5
const FRAME = 6
const PROGRESS_FRAME = 7

/** With so many in flight, submits are collected: the workers have enough to do until they come. */
const COLLECT_FROM = 64
const COLLECT = 64
const COLLECT_BYTES = 256 * 1024
const WORDS = 3
const records = new Uint8Array(COLLECT * WORDS * 4)
const words = new Uint32Array(records.buffer)
const refused = []
const writer = new Writer()
let collected = 0
let collectedBytes = 0
let collectedPool = null

// One promise per slot.
const resolves = []
const rejects = []
const pools = []
/** What a call has beside its promise, or null. */
const extras = []
const free = []
const resolved = Promise.resolve()

let grabbing = 0
const grab = (resolve, reject) => {
  resolves[grabbing] = resolve
  rejects[grabbing] = reject
}

const nextSlot = () => (free.length > 0 ? free[free.length - 1] : resolves.length)

function open(pool, extra) {
  const slot = free.length > 0 ? free.pop() : resolves.length
  grabbing = slot
  const promise = new Promise(grab)
  pools[slot] = pool
  extras[slot] = extra
  pool.inFlight++
  begin()
  return promise
}

function release(slot) {
  const pool = pools[slot]
  const extra = extras[slot]
  resolves[slot] = rejects[slot] = pools[slot] = undefined
  extras[slot] = null
  free.push(slot)
  if (extra !== null) {
    if (extra.submitted) native.processForget(slot)
    if (extra.signal) unlisten(extra.signal, extra.onAbort)
  }
  pool.inFlight--
  if (pool.pressed && pool.inFlight * 2 <= pool.maxQueue) {
    pool.pressed = false
    pool.emit('drain')
  }
}

function flush() {
  if (collected === 0) return
  const pool = collectedPool
  const count = collected
  collected = 0
  collectedBytes = 0
  try {
    native.processSubmitEach(pool.handle, records, writer.memory, count, refused)
  } finally {
    writer.shrink()
  }
  if (refused.length > 0) refuse(pool)
}

function refuse(pool) {
  let full = false
  for (let i = 0; i < refused.length; i += 2) {
    const slot = refused[i]
    full ||= refused[i + 1].code === 'ERR_OFFLOOP_FULL'
    rejects[slot](refused[i + 1])
    release(slot)
    end()
  }
  refused.length = 0
  if (full) pool.press()
}

/** A task with options, or with parts beside its frame. `hand(slot)` gives it to native code. */
function submitOne(pool, run, wait, hand) {
  return new Promise((resolve, reject) => {
    const { signal } = run
    const extra = { submitted: false, signal, onAbort: null, onProgress: run.onProgress && AsyncResource.bind(run.onProgress) }
    const slot = nextSlot()
    open(pool, extra).then(resolve, reject)
    try {
      // Code of the signal, which may throw.
      if (signal) {
        extra.onAbort = () => native.processCancel(slot)
        listen(signal, extra.onAbort)
      }
      if (wait && pool.inFlight > pool.maxQueue) pool.press()
      hand(slot)
      extra.submitted = true
    } catch (error) {
      rejects[slot](error)
      release(slot)
      end()
      if (error.code === 'ERR_OFFLOOP_FULL') pool.press()
    }
  })
}

function settle(slot, kind, value, scratch) {
  switch (kind) {
    case PROGRESS:
      progress(slot, value)
      return false
    case PROGRESS_FRAME:
      progress(slot, value, true)
      return false
    case BYTES:
      settleFrame(slot, scratch[value], () => read(scratch, value + HEAD, null).value)
      break
    case FRAME:
      settleFrame(slot, value[0][0], () => readParts(value))
      break
    case VALUE:
      resolves[slot](value)
      break
    case THROWN:
      rejects[slot](value)
      break
    case ERROR:
      rejects[slot](value.name === 'AbortError' && extras[slot]?.signal ? (abortOf(extras[slot].signal) ?? value) : value)
      break
    default:
      resolves[slot](null)
  }
  release(slot)
  return true
}

function settleFrame(slot, first, valueIn) {
  try {
    const value = valueIn()
    if ((first & FAILED) !== 0) rejects[slot](value)
    else resolves[slot](value)
  } catch (error) {
    rejects[slot](error)
  }
}

function progress(slot, value, isFrame = false) {
  const call = extras[slot]?.onProgress
  if (!call) return
  try {
    call(isFrame ? readParts(value) : value)
  } catch (error) {
    report(error)
  }
}

onProcess(settle)

/** What a pool and its views share. */
class Shared {
  inFlight = 0
  pressed = false
  closed = null
  views = new Set()
  onStopped = null
  constructor(command, env, isCommon, setup, poolOptions, wait) {
    this.isCommon = isCommon
    this.wait = wait
    this.maxQueue = poolOptions.maxQueue ?? 65_536
    this.note = newNote()
    this.handle = native.processNew(poolOptions, this.note, command, env, setup)
    onNote(this.note, () => this.#onEvents())
  }

  #onEvents() {
    for (const [what, pid, exitCode, number, oom, failed, text] of native.processEvents(this.handle)) {
      const signal = typeof number === 'number' ? signalName(number) : null
      switch (what) {
        case READY:
          this.emit('workerReady', { pid })
          break
        case EXITED:
          if (failed) this.emit('workerError', errorOf(pid, exitCode, signal, oom, text))
          this.emit('workerExit', { pid, exitCode, signal })
          break
        case DEGRADED:
          this.emit('degraded', { failures: pid })
          break
        case STOPPED:
          this.onStopped?.()
          break
      }
    }
  }

  /** A task without options: the hot path. */
  submitPlain(name, spread, value) {
    if (this.isCommon) return this.submit(name, spread, value, {})
    if (collectedPool !== this) {
      flush()
      collectedPool = this
    }
    const at = collectedBytes
    let last
    try {
      last = writer.write(at, NODE, spread ? SPREAD : 0, name, value, 'argument', spread)
    } catch (error) {
      return Promise.reject(error)
    }
    if (writer.parts !== null) return this.#submitFrame(at, last, {}, false)
    const slot = nextSlot()
    const promise = open(this, null)
    if (collected === 0 && inFlight() > COLLECT_FROM) resolved.then(flush)
    words[collected * WORDS] = slot
    words[collected * WORDS + 1] = at
    words[collected * WORDS + 2] = last - at
    collectedBytes = last
    if (++collected === COLLECT || collectedBytes > COLLECT_BYTES || inFlight() <= COLLECT_FROM) flush()
    return promise
  }

  #submitFrame(at, last, run, wait) {
    const frame = writer.memory.subarray(at, last)
    const submitted = submitOne(this, run, wait, (slot) => {
      const { priority, timeout, queueTimeout, key, retries } = run
      native.processSubmit(this.handle, slot, frame, writer.views(), priority, timeout, queueTimeout, key, wait, retries)
      writer.moved()
    })
    if (collected === 0) writer.shrink()
    return submitted
  }

  /** A task with options. With `wait` it waits beyond a full queue. */
  submit(name, spread, value, run, wait = this.wait) {
    try {
      if (run.signal?.aborted) throw aborted(run.signal.reason)
      flush()
      if (!this.isCommon) {
        const last = writer.write(0, NODE, spread ? SPREAD : 0, name, value, 'argument', spread)
        return this.#submitFrame(0, last, run, wait)
      }
      const args = spread ? value : value === undefined ? [] : [value]
      const { priority, timeout, queueTimeout, key, retries } = run
      return submitOne(this, run, wait, (slot) =>
        native.processCall(this.handle, slot, name, args, priority, timeout, queueTimeout, key, wait, retries),
      )
    } catch (error) {
      return Promise.reject(error)
    }
  }

  check({ priority, timeout, queueTimeout, key, retries }) {
    try {
      native.processCheck(this.handle, priority, timeout, queueTimeout, key, retries)
    } catch (error) {
      // A view of a closed pool is no error; its calls are.
      if (error.code !== 'ERR_OFFLOOP_CLOSED') throw error
    }
  }

  stats() {
    flush()
    return native.poolStats(this.handle)
  }

  press() {
    if (this.pressed) return
    this.pressed = true
    this.emit('backpressure')
  }

  /** Listeners run after what is under way here, and throw as those of any emitter that nobody called. */
  emit(event, ...args) {
    for (const view of this.views) {
      const emitter = view.deref()
      if (emitter === undefined) this.views.delete(view)
      else if (emitter.listenerCount(event) > 0) queueMicrotask(() => emitter.emit(event, ...args))
    }
  }

  close(grace) {
    flush()
    const closing = whenClosed((note) => native.processClose(this.handle, grace, note))
    if (this.closed !== null) return this.closed
    begin()
    const stopped = new Promise((resolve) => {
      this.onStopped = resolve
    })
    this.closed = closing
      .then(() => (native.processStarted(this.handle) ? stopped : undefined))
      .finally(() => {
        offNote(this.note)
        end()
      })
    return this.closed
  }
}

const WORKER_LOST = native.errorTable().find((row) => row.kind === 'WorkerLost').status

/** A worker's end that nobody asked for, for `workerError`. */
function errorOf(pid, exitCode, signal, oom, text) {
  const how = [`pid=${pid}`]
  if (exitCode !== null) how.push(`exit_code=${exitCode}`)
  if (signal !== null) how.push(`signal=${signal}`)
  if (text !== null) how.push(`text=${text}`)
  const error = new OffloopError(WORKER_LOST, `worker lost: the worker process ended (${how.join(', ')})`)
  if (exitCode !== null) error.exitCode = exitCode
  if (signal !== null) error.signal = signal
  error.oom = oom
  error.poison = false
  return error
}

class ProcessPool extends Calls {
  constructor(worker, options = {}, defaults = undefined) {
    if (worker === MADE_HERE) {
      super(options, defaults)
      return
    }
    const { run, rest } = runOptions(options, false, RUN_OPTIONS)
    const known = [...POOL_OPTIONS, ...OWN_OPTIONS, ...PROCESS_OPTIONS, 'python', ...RUN_OPTIONS]
    const unknown = Object.keys(rest).find((name) => !known.includes(name))
    if (unknown !== undefined) throw fail('Invalid', 'unknown option', { option: unknown, known: known.join(' ') })
    const { onFull = 'reject', context, workerData } = rest
    if (onFull !== 'reject' && onFull !== 'wait') {
      throw fail('Invalid', 'option is not one of its words', { option: 'onFull', value: String(onFull), want: 'reject wait' })
    }
    const kind = checkWorker(worker)
    const { command, env } = commandOf(kind, rest)
    let setup
    if (kind.node === undefined) {
      if (workerData !== undefined) throw fail('Invalid', 'option is for workers in JavaScript', { option: 'workerData' })
      setup = context === undefined ? new Uint8Array(0) : native.processEncode(context)
    } else {
      const first = new Writer(false)
      const length = first.write(0, NODE, 0, null, { context, workerData }, 'context or workerData')
      setup = first.memory.subarray(0, length)
    }
    const shared = new Shared(command, env, kind.node === undefined, setup, pick(rest, POOL_OPTIONS), onFull === 'wait')
    shared.check(run)
    super(shared, run)
  }

  /** Of the caller's own class, without running its constructor. */
  view(shared, defaults) {
    return Reflect.construct(ProcessPool, [MADE_HERE, shared, defaults], this.constructor)
  }
}

module.exports = { ProcessPool }

'use strict'
// WorkerPool: functions of a JavaScript file on worker_threads. The core queues, schedules, times and cancels (core/src/pool/looped.rs); this
// file turns calls into submits, starts and ends threads when the core says so, and settles promises. lib/run.cjs is the other side.

const path = require('node:path')
const { Worker, MessageChannel, SHARE_ENV } = require('node:worker_threads')
const { setTimeout, clearTimeout, MAX_TIMER } = require('./clock.cjs')
const native = require('./native.cjs')
const { fail, typeName } = require('./error.cjs')
const { whenClosed, begin, end, newNote, onNote, offNote, abortOf, report, onCall } = require('./completion.cjs')
const { checkBegin, checkEnv, checkReadyTimeout, texts, wrongType } = require('./options.cjs')
const { resolves, rejects, pools, extras, release, collectAt, collect, flush, submitOne } = require('./submits.cjs')
const { Calls, SharedCalls, sharedOf, poolOptions, pick } = require('./calls.cjs')
const { TransferBuffer, beginMove, endMove } = require('./buffer.cjs')
const { urlOf } = require('./files.cjs')
const { movedIn } = require('./move.cjs')
const { INLINE, inFile, sourceOf } = require('./inline.cjs')
const stream = require('./stream.cjs')
const { encode, takeMoving, refuseBuffers, written, shrink, decode, unserializable, unreadable, BESIDE, FAILED } = require('./codec.cjs')

/** Of a WorkerPool: has a function called with each `Worker` that is started. For the rest of this package, whichever module loaded this one first. */
const ON_THREAD = Symbol.for('offloop.onThread')
/** Options of the threads, which worker_threads checks. */
const THREAD_OPTIONS = ['workerData', 'argv', 'execArgv', 'env', 'resourceLimits', 'trackUnmanagedFds', 'stdout', 'stderr']
const POOL_OPTIONS = [
  'minWorkers',
  'maxWorkers',
  'idleTimeout',
  'maxTasksPerWorker',
  'maxWorkerAge',
  'maxQueue',
  'name',
  'concurrency',
  'cancelGrace',
]
const OWN_OPTIONS = ['onFull', 'context', 'readyTimeout', 'trace']
const READY_TIMEOUT = 30_000
/** So many workers in a row that did not start are told as `degraded`. */
const DEGRADED_FROM = 5

// What `workersEvents` tells; the same numbers as in src/worker.rs.
const START = 0
// Flags of a task; the same numbers as in src/worker.rs and lib/run.cjs.
const SPREAD = 4
const FETCH = 8
const STREAM = 16
const BUFFERS = 32

/** Values that travel beside their task: what holds them, by number. */
const waitingBeside = new Map()
let lastBeside = 0
/** Results that came beside theirs, and calls that wait for such a one, by the worker and its number. */
const besides = new Map()

/** Writes the value of a call behind what was collected; returns where it ends, or false when it has to travel beside it. */
function writeValue(value, at, flags) {
  try {
    return encode(value, at, (flags & SPREAD) !== 0)
  } catch (error) {
    // A getter of the user, or a proxy that was revoked: the runtime's clone would have thrown it, too.
    throw unserializable('argument', value, error)
  }
}

/** What of a transferList only a message can move: a TransferBuffer moves by itself. */
function listOf(transferList) {
  if (transferList === undefined || !transferList.some((one) => one instanceof TransferBuffer)) return transferList
  const list = transferList.filter((one) => !(one instanceof TransferBuffer))
  return list.length > 0 ? list : undefined
}

/** What is moved is there once. */
function checkMoved({ retries = 0, worker }) {
  if (retries > 0) throw fail('Invalid', 'a call that moves what it is given cannot be run again', { option: 'retries', value: retries })
  if (worker !== undefined) throw fail('Invalid', 'what is moved cannot be given to several workers')
}

/** Whether this error of the runtime is about what is to be moved. */
const isOfList = ({ code, message }) =>
  code === 'ERR_INVALID_TRANSFER_OBJECT' ||
  /^(Transfer list contains|MessagePort in transfer list|Found invalid value in transferList)/.test(message)

/** The error of `list`, of which the runtime does not say what it refused; null if `error` is about something else. */
function notMoved(list, error) {
  if (!isOfList(error)) return null
  const { port1 } = new MessageChannel()
  const at = list.findIndex((one, i) => {
    try {
      // A function is refused, and nothing moves; but the list is looked at before.
      port1.postMessage(isOfList, [one])
      return false
    } catch (error) {
      return isOfList(error) || list.indexOf(one) < i
    }
  })
  port1.close()
  const refused = fail('Unserializable', 'what is to be moved cannot be transferred, or is there twice', { at, got: typeName(list[at]) })
  refused.cause = error
  return refused
}

/** A value that only a message can carry, for one run: in a port, with what it moves. */
class Moved {
  #port
  constructor(value, list = []) {
    const { port1, port2 } = new MessageChannel()
    try {
      port1.postMessage(value, list)
    } catch (error) {
      port1.close()
      throw notMoved(list, error) ?? unserializable('argument', value, error)
    }
    // What was posted stays with the other end.
    port2.unref()
    this.#port = port2
  }

  take() {
    const port = this.#port
    this.#port = null
    return port
  }

  drop() {
    this.#port?.close()
  }
}

/** The same for several runs, without anything that moves. */
class Kept {
  #value
  constructor(value) {
    try {
      this.#value = structuredClone(value)
    } catch (error) {
      throw unserializable('argument', value, error)
    }
  }

  take() {
    return new Moved(this.#value).take()
  }

  drop() {}
}

function keepBeside(value) {
  lastBeside = (lastBeside + 1) >>> 0 || 1
  waitingBeside.set(lastBeside, value)
  return lastBeside
}

function dropBeside(id) {
  waitingBeside.get(id)?.drop()
  waitingBeside.delete(id)
}

function progress(slot, bytes) {
  const call = extras[slot]?.onProgress
  if (!call) return
  try {
    call(decode(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength), 0))
  } catch (error) {
    report(error)
  }
}

onCall(settle, progress)

function settle(slot, failed, bytes, offset) {
  if (failed) {
    const extra = extras[slot]
    const signal = extra?.signal
    const error = bytes.name === 'AbortError' && signal ? (abortOf(signal) ?? bytes) : bytes
    const pool = pools[slot]
    if (error.code === 'ERR_OFFLOOP_START_FAILED' && pool.startError !== null) error.cause = pool.startError
    rejects[slot](error)
  } else {
    let buffers = null
    if (Array.isArray(bytes)) [bytes, ...buffers] = bytes
    const from = Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    const tag = from[offset]
    try {
      if (tag === BESIDE) return settleBeside(slot, from, offset + 1)
      if (tag === FAILED) rejects[slot](decode(from, offset + 1))
      else resolves[slot](decode(from, offset, buffers))
    } catch (error) {
      rejects[slot](unreadable('result', error))
    }
  }
  release(slot)
  return true
}

function settleBeside(slot, from, offset) {
  const key = `${from.readUInt32LE(offset)}:${from.readUInt32LE(offset + 4)}`
  const came = besides.get(key)
  if (came === undefined) {
    besides.set(key, { slot })
    return false
  }
  besides.delete(key)
  came.settle(slot)
  release(slot)
  return true
}

/** A result that travelled beside its task; `settle(slot)` has it. */
function cameBeside(key, settle) {
  const waiting = besides.get(key)
  if (waiting === undefined) {
    besides.set(key, { settle })
    return
  }
  besides.delete(key)
  settle(waiting.slot)
  release(waiting.slot)
  end()
}

/** One thread. */
class Thread {
  ready = false
  leaving = false
  /** Results that came beside their task. */
  results = 0
  error = null
  notReady = null
  timer = null
  constructor(pool, id) {
    this.pool = pool
    this.id = id
    const { port1, port2 } = new MessageChannel()
    const { threadOptions, url, concurrency, context, idleTimeout } = pool
    const { workerData, ...options } = threadOptions
    this.port = port1
    this.worker = new Worker(path.join(__dirname, 'run.cjs'), {
      ...options,
      workerData: { id, url, concurrency, idleTimeout, context, workerData, port: port2 },
      transferList: [port2],
    })
    this.threadId = this.worker.threadId
    port1.on('message', (message) => this.#on(message))
    // What cannot be read here is a result: nothing else that comes is the user's.
    port1.on('messageerror', (error) => this.#cameBeside((slot) => rejects[slot](unreadable('result', error))))
    this.worker.on('error', (error) => {
      this.error = error
      if (this.ready) pool.emit('workerError', error)
    })
    this.worker.on('exit', (code) => this.#ended(code))
    // What waits keeps the process alive, not who runs it.
    port1.unref()
    this.worker.unref()
    this.timer = setTimeout(() => this.#late(), Math.min(pool.readyTimeout, MAX_TIMER))
    this.timer.unref()
    pool.onThread?.(this.worker)
  }

  /** They come in the order of their numbers. */
  #cameBeside(settle) {
    cameBeside(`${this.id}:${++this.results}`, settle)
  }

  /** With its output, if that was asked for. */
  #tellReady() {
    const { pool, worker } = this
    const output = {}
    for (const name of ['stdout', 'stderr']) if (pool.threadOptions[name]) output[name] = worker[name]
    // What nobody can take does not pile up.
    if (!pool.emit('workerReady', { threadId: this.threadId, ...output })) for (const name of Object.keys(output)) output[name].resume()
  }

  #late() {
    this.notReady = `it was not ready after ${this.pool.readyTimeout} ms`
    this.end()
  }

  #on(message) {
    switch (message.kind) {
      case 'ready':
        clearTimeout(this.timer)
        this.ready = true
        this.pool.failures = 0
        this.pool.degraded = false
        this.pool.startError = null
        this.#tellReady()
        break
      case 'fetch': {
        // Settled meanwhile: nobody waits for it.
        const port = waitingBeside.get(message.value)?.take() ?? null
        this.port.postMessage({ kind: 'fetched', index: message.index, port }, port === null ? [] : [port])
        break
      }
      case 'result':
        this.#cameBeside((slot) => resolves[slot](message.value))
        break
      case 'leaving':
        this.leaving = true
        this.timer = setTimeout(() => this.end(), Math.min(this.pool.cancelGrace, MAX_TIMER))
        this.timer.unref()
        break
    }
  }

  end() {
    this.worker.terminate()
  }

  #ended(code) {
    const { pool, error } = this
    clearTimeout(this.timer)
    this.port.close()
    pool.threads.delete(this.id)
    // Its message may come later than its end, or not at all.
    if (this.ready || native.workerWasReady(this.id)) {
      native.workerLost(this.id, code, error?.code === 'ERR_WORKER_OUT_OF_MEMORY', error === null ? '' : textOf(error))
    } else if (pool.closed !== null && error === null && this.notReady === null) {
      native.workerLost(this.id, code, false, '')
    } else {
      pool.startError = error
      native.workerNotStarted(this.id, this.notReady ?? (error === null ? `exit code ${code}` : textOf(error)))
      if (++pool.failures >= DEGRADED_FROM && !pool.degraded) {
        pool.degraded = true
        pool.emit('degraded', { failures: pool.failures, error })
      }
    }
    pool.emit('workerExit', { threadId: this.threadId, exitCode: code })
    pool.onThreadEnded?.()
  }
}

function textOf(error) {
  try {
    return error instanceof Error || typeof error?.message === 'string' ? `${error.name}: ${error.message}` : String(error)
  } catch {
    return 'an error without text'
  }
}

/** What a pool and its views share. */
class Shared extends SharedCalls {
  threads = new Map()
  failures = 0
  degraded = false
  startError = null
  onThreadEnded = null
  onThread = null
  exports = new Map()
  /** Numbers of functions that were sent as their source. */
  inlines = new WeakMap()
  /** By number: what a trace calls the function. */
  names = []
  constructor(url, poolOptions, threadOptions, { onFull, trace, context, readyTimeout }) {
    super(poolOptions, onFull, trace)
    this.url = url
    this.threadOptions = threadOptions
    this.context = context
    this.readyTimeout = readyTimeout
    this.concurrency = poolOptions.concurrency ?? 1
    this.idleTimeout = Math.min(poolOptions.idleTimeout ?? 30_000, MAX_TIMER)
    this.note = newNote()
    this.handle = native.workersNew(poolOptions, this.note)
    onNote(this.note, () => this.#onEvents())
  }

  #onEvents() {
    const events = native.workersEvents(this.handle)
    for (let i = 0; i < events.length; i += 2) {
      const id = events[i + 1]
      if (events[i] === START) this.#start(id)
      else this.threads.get(id)?.end()
    }
  }

  #start(id) {
    try {
      this.threads.set(id, new Thread(this, id))
    } catch (error) {
      // The options of the thread, as a rule: every other start would end like this.
      this.startError = error
      native.workerNotStarted(id, textOf(error))
    }
  }

  /** The number of an export, of the pool's file or of the one at `url`. */
  target(name, url = this.url) {
    const key = url === this.url ? name : inFile(url, name)
    let number = this.exports.get(key)
    if (number === undefined) {
      if (typeof name !== 'string') throw fail('Invalid', 'name of an export is not text', { got: typeName(name) })
      // A name may come from anywhere, a source may not.
      if (name.startsWith(INLINE)) throw fail('Invalid', 'name of an export begins with NUL')
      number = native.workersExport(this.handle, key)
      this.exports.set(key, number)
      this.names[number] = name
    }
    return number
  }

  /** The number of a function that is sent as its source. */
  inline(fn) {
    let number = this.inlines.get(fn)
    if (number === undefined) {
      number = native.workersExport(this.handle, INLINE + sourceOf(fn))
      this.inlines.set(fn, number)
      // Functions of one source have one number, and so one name.
      this.names[number] = fn.name || 'anonymous'
    }
    return number
  }

  nameOf(number) {
    return this.names[number]
  }

  /** A task without options: the hot path. */
  submitPlain(number, spread, value) {
    const flags = spread ? SPREAD : 0
    const at = collectAt(this)
    let last
    try {
      const list = movedIn(value)
      if (list !== null) return this.submit(number, spread, value, { transferList: list })
      last = writeValue(value, at, flags)
      if (last === false || takeMoving() !== null) return this.submit(number, spread, value, {})
    } catch (error) {
      return Promise.reject(error)
    }
    return collect(this, number, flags, last)
  }

  submitEach(records, count, refused) {
    try {
      native.workersSubmitEach(this.handle, records, written(), count, refused)
    } finally {
      shrink()
    }
  }

  /** A task with options, or with a value that travels beside it. With `wait` it waits beyond a full queue. */
  submit(number, spread, value, run, wait = this.wait) {
    return this.#submit(number, spread ? SPREAD : 0, value, run, wait)
  }

  #submit(number, flags, value, run, wait) {
    let beside = 0
    try {
      checkBegin(run)
      flush()
      let bytes
      const list = listOf(run.transferList) ?? movedIn(value)
      if (list !== null && list.length > 0) checkMoved(run)
      const last = list === null ? writeValue(value, 0, flags) : false
      const buffers = last === false ? null : takeMoving()
      if (buffers !== null) {
        checkMoved(run)
        flags |= BUFFERS
      }
      if (last === false) {
        refuseBuffers(value)
        beside = keepBeside(run.retries > 0 ? new Kept(value) : new Moved(value, list ?? []))
        flags |= FETCH
        bytes = new Uint8Array(Uint32Array.of(beside).buffer)
      } else {
        bytes = written().subarray(0, last)
      }
      const hand = (slot) => {
        const { priority, timeout, queueTimeout, key, retries, worker } = run
        const handles = buffers?.map(beginMove)
        const traced = this.tracer !== null
        native.workersSubmit(
          this.handle,
          number,
          slot,
          flags,
          bytes,
          priority,
          timeout,
          queueTimeout,
          key,
          wait,
          retries,
          worker,
          handles,
          traced,
        )
        buffers?.forEach(endMove)
      }
      const submitted = submitOne(this, number, run, wait, hand, beside === 0 ? null : () => dropBeside(beside))
      shrink()
      return submitted
    } catch (error) {
      return Promise.reject(error)
    }
  }

  stream(number, task, run, window, leaving) {
    const start = async (channel, ports) => {
      const message = { ...channel, task: stream.wrap(task) }
      return this.#submit(number, STREAM, message, { ...run, leaving, transferList: [...ports, ...(movedIn(task) ?? [])] }, this.wait)
    }
    return stream.reading(start, window, leaving)
  }

  close(grace) {
    const closing = whenClosed((note) => native.poolClose(this.handle, grace, note))
    if (this.closed !== null) return this.closed
    // A thread that is idle leaves by itself; one that starts has nothing to do once every task has its outcome.
    begin()
    const ended = new Promise((resolve) => {
      this.onThreadEnded = () => {
        if (this.threads.size === 0) resolve()
      }
    })
    this.closed = closing
      .then(() => {
        for (const thread of this.threads.values()) if (!thread.ready) thread.end()
        this.onThreadEnded()
        return ended
      })
      .finally(() => {
        offNote(this.note)
        end()
      })
    return this.closed
  }
}

/** Options of the threads whose type the runtime would look at only when one starts. */
function checkThread({ argv, execArgv, env, resourceLimits, ...flags }) {
  if (argv !== undefined && !Array.isArray(argv)) throw wrongType('argv', 'array', argv)
  texts('execArgv', execArgv)
  if (env !== SHARE_ENV) checkEnv(env)
  if (resourceLimits !== undefined && (typeof resourceLimits !== 'object' || resourceLimits === null))
    throw wrongType('resourceLimits', 'object', resourceLimits)
  for (const name of ['trackUnmanagedFds', 'stdout', 'stderr']) {
    if (flags[name] !== undefined && typeof flags[name] !== 'boolean') throw wrongType(name, 'boolean', flags[name])
  }
}

class WorkerPool extends Calls {
  constructor(filename, options = {}) {
    const { run, rest } = poolOptions(options, [...POOL_OPTIONS, ...OWN_OPTIONS, ...THREAD_OPTIONS])
    const { onFull, trace, context, readyTimeout = READY_TIMEOUT } = rest
    checkReadyTimeout(readyTimeout)
    checkThread(rest)
    const url = urlOf(filename)
    // They are cloned for each thread: better an error here than from each of them.
    for (const name of ['context', 'workerData']) {
      try {
        structuredClone(rest[name])
      } catch (error) {
        throw unserializable(name, rest[name], error)
      }
    }
    const shared = new Shared(url, pick(rest, POOL_OPTIONS), pick(rest, THREAD_OPTIONS), { onFull, trace, context, readyTimeout })
    shared.check(run)
    super(shared, run)
  }

  static [ON_THREAD](pool, call) {
    sharedOf(pool).onThread = call
  }
}

module.exports = { WorkerPool }

'use strict'
// WorkerPool: functions of a JavaScript file on worker_threads. The core queues, schedules, times and cancels (core/src/pool/looped.rs); this
// file turns calls into submits, starts and ends threads when the core says so, and settles promises. lib/run.cjs is the other side.

const fs = require('node:fs')
const path = require('node:path')
const { AsyncResource } = require('node:async_hooks')
const { EventEmitter } = require('node:events')
const { fileURLToPath, pathToFileURL } = require('node:url')
const { Worker, MessageChannel } = require('node:worker_threads')
const { setTimeout, clearTimeout, MAX_TIMER } = require('./clock.cjs')
const native = require('./native.cjs')
const { fail, aborted, typeName, checkOptions } = require('./error.cjs')
const {
  whenClosed,
  begin,
  end,
  newNote,
  onNote,
  offNote,
  listen,
  unlisten,
  abortOf,
  report,
  onCall,
  inFlight,
} = require('./completion.cjs')
const { runOptions, closeGrace, resize, madeWhenAsked } = require('./options.cjs')
const { TransferBuffer, beginMove, endMove } = require('./buffer.cjs')
const { movedIn } = require('./move.cjs')
const { mapping, WINDOW } = require('./mapping.cjs')
const { INLINE, sourceOf } = require('./inline.cjs')
const stream = require('./stream.cjs')
const { encode, takeMoving, refuseBuffers, written, shrink, decode, unserializable, BESIDE, FAILED } = require('./codec.cjs')

const MADE_HERE = Symbol('made here')
/** Of a WorkerPool: has a function called with each `Worker` that is started. For the rest of this package, whichever module loaded this one first. */
const ON_THREAD = Symbol.for('offloop.onThread')
/** Options of the threads, which worker_threads checks. */
const THREAD_OPTIONS = ['workerData', 'argv', 'execArgv', 'env', 'resourceLimits', 'trackUnmanagedFds']
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
const OWN_OPTIONS = ['onFull', 'context', 'readyTimeout']
const RUN_OPTIONS = ['signal', 'timeout', 'queueTimeout', 'priority', 'key', 'retries', 'onProgress']
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

/** With so many in flight, submits are collected: the workers have enough to do until they come. */
const COLLECT_FROM = 64
const COLLECT = 64
const COLLECT_BYTES = 256 * 1024
const WORDS = 5
const records = new Uint8Array(COLLECT * WORDS * 4)
const words = new Uint32Array(records.buffer)
const refused = []
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

/** Values that travel beside their task: what holds them, by number. */
const waitingBeside = new Map()
let lastBeside = 0
/** Results that came beside theirs, and calls that wait for such a one, by the worker and its number. */
const besides = new Map()

function open(pool, extra) {
  const slot = free.length > 0 ? free.pop() : resolves.length
  grabbing = slot
  const promise = new Promise(grab)
  pools[slot] = pool
  extras[slot] = extra
  return promise
}

function release(slot) {
  const pool = pools[slot]
  const extra = extras[slot]
  resolves[slot] = rejects[slot] = pools[slot] = undefined
  extras[slot] = null
  free.push(slot)
  if (extra !== null) {
    if (extra.submitted) native.workersForget(slot)
    if (extra.signal) unlisten(extra.signal, extra.onAbort)
    if (extra.beside !== 0) dropBeside(extra.beside)
  }
  pool.inFlight--
  if (pool.pressed && pool.inFlight * 2 <= pool.maxQueue) {
    pool.pressed = false
    pool.emit('drain')
  }
}

/** Writes the value of a call behind what was collected; returns where it ends, or false when it has to travel beside it. */
function writeValue(value, at, flags) {
  try {
    return encode(value, at, (flags & SPREAD) !== 0)
  } catch (error) {
    // A getter of the user, or a proxy that was revoked: the runtime's clone would have thrown it, too.
    throw unserializable('argument', value, error)
  }
}

/** A task without options: the hot path. */
function submitPlain(pool, number, flags, value) {
  if (collectedPool !== pool) flush()
  let last
  try {
    const list = movedIn(value)
    if (list !== null) return submit(pool, number, flags, value, { transferList: list })
    last = writeValue(value, collectedBytes, flags)
    if (last === false || takeMoving() !== null) return submit(pool, number, flags, value, {})
  } catch (error) {
    return Promise.reject(error)
  }
  const slot = free.length > 0 ? free[free.length - 1] : resolves.length
  const promise = open(pool, null)
  pool.inFlight++
  begin()
  if (collected === 0) {
    collectedPool = pool
    if (inFlight() > COLLECT_FROM) resolved.then(flush)
  }
  const at = collected * WORDS
  words[at] = number
  words[at + 1] = slot
  words[at + 2] = flags
  words[at + 3] = collectedBytes
  words[at + 4] = last - collectedBytes
  collectedBytes = last
  if (++collected === COLLECT || collectedBytes > COLLECT_BYTES || inFlight() <= COLLECT_FROM) flush()
  return promise
}

function flush() {
  if (collected === 0) return
  const pool = collectedPool
  const count = collected
  collected = 0
  collectedBytes = 0
  try {
    native.workersSubmitEach(pool.handle, records, written(), count, refused)
  } finally {
    shrink()
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

/** A task with options, or with a value that travels beside it. With `wait` it waits beyond a full queue. */
function submit(pool, number, flags, value, run, wait = pool.wait) {
  return new Promise((resolve, reject) => {
    if (run.signal?.aborted) throw aborted(run.signal.reason)
    flush()
    let beside = 0
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
      beside = keepBeside(run.retries > 0 ? new Kept(value) : new Moved(value, list))
      flags |= FETCH
      bytes = new Uint8Array(Uint32Array.of(beside).buffer)
    } else {
      bytes = written().subarray(0, last)
    }
    const onProgress = run.onProgress && AsyncResource.bind(run.onProgress)
    const extra = { submitted: false, signal: run.signal, onAbort: null, beside, onProgress }
    const slot = free.length > 0 ? free[free.length - 1] : resolves.length
    open(pool, extra).then(resolve, reject)
    pool.inFlight++
    begin()
    try {
      // Code of the signal, which may throw.
      if (run.signal) {
        extra.onAbort = () => native.workersCancel(slot)
        listen(run.signal, extra.onAbort)
      }
      if (wait && pool.inFlight > pool.maxQueue) pool.press()
      const { priority, timeout, queueTimeout, key, retries, worker } = run
      const handles = buffers?.map(beginMove)
      native.workersSubmit(pool.handle, number, slot, flags, bytes, priority, timeout, queueTimeout, key, wait, retries, worker, handles)
      buffers?.forEach(endMove)
      extra.submitted = true
    } catch (error) {
      rejects[slot](error)
      release(slot)
      end()
      if (error.code === 'ERR_OFFLOOP_FULL') pool.press()
    } finally {
      shrink()
    }
  })
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

/** A value that only a message can carry, for one run: in a port, with what it moves. */
class Moved {
  #port
  constructor(value, list) {
    const { port1, port2 } = new MessageChannel()
    try {
      port1.postMessage(value, list ?? [])
    } catch (error) {
      port1.close()
      throw unserializable('argument', value, error)
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
    return new Moved(this.#value, null).take()
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
      rejects[slot](error)
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
  resolves[slot](came.value)
  release(slot)
  return true
}

/** A result that travelled beside its task. */
function cameBeside(key, value) {
  const waiting = besides.get(key)
  if (waiting === undefined) {
    besides.set(key, { value })
    return
  }
  besides.delete(key)
  resolves[waiting.slot](value)
  release(waiting.slot)
  end()
}

/** One thread. */
class Thread {
  ready = false
  leaving = false
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
        this.pool.emit('workerReady', { threadId: this.threadId })
        break
      case 'fetch': {
        // Settled meanwhile: nobody waits for it.
        const port = waitingBeside.get(message.value)?.take() ?? null
        this.port.postMessage({ kind: 'fetched', index: message.index, port }, port === null ? [] : [port])
        break
      }
      case 'result':
        cameBeside(`${this.id}:${message.number}`, message.value)
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
class Shared {
  inFlight = 0
  pressed = false
  closed = null
  threads = new Map()
  failures = 0
  degraded = false
  startError = null
  onThreadEnded = null
  onThread = null
  views = new Set()
  exports = new Map()
  /** Numbers of functions that were sent as their source. */
  inlines = new WeakMap()
  constructor(url, poolOptions, threadOptions, { onFull, context, readyTimeout }) {
    this.url = url
    this.threadOptions = threadOptions
    this.context = context
    this.readyTimeout = readyTimeout
    this.wait = onFull === 'wait'
    this.maxQueue = poolOptions.maxQueue ?? 65_536
    this.concurrency = poolOptions.concurrency ?? 1
    this.idleTimeout = Math.min(poolOptions.idleTimeout ?? 30_000, MAX_TIMER)
    this.cancelGrace = poolOptions.cancelGrace ?? 1000
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

  number(name) {
    let number = this.exports.get(name)
    if (number === undefined) {
      if (typeof name !== 'string') throw fail('Invalid', 'name of an export is not text', { got: typeName(name) })
      // A name may come from anywhere, a source may not.
      if (name.startsWith(INLINE)) throw fail('Invalid', 'name of an export begins with NUL')
      number = native.workersExport(this.handle, name)
      this.exports.set(name, number)
    }
    return number
  }

  /** The number of a function that is sent as its source. */
  inline(fn) {
    let number = this.inlines.get(fn)
    if (number === undefined) {
      number = native.workersExport(this.handle, INLINE + sourceOf(fn))
      this.inlines.set(fn, number)
    }
    return number
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

/** Where a worker file is, as a URL. A path is taken from the working directory. */
function urlOf(filename) {
  if (filename instanceof URL) filename = filename.href
  if (typeof filename !== 'string' || filename === '') throw fail('Invalid', 'filename is no path and no URL', { got: typeName(filename) })
  if (/^(data|node|https?):/.test(filename)) return filename
  let file
  try {
    file = filename.startsWith('file:') ? fileURLToPath(filename) : path.resolve(filename)
  } catch (error) {
    const invalid = fail('Invalid', 'filename is no path and no URL', { filename })
    invalid.cause = error
    throw invalid
  }
  if (!fs.existsSync(file)) throw fail('NotFound', 'worker file is not there', { filename: file })
  return pathToFileURL(file).href
}

function pick(options, names) {
  const picked = {}
  for (const name of names) if (options[name] !== undefined && options[name] !== null) picked[name] = options[name]
  return picked
}

/** A signal for several calls that follows the user's one, and ends them all with `release`. */
function together(signal) {
  const all = new AbortController()
  const onAbort = () => all.abort(signal.reason)
  if (signal?.aborted) onAbort()
  else if (signal) listen(signal, onAbort)
  return {
    signal: all.signal,
    release() {
      if (signal) unlisten(signal, onAbort)
      if (!all.signal.aborted) all.abort()
    },
  }
}

function checkRun(shared, { priority, timeout, queueTimeout, key, retries }) {
  try {
    native.workersCheck(shared.handle, priority, timeout, queueTimeout, key, retries)
  } catch (error) {
    // A view of a closed pool is no error; its calls are.
    if (error.code !== 'ERR_OFFLOOP_CLOSED') throw error
  }
}

class WorkerPool extends EventEmitter {
  #shared
  #defaults
  #exports = null

  constructor(filename, options = {}, defaults = undefined) {
    super()
    if (filename === MADE_HERE) {
      this.#shared = options
      this.#defaults = defaults
    } else {
      const { run, rest } = runOptions(options, false, RUN_OPTIONS)
      const known = [...POOL_OPTIONS, ...OWN_OPTIONS, ...THREAD_OPTIONS, ...RUN_OPTIONS]
      const unknown = Object.keys(rest).find((name) => !known.includes(name))
      if (unknown !== undefined) throw fail('Invalid', 'unknown option', { option: unknown, known: known.join(' ') })
      const { onFull = 'reject', context, readyTimeout = READY_TIMEOUT } = rest
      if (onFull !== 'reject' && onFull !== 'wait') {
        throw fail('Invalid', 'option is not one of its words', { option: 'onFull', value: String(onFull), want: 'reject wait' })
      }
      if (!(typeof readyTimeout === 'number' && readyTimeout > 0)) {
        throw fail('Invalid', 'option is out of range', { option: 'readyTimeout', value: String(readyTimeout), min: 'above 0' })
      }
      const url = urlOf(filename)
      // They are cloned for each thread: better an error here than from each of them.
      for (const name of ['context', 'workerData']) {
        try {
          structuredClone(rest[name])
        } catch (error) {
          throw unserializable(name, rest[name], error)
        }
      }
      this.#shared = new Shared(url, pick(rest, POOL_OPTIONS), pick(rest, THREAD_OPTIONS), { onFull, context, readyTimeout })
      checkRun(this.#shared, run)
      this.#defaults = Object.keys(run).length > 0 ? run : null
    }
    this.#shared.views.add(new WeakRef(this))
  }

  run(task, options) {
    if (options === undefined && this.#defaults === null && !this.#shared.wait)
      return submitPlain(this.#shared, this.#shared.number('default'), 0, task)
    return this.#call('default', 0, task, options)
  }

  #call(name, flags, value, options) {
    const shared = this.#shared
    let run = this.#defaults ?? {}
    try {
      if (options !== undefined && options !== null) {
        const { name: given, transferList, ...others } = checkOptions(options)
        if (given !== undefined && given !== null) name = given
        run = { ...run, ...runOptions(others, true, RUN_OPTIONS, 'name transferList').run }
        if (transferList !== undefined && transferList !== null) {
          if (!Array.isArray(transferList)) {
            throw fail('Invalid', 'option has the wrong type', { option: 'transferList', want: 'array', got: typeName(transferList) })
          }
          run.transferList = transferList
        }
      }
      const number = shared.number(name)
      if (!shared.wait && Object.keys(run).length === 0) return submitPlain(shared, number, flags, value)
      return submit(shared, number, flags, value, run)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  runMany(tasks, options) {
    const { run, number } = this.#many(options, [])
    if (run === null) return Promise.reject(number)
    if (!Array.isArray(tasks)) return Promise.reject(fail('Invalid', 'tasks are not an array', { got: typeName(tasks) }))
    if (run.signal?.aborted) return Promise.reject(aborted(run.signal.reason))
    const { signal, release } = together(run.signal)
    const calls = Array.from(tasks, (task, index) =>
      submit(this.#shared, number, 0, task, { ...run, signal }).catch((error) => {
        if (error !== null && typeof error === 'object' && Object.isExtensible(error)) error.index ??= index
        throw error
      }),
    )
    return Promise.all(calls).finally(release)
  }

  broadcast(task, options) {
    const { run, number } = this.#many(options, [])
    if (run === null) return Promise.reject(number)
    if (run.key !== undefined)
      return Promise.reject(fail('Invalid', 'calls of every worker have no key', { option: 'key', value: run.key }))
    flush()
    // Few calls: none of them is refused while others are taken.
    const call = (worker) => submit(this.#shared, number, 0, task, { ...run, worker }, true)
    return Promise.all(native.workersLive(this.#shared.handle).map(call))
  }

  call(fn, ...args) {
    const shared = this.#shared
    try {
      const number = shared.inline(fn)
      if (this.#defaults === null && !shared.wait) return submitPlain(shared, number, SPREAD, args)
      return submit(shared, number, SPREAD, args, this.#defaults ?? {})
    } catch (error) {
      return Promise.reject(error)
    }
  }

  stream(task, options) {
    const { run, number, rest } = this.#many(options, ['window', 'retries'])
    if (run === null) throw number
    const { window = stream.WINDOW, retries = 0 } = rest
    if (!(Number.isInteger(window) && window >= 1)) {
      throw fail('Invalid', 'option is out of range', { option: 'window', value: String(window), min: 1 })
    }
    // Those of the pool are meant for other calls.
    if (retries !== 0)
      throw fail('Invalid', 'a stream cannot be run again: some of it was taken', { option: 'retries', value: String(retries) })
    const start = async (channel, ports) => {
      const message = { ...channel, task: stream.wrap(task) }
      return submit(this.#shared, number, STREAM, message, { ...run, retries: 0, transferList: [...ports, ...(movedIn(task) ?? [])] })
    }
    return stream.reading(start, window)
  }

  map(items, options) {
    const { run, number, rest } = this.#many(options, ['concurrency', 'ordered'])
    if (run === null) throw number
    const { concurrency = WINDOW, ordered = true } = rest
    if (typeof items?.[Symbol.asyncIterator] !== 'function' && typeof items?.[Symbol.iterator] !== 'function') {
      throw fail('Invalid', 'items are not iterable', { got: typeName(items) })
    }
    if (!(Number.isInteger(concurrency) && concurrency >= 1)) {
      throw fail('Invalid', 'option is out of range', { option: 'concurrency', value: String(concurrency), min: 1 })
    }
    if (typeof ordered !== 'boolean') {
      throw fail('Invalid', 'option has the wrong type', { option: 'ordered', want: 'boolean', got: typeName(ordered) })
    }
    const { signal, release } = together(run.signal)
    const call = (item) => submit(this.#shared, number, 0, item, { ...run, signal }, true)
    return mapping(call, items, concurrency, ordered, release)
  }

  /** Options of several calls: `run` of each, the `number` of their export, and those with other names; an error as `number`, with `run` null. */
  #many(options, names) {
    try {
      const { name = 'default', ...others } = checkOptions(options ?? {})
      const rest = {}
      for (const other of names) {
        if (others[other] !== undefined && others[other] !== null) rest[other] = others[other]
        delete others[other]
      }
      const { run } = runOptions(others, true, RUN_OPTIONS, ['name', ...names].join(' '))
      checkRun(this.#shared, run)
      return { run: { ...this.#defaults, ...run }, number: this.#shared.number(name ?? 'default'), rest }
    } catch (error) {
      return { run: null, number: error, rest: null }
    }
  }

  get exports() {
    this.#exports ??= madeWhenAsked((name) => this.#makeExport(name))
    return this.#exports
  }

  #makeExport(name) {
    const shared = this.#shared
    const number = shared.number(name)
    if (this.#defaults !== null || shared.wait) return (...args) => this.#call(name, SPREAD, args, undefined)
    return (...args) => submitPlain(shared, number, SPREAD, args)
  }

  options(options) {
    const { run } = runOptions(options, true, RUN_OPTIONS)
    checkRun(this.#shared, run)
    // Of the caller's own class, without running its constructor.
    return Reflect.construct(WorkerPool, [MADE_HERE, this.#shared, { ...this.#defaults, ...run }], this.constructor)
  }

  resize(options) {
    resize(this.#shared.handle, options)
  }

  get stats() {
    flush()
    return native.poolStats(this.#shared.handle)
  }

  close(options = {}) {
    try {
      const grace = closeGrace(options)
      flush()
      return this.#shared.close(grace)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  [Symbol.asyncDispose]() {
    return this.close()
  }

  static [ON_THREAD](pool, call) {
    pool.#shared.onThread = call
  }
}

module.exports = { WorkerPool, urlOf }

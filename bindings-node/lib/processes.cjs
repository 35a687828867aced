'use strict'
// ProcessPool: functions in worker processes. The core keeps the processes, queues, schedules, times and cancels
// (core/src/pool/process.rs); this file turns calls into frames and settles promises. lib/worker-main.cjs is the other side.

const native = require('./native.cjs')
const { OffloopError, fail, signalName, typeName } = require('./error.cjs')
const { whenClosed, begin, end, newNote, onNote, offNote, abortOf, report, onProcess } = require('./completion.cjs')
const { checkBegin, checkReadyTimeout } = require('./options.cjs')
const { resolves, rejects, extras, release, collectAt, collect, flush, submitOne } = require('./submits.cjs')
const { Calls, SharedCalls, sharedOf, poolOptions, pick } = require('./calls.cjs')
const { TransferBuffer, wrapBuffer } = require('./buffer.cjs')
const { memoryOf, detach } = require('./move.cjs')
const { unreadable } = require('./codec.cjs')
const { sourceOf } = require('./inline.cjs')
const { reading } = require('./frames.cjs')
const { Writer, views, moved, read, readParts, NODE, FAILED, HEAD } = require('./frame.cjs')
const { commandOf, checkWorker } = require('./launch.cjs')

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
const OWN_OPTIONS = ['onFull', 'context', 'trace']
/** Options of the processes. */
const PROCESS_OPTIONS = ['workerData', 'argv', 'execArgv', 'env', 'python']

// Flags of a frame: the value is a list of arguments; the name is the source of a function; the name is that of a generator, behind the window of its
// stream; the name is behind the URL of its file. The same numbers as in lib/worker-main.cjs.
const SPREAD = 1
const SOURCE = 2
const STREAM = 4
const FILE = 8

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

const writer = new Writer()

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
    rejects[slot](unreadable('result', error))
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

const notForMany = () => fail('Invalid', 'what is moved cannot be given to several workers')

/** A function that is sent as its source. */
class Inline {
  constructor(source, name) {
    this.source = source
    this.name = name
  }
}

/** A function of a file that the call names. */
class InFile {
  constructor(url, name) {
    this.url = url
    this.name = name
  }
}

/** What a pool and its views share. */
class Shared extends SharedCalls {
  onStopped = null
  inlines = new WeakMap()
  /** `url` is that of the file, undefined where workers are in another language. */
  constructor(command, env, url, setup, poolOptions, { onFull, trace }) {
    super(poolOptions, onFull, trace)
    this.url = url
    this.isCommon = url === undefined
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

  target(name, url = this.url) {
    if (typeof name !== 'string') throw fail('Invalid', 'name of an export is not text', { got: typeName(name) })
    if (url === this.url) return name
    if (this.isCommon) throw fail('Unsupported', 'a worker in another language loads no other file', { option: 'filename' })
    return new InFile(url, name)
  }

  inline(fn) {
    let known = this.inlines.get(fn)
    if (known === undefined) {
      const source = sourceOf(fn)
      if (this.isCommon) throw fail('Unsupported', 'a function in JavaScript cannot be sent to a worker in another language')
      known = new Inline(source, fn.name || 'anonymous')
      this.inlines.set(fn, known)
    }
    return known
  }

  /** Writes a frame at `at`; returns where it ends. */
  #write(at, target, spread, value, window = 0) {
    const flags = spread ? SPREAD : 0
    if (window > 0) return writer.write(at, NODE, STREAM, [window, target], value, 'argument')
    if (target instanceof InFile) return writer.write(at, NODE, flags | FILE, [target.url, target.name], value, 'argument', spread)
    if (typeof target === 'string') return writer.write(at, NODE, flags, target, value, 'argument', spread)
    return writer.write(at, NODE, flags | SOURCE, target.source, value, 'argument', spread)
  }

  nameOf(target) {
    return typeof target === 'string' ? target : target.name
  }

  /** A task without options: the hot path. */
  submitPlain(target, spread, value) {
    if (this.isCommon || this.last !== null) return this.submit(target, spread, value, {})
    const at = collectAt(this)
    let last
    try {
      const memory = memoryOf(value)
      if (memory !== null) return this.submit(target, spread, value, { transferList: memory })
      last = this.#write(at, target, spread, value)
    } catch (error) {
      return Promise.reject(error)
    }
    if (writer.parts !== null) return this.#submitFrame(target, at, last, {}, false, null)
    return collect(this, 0, 0, last)
  }

  submitEach(records, count, refused) {
    try {
      native.processSubmitEach(this.handle, records, writer.memory, count, refused)
    } finally {
      writer.shrink()
    }
  }

  /** The frame from `at` to `last`, with its parts; `memory` is given away. */
  #submitFrame(target, at, last, run, wait, memory, stream) {
    const frame = writer.memory.subarray(at, last)
    const parts = writer.takeParts()
    // In their order.
    flush()
    const submitted = submitOne(this, target, run, wait, (slot) => {
      const { priority, timeout, queueTimeout, key, retries, worker } = run
      const traced = this.tracer !== null
      native.processSubmit(
        this.handle,
        slot,
        frame,
        views(parts),
        priority,
        timeout,
        queueTimeout,
        key,
        wait,
        retries,
        worker,
        stream,
        traced,
      )
      moved(parts)
      detach(memory)
    })
    writer.shrink()
    return submitted
  }

  /** A task with options. With `wait` it waits beyond a full queue. */
  submit(target, spread, value, run, wait = this.wait) {
    return this.#submit(target, spread, value, run, wait, undefined, 0)
  }

  #submit(target, spread, value, run, wait, stream, window) {
    try {
      checkBegin(run)
      flush()
      const memory = memoryOf(value, run.transferList)
      const isGiven = memory !== null && memory.length > 0
      if (!this.isCommon) {
        const last = this.#write(0, target, spread, value, window)
        if (run.worker !== undefined && (isGiven || writer.parts?.some((part) => part instanceof TransferBuffer))) throw notForMany()
        return this.#submitFrame(target, 0, last, run, wait, memory, stream)
      }
      if (run.worker !== undefined && isGiven) throw notForMany()
      const args = spread ? value : value === undefined ? [] : [value]
      const { priority, timeout, queueTimeout, key, retries, worker } = run
      return submitOne(this, target, run, wait, (slot) => {
        native.processCall(
          this.handle,
          slot,
          target,
          args,
          priority,
          timeout,
          queueTimeout,
          key,
          wait,
          retries,
          worker,
          stream,
          this.tracer !== null,
        )
        detach(memory)
      })
    } catch (error) {
      return Promise.reject(error)
    }
  }

  stream(target, task, run, window, leaving) {
    return reading((stream) => this.#submit(target, false, task, { ...run, leaving }, this.wait, stream, window), leaving)
  }

  close(grace) {
    if (this.last !== null) return this.closed
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
        // Its files and memory do not wait for the collector. What was collected is refused before.
        flush()
        this.last = native.poolStats(this.handle)
        native.processRelease(this.handle)
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
  constructor(worker, options = {}) {
    const { run, rest } = poolOptions(options, [...POOL_OPTIONS, ...OWN_OPTIONS, ...PROCESS_OPTIONS])
    const { onFull, trace, context, workerData, readyTimeout } = rest
    checkReadyTimeout(readyTimeout)
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
    const shared = new Shared(command, env, kind.node, setup, pick(rest, POOL_OPTIONS), { onFull, trace })
    shared.check(run)
    super(shared, run)
  }

  alloc(byteLength) {
    return wrapBuffer(native.processAlloc(sharedOf(this).handle, byteLength))
  }
}

module.exports = { ProcessPool }

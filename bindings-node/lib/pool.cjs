'use strict'
// ThreadPool: turns a call into native submits, and follows the host's protocols (promises, AbortSignal, asyncDispose).

const path = require('node:path')
const { AsyncResource } = require('node:async_hooks')
const { isUint8Array } = require('node:util').types
const { setTimeout, clearTimeout, now, MAX_TIMER } = require('./clock.cjs')
const native = require('./native.cjs')
const { fail, aborted, typeName, checkObject } = require('./error.cjs')
const { runOptions, checkBegin, closeGrace, resize } = require('./options.cjs')
const { TransferBuffer, beginMove, endMove, takeAway, giveBack, viewOf, lengthOf, notBytes } = require('./buffer.cjs')
const { runPlain, flush, open, close, whenClosed, listen, unlisten, abortOf } = require('./completion.cjs')
const { tracerOf } = require('./trace.cjs')
const { SLICE, copyInSlices, copyNow, isCopying } = require('./copy.cjs')

const MADE_HERE = Symbol('made here')

const opNumbers = new Map()
/** The number of an op in this environment; refused when the pool of `handle` does not know it. */
function opNumber(handle, name) {
  let number = opNumbers.get(name)
  if (number === undefined) {
    if (typeof name !== 'string') throw fail('Invalid', 'op name is not text', { got: typeName(name) })
    number = native.poolIntern(handle, name)
    opNumbers.set(name, number)
  }
  return number
}

/** What a pool and its views share. */
class Shared {
  closed = null
  /** New tasks are refused; the pool itself is closed once the copies have ended. */
  closing = false
  /** Jobs of copyInSlices: tasks that the pool does not know yet. */
  copies = new Set()
  onCopied = null
  constructor(handle, wait, ours, tracer) {
    this.handle = handle
    this.wait = wait
    this.ours = ours
    this.tracer = tracer
    /** Calls without options have nothing beside their promise. */
    this.plain = !wait && tracer === null
  }

  copyEnded(job) {
    this.copies.delete(job)
    if (this.copies.size > 0 || this.onCopied === null) return
    const { onCopied } = this
    this.onCopied = null
    onCopied()
  }
}

class ThreadPool {
  #shared
  #defaults

  constructor(options = {}, shared = undefined, defaults = undefined) {
    if (options === MADE_HERE) {
      this.#shared = shared
      this.#defaults = defaults
      return
    }
    const { run, rest } = runOptions(options, false)
    const { onFull = 'reject', trace, ...poolOptions } = rest
    if (onFull !== 'reject' && onFull !== 'wait') {
      throw fail('Invalid', 'option is not one of its words', { option: 'onFull', value: String(onFull), want: 'reject wait' })
    }
    const tracer = tracerOf(trace, poolOptions.name)
    this.#shared = new Shared(native.poolNew(poolOptions), onFull === 'wait', true, tracer)
    checkRun(this.#shared, run)
    this.#defaults = Object.keys(run).length > 0 ? run : null
  }

  run(op, input, params, options) {
    if (
      params === undefined &&
      options === undefined &&
      this.#defaults === null &&
      this.#shared.plain &&
      !this.#shared.closing &&
      (input === undefined || (isUint8Array(input) && lengthOf(input) <= SLICE))
    ) {
      const number = opNumbers.get(op)
      if (number !== undefined) return runPlain(this.#shared.handle, number, input)
    }
    return this.#submit(op, [input === undefined ? [] : input], params, options, false)
  }

  runMany(op, inputs, params, options) {
    try {
      if (!Array.isArray(inputs)) throw fail('Invalid', 'inputs are not an array', { got: typeName(inputs) })
    } catch (error) {
      // Also of a revoked proxy.
      return Promise.reject(error)
    }
    return this.#submit(op, inputs, params, options, true)
  }

  #submit(op, inputs, params, options, many) {
    return new Promise((resolve, reject) => {
      const number = opNumber(this.#shared.handle, op)
      let run = this.#defaults ?? {}
      if (options !== undefined && options !== null) run = { ...run, ...runOptions(options, true).run }
      // Params and inputs run code of the user (getters, proxies), so both are read before any buffer begins to move.
      const given = params === undefined || params === null ? undefined : native.poolParams(checkObject(params, 'params'))
      const groups = plainGroups(inputs)
      const { moved, views, bytes } = prepare(groups)
      checkBegin(run)
      const shared = this.#shared
      if (shared.closing) throw fail('Closed', 'the pool is closed')
      if (many && groups.length === 0) {
        native.poolCheckOp(shared.handle, number, given)
        checkRun(shared, run)
        return resolve([])
      }
      const entry = {
        resolve,
        reject,
        count: groups.length,
        many,
        signal: run.signal,
        onProgress: run.onProgress && AsyncResource.bind(run.onProgress),
      }
      const { handle, wait, tracer } = shared
      if (tracer !== null) entry.onOutcome = tracer.each(op, groups.length)
      const submit = (list, moved, queueTimeout = run.queueTimeout) => {
        let next = 0
        const inputs = groups.map((group) => group.map(() => list[next++]))
        let id
        try {
          flush()
          id = open(entry)
          for (const { place, buffer } of moved) inputs[place[0]][place[1]] = beginMove(buffer)
          native.poolSubmitMany(handle, number, id, inputs, given, run.priority, run.timeout, queueTimeout, run.key, wait, tracer !== null)
        } catch (error) {
          if (id !== undefined) close(entry)
          throw error
        }
        for (const { buffer } of moved) endMove(buffer)
      }
      const behind = run.key !== undefined && isCopying(handle, run.key)
      if (bytes <= SLICE && !behind) return submit(views, moved)
      // Before the copy, which reads them too.
      checkRun(shared, run)
      const list = bytes > SLICE ? views : views.map((view) => view && copyNow(view))
      // The call owns its buffers from now on, until the pool has them or the call is refused.
      const taken = []
      const refuse = (error) => {
        for (const [buffer, handle] of taken) giveBack(buffer, handle)
        reject(error)
      }
      try {
        for (const { at, buffer } of moved) {
          list[at] = takeAway(buffer)
          taken.push([buffer, list[at]])
        }
        copyLater(
          shared,
          run,
          list,
          (copied, queueTimeout) => {
            try {
              submit(copied, [], queueTimeout)
              taken.length = 0
            } catch (error) {
              refuse(error)
            }
          },
          refuse,
        )
      } catch (error) {
        refuse(error)
      }
    })
  }

  options(options) {
    const { run } = runOptions(options, true)
    checkRun(this.#shared, run)
    // Of the caller's own class, without running its constructor.
    return Reflect.construct(ThreadPool, [MADE_HERE, this.#shared, { ...this.#defaults, ...run }], this.constructor)
  }

  load(plugin) {
    if (typeof plugin !== 'string') throw fail('Invalid', 'plugin path is not text', { got: typeName(plugin) })
    flush()
    return native.poolLoad(this.#shared.handle, path.resolve(plugin))
  }

  resize(options) {
    resize(this.#shared.handle, options)
  }

  get stats() {
    flush()
    return native.poolStats(this.#shared.handle)
  }

  close(options = {}) {
    const shared = this.#shared
    if (!shared.ours) return Promise.reject(fail('Invalid', 'the default pool belongs to the whole process and is not closed'))
    let grace
    try {
      grace = closeGrace(options)
    } catch (error) {
      return Promise.reject(error)
    }
    const begin = () =>
      new Promise((resolve) => {
        afterCopies(shared, grace, (left) => {
          resolve(whenClosed((note) => native.poolClose(shared.handle, left, note)))
        })
      })
    shared.closing = true
    if (shared.closed === null) shared.closed = begin()
    // The shortest grace counts.
    else if (grace !== Number.POSITIVE_INFINITY) begin()
    return shared.closed
  }

  [Symbol.asyncDispose]() {
    return this.close()
  }
}

/** Checks defaults as a call does: it is a submit of no task. */
function checkRun({ handle }, { priority, timeout, queueTimeout, key }) {
  try {
    native.poolSubmitMany(handle, 0, 0, [], undefined, priority, timeout, queueTimeout, key, true)
  } catch (error) {
    // A view of a closed pool is no error; its calls are.
    if (error.code !== 'ERR_OFFLOOP_CLOSED') throw error
  }
  native.poolForget(0)
}

/** The inputs of each task in arrays of this package's own: what native code reads later is what was checked. */
function plainGroups(inputs) {
  const groups = []
  // By index: Array.from is several times slower.
  for (let i = 0, { length } = inputs; i < length; i++) {
    const input = inputs[i]
    groups.push(Array.isArray(input) ? Array.from(input) : [input])
  }
  return groups
}

/** Flattens the inputs of a call: views to copy, and which buffers are moved to which place. */
function prepare(groups) {
  const moved = []
  const views = []
  let bytes = 0
  groups.forEach((group, i) => {
    group.forEach((input, j) => {
      if (input instanceof TransferBuffer) {
        moved.push({ place: [i, j], at: views.length, buffer: input })
        views.push(null)
        return
      }
      const view = viewOf(input)
      if (view === null) throw notBytes(input)
      bytes += isUint8Array(view) ? lengthOf(view) : view.byteLength
      views.push(view)
    })
  })
  return { moved, views, bytes }
}

/** Copies `views` in slices, then calls `done(list, queueTimeout)` with what is left of that, or `failed(error)`. */
function copyLater(shared, { signal, key, queueTimeout = Number.POSITIVE_INFINITY }, views, done, failed) {
  const job = { pool: shared.handle, key, views, dropped: false }
  const called = now()
  // In the words of the core, which ends those that wait in its queue.
  const late = () => fail('Timeout', 'the task waited too long in the queue', { limit_ms: queueTimeout, waited_ms: now() - called })
  let timer
  const onAbort = () => job.drop(abortOf(signal) ?? aborted())
  const ended = (next) => (value) => {
    if (signal) unlisten(signal, onAbort)
    clearTimeout(timer)
    try {
      next(value)
    } finally {
      shared.copyEnded(job)
    }
  }
  job.done = ended((list) => {
    const left = queueTimeout - (now() - called)
    if (left < 0) failed(late())
    else done(list, left)
  })
  job.failed = ended(failed)
  job.drop = (error) => {
    job.dropped = true
    // What was copied is not kept until its turn.
    job.views = job.list = []
    job.failed(error)
  }
  // Code of the signal, which may throw: nothing is registered yet.
  if (signal) listen(signal, onAbort)
  if (queueTimeout !== Number.POSITIVE_INFINITY) timer = setTimeout(() => job.drop(late()), Math.min(queueTimeout, MAX_TIMER))
  shared.copies.add(job)
  copyInSlices(job)
}

/** Calls `end` with what is left of `grace` once all copies of a pool have become tasks; fails the rest after the grace. */
function afterCopies(shared, grace, end) {
  if (shared.copies.size === 0) return end(grace)
  const started = now()
  const drop = () => {
    for (const job of [...shared.copies]) job.drop(fail('Closed', 'grace of the close ended before the input was copied', { grace }))
  }
  const timer = grace === Number.POSITIVE_INFINITY ? undefined : setTimeout(drop, Math.min(grace, MAX_TIMER))
  const { onCopied } = shared
  shared.onCopied = () => {
    clearTimeout(timer)
    onCopied?.()
    end(Math.max(0, grace - (now() - started)))
  }
}

let shared
/** The pool behind `ops`: one per process, shared by all its threads. */
function defaultPool() {
  shared ??= new ThreadPool(MADE_HERE, new Shared(native.poolDefault(), false, false, null), null)
  return shared
}

module.exports = { ThreadPool, defaultPool }

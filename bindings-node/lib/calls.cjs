'use strict'
// What a pool of workers offers, over whatever runs them. `shared`, which a pool and its views have together, knows what is called:
// `target` of an export's name, `inline` of a function, both with an error for what cannot be called; it submits (`submitPlain`, `submit`),
// checks options (`check`) and closes. `callOptions` are those of `run`, which `checkCall` has seen.

const { EventEmitter } = require('node:events')
const native = require('./native.cjs')
const { fail, typeName, checkOptions } = require('./error.cjs')
const { listen, unlisten } = require('./completion.cjs')
const { flush } = require('./submits.cjs')
const { runOptions, unknownOption, wrongType, RUN_OPTIONS, checkBegin, closeGrace, resize, madeWhenAsked } = require('./options.cjs')
const { mapping, WINDOW } = require('./mapping.cjs')
const { leavable } = require('./leaving.cjs')
const { tracerOf } = require('./trace.cjs')
const { urlOf } = require('./files.cjs')

/** Values that are made ahead of whoever takes them, as long as nothing else is said. */
const STREAM_WINDOW = 16

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

let sharedOf

class Calls extends EventEmitter {
  #shared
  #defaults
  #exports = null

  static {
    sharedOf = (pool) => pool.#shared
  }

  constructor(shared, defaults) {
    super()
    this.#shared = shared
    this.#defaults = Object.keys(defaults).length > 0 ? defaults : null
    shared.views.add(new WeakRef(this))
  }

  run(task, options) {
    const shared = this.#shared
    if (options === undefined && this.#defaults === null && shared.plain) return shared.submitPlain(shared.target('default'), false, task)
    return this.#call('default', false, task, options)
  }

  #call(name, spread, value, options) {
    const shared = this.#shared
    let run = this.#defaults ?? {}
    let file
    try {
      if (options !== undefined && options !== null) {
        const { name: given, filename, ...others } = checkOptions(options)
        if (given !== undefined && given !== null) name = given
        if (filename !== undefined && filename !== null) file = urlOf(filename)
        run = { ...run, ...shared.checkCall(runOptions(others, true, shared.callOptions, 'name filename').run) }
      }
      return this.#submit(shared.target(name, file), spread, value, run)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  #submit(target, spread, value, run) {
    const shared = this.#shared
    if (shared.plain && Object.keys(run).length === 0) return shared.submitPlain(target, spread, value)
    return shared.submit(target, spread, value, run)
  }

  call(fn, ...args) {
    try {
      return this.#submit(this.#shared.inline(fn), true, args, this.#defaults ?? {})
    } catch (error) {
      return Promise.reject(error)
    }
  }

  runMany(tasks, options) {
    const { run, target } = this.#manyNow(options)
    if (run === null) return Promise.reject(target)
    if (!Array.isArray(tasks)) return Promise.reject(fail('Invalid', 'tasks are not an array', { got: typeName(tasks) }))
    const { signal, release } = together(run.signal)
    const calls = Array.from(tasks, (task, index) =>
      this.#shared.submit(target, false, task, { ...run, signal }).catch((error) => {
        if (error !== null && typeof error === 'object' && Object.isExtensible(error)) error.index ??= index
        throw error
      }),
    )
    return Promise.all(calls).finally(release)
  }

  broadcast(task, options) {
    const { run, target } = this.#manyNow(options)
    if (run === null) return Promise.reject(target)
    if (run.key !== undefined)
      return Promise.reject(fail('Invalid', 'calls of every worker have no key', { option: 'key', value: run.key }))
    flush()
    // Few calls: none of them is refused while others are taken.
    const call = (worker) => this.#shared.submit(target, false, task, { ...run, worker }, true)
    return Promise.all(native.poolLive(this.#shared.handle).map(call))
  }

  map(items, options) {
    const { run, target, rest } = this.#many(options, ['concurrency', 'ordered'])
    if (run === null) throw target
    const { concurrency = WINDOW, ordered = true } = rest
    if (typeof items?.[Symbol.asyncIterator] !== 'function' && typeof items?.[Symbol.iterator] !== 'function') {
      throw fail('Invalid', 'items are not iterable', { got: typeName(items) })
    }
    if (!(Number.isInteger(concurrency) && concurrency >= 1)) {
      throw fail('Invalid', 'option is out of range', { option: 'concurrency', value: String(concurrency), min: 1 })
    }
    if (typeof ordered !== 'boolean') {
      throw wrongType('ordered', 'boolean', ordered)
    }
    const { signal, release } = together(run.signal)
    const call = (item) => this.#shared.submit(target, false, item, { ...run, signal }, true)
    return mapping(call, items, concurrency, ordered, release)
  }

  stream(task, options) {
    const { run, target, rest } = this.#many(options, ['window', 'retries'])
    if (run === null) throw target
    const { window = STREAM_WINDOW, retries = 0 } = rest
    if (!(Number.isInteger(window) && window >= 1)) {
      throw fail('Invalid', 'option is out of range', { option: 'window', value: String(window), min: 1 })
    }
    // Those of the pool are meant for other calls.
    if (retries !== 0)
      throw fail('Invalid', 'a stream cannot be run again: some of it was taken', { option: 'retries', value: String(retries) })
    const shared = this.#shared
    return leavable((leaving) => shared.stream(target, task, { ...run, retries: 0 }, window, leaving), shared.cancelGrace)
  }

  /** Options of several calls: `run` of each, the `target` of all, and those with other names; an error as `target`, with `run` null. */
  #many(options, names) {
    try {
      const { name = 'default', ...others } = checkOptions(options ?? {})
      const rest = {}
      for (const other of names) {
        if (others[other] !== undefined && others[other] !== null) rest[other] = others[other]
        delete others[other]
      }
      const { run } = runOptions(others, true, RUN_OPTIONS, ['name', ...names].join(' '))
      this.#shared.check(run)
      return { run: { ...this.#defaults, ...run }, target: this.#shared.target(name ?? 'default'), rest }
    } catch (error) {
      return { run: null, target: error, rest: null }
    }
  }

  /** The same for calls that begin now, also where there are none of them. */
  #manyNow(options) {
    const many = this.#many(options, [])
    try {
      if (many.run === null) return many
      checkBegin(many.run)
      native.poolCheck(this.#shared.handle)
      return many
    } catch (error) {
      return { run: null, target: error, rest: null }
    }
  }

  get exports() {
    this.#exports ??= madeWhenAsked((name) => this.#makeExport(name))
    return this.#exports
  }

  #makeExport(name) {
    const shared = this.#shared
    const target = shared.target(name)
    if (this.#defaults !== null || !shared.plain) return (...args) => this.#call(name, true, args, undefined)
    return (...args) => shared.submitPlain(target, true, args)
  }

  options(options) {
    const { run } = runOptions(options, true, RUN_OPTIONS)
    this.#shared.check(run)
    // Of the caller's own class, without running its constructor.
    return Reflect.construct(Calls, [this.#shared, { ...this.#defaults, ...run }], this.constructor)
  }

  resize(options) {
    resize(this.#shared.handle, options)
  }

  get stats() {
    flush()
    return this.#shared.last ?? native.poolStats(this.#shared.handle)
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
}

/** What `shared` of every pool has. */
class SharedCalls {
  handle = null
  inFlight = 0
  pressed = false
  closed = null
  /** Statistics of a pool that is closed and has let go of everything. */
  last = null
  views = new Set()
  /** `poolOptions` are those that native code has; with `onFull: 'wait'` calls wait beyond a full queue; `trace` is told of each. */
  constructor(poolOptions, onFull = 'reject', trace = undefined) {
    if (onFull !== 'reject' && onFull !== 'wait') {
      throw fail('Invalid', 'option is not one of its words', { option: 'onFull', value: String(onFull), want: 'reject wait' })
    }
    this.wait = onFull === 'wait'
    this.tracer = tracerOf(trace, poolOptions.name)
    /** Calls without options have nothing beside their promise. */
    this.plain = !this.wait && this.tracer === null
    this.cancelGrace = poolOptions.cancelGrace ?? 1000
    this.maxQueue = poolOptions.maxQueue ?? 65_536
  }

  /** Options of `run`. */
  callOptions = [...RUN_OPTIONS, 'transferList']
  checkCall(run) {
    const { transferList } = run
    if (transferList !== undefined && !Array.isArray(transferList)) {
      throw wrongType('transferList', 'array', transferList)
    }
    return run
  }

  check({ priority, timeout, queueTimeout, key, retries }) {
    try {
      native.poolCheck(this.handle, priority, timeout, queueTimeout, key, retries)
    } catch (error) {
      // A view of a closed pool is no error; its calls are.
      if (error.code !== 'ERR_OFFLOOP_CLOSED') throw error
    }
  }

  press() {
    if (this.pressed) return
    this.pressed = true
    this.emit('backpressure')
  }

  /** Listeners run after what is under way here, and throw as those of any emitter that nobody called. Whether there is one. */
  emit(event, ...args) {
    let heard = false
    for (const view of this.views) {
      const emitter = view.deref()
      if (emitter === undefined) this.views.delete(view)
      else if (emitter.listenerCount(event) > 0) {
        heard = true
        queueMicrotask(() => emitter.emit(event, ...args))
      }
    }
    return heard
  }
}

/** The options of a pool, of which `names` are known beside those of its calls: `run` for these, `rest` for the others. */
function poolOptions(options, names) {
  const { run, rest } = runOptions(options, false)
  const unknown = Object.keys(rest).find((name) => !names.includes(name))
  if (unknown !== undefined) throw unknownOption(unknown, [...names, ...RUN_OPTIONS].join(' '))
  return { run, rest }
}

module.exports = { Calls, SharedCalls, sharedOf, poolOptions, pick }

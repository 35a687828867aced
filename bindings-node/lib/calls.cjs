'use strict'
// What a pool of workers offers, over whatever runs them: `shared` submits (`submitPlain`, `submit`), checks (`check`) and closes.

const { EventEmitter } = require('node:events')
const { fail, aborted, typeName, checkOptions } = require('./error.cjs')
const { listen, unlisten } = require('./completion.cjs')
const { runOptions, closeGrace, resize, madeWhenAsked } = require('./options.cjs')
const { mapping, WINDOW } = require('./mapping.cjs')

const RUN_OPTIONS = ['signal', 'timeout', 'queueTimeout', 'priority', 'key', 'retries', 'onProgress']

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

/** `open(pool, ...)` of a subclass gives the state that a pool and its views share, and the options of all their calls, or null. */
class Calls extends EventEmitter {
  #shared
  #defaults
  #exports = null

  constructor(shared, defaults) {
    super()
    this.#shared = shared
    this.#defaults = defaults !== null && Object.keys(defaults).length > 0 ? defaults : null
    shared.views.add(new WeakRef(this))
  }

  run(task, options) {
    if (options === undefined && this.#defaults === null && !this.#shared.wait) return this.#shared.submitPlain('default', false, task)
    return this.#call('default', false, task, options)
  }

  #call(name, spread, value, options) {
    const shared = this.#shared
    let run = this.#defaults ?? {}
    try {
      if (options !== undefined && options !== null) {
        const { name: given, ...others } = checkOptions(options)
        if (given !== undefined && given !== null) name = given
        run = { ...run, ...runOptions(others, true, RUN_OPTIONS, 'name').run }
      }
      checkName(name)
      if (!shared.wait && Object.keys(run).length === 0) return shared.submitPlain(name, spread, value)
      return shared.submit(name, spread, value, run)
    } catch (error) {
      return Promise.reject(error)
    }
  }

  runMany(tasks, options) {
    const { run, name } = this.#many(options, [])
    if (run === null) return Promise.reject(name)
    if (!Array.isArray(tasks)) return Promise.reject(fail('Invalid', 'tasks are not an array', { got: typeName(tasks) }))
    if (run.signal?.aborted) return Promise.reject(aborted(run.signal.reason))
    const { signal, release } = together(run.signal)
    const calls = Array.from(tasks, (task, index) =>
      this.#shared.submit(name, false, task, { ...run, signal }).catch((error) => {
        if (error !== null && typeof error === 'object' && Object.isExtensible(error)) error.index ??= index
        throw error
      }),
    )
    return Promise.all(calls).finally(release)
  }

  map(items, options) {
    const { run, name, rest } = this.#many(options, ['concurrency', 'ordered'])
    if (run === null) throw name
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
    const call = (item) => this.#shared.submit(name, false, item, { ...run, signal }, true)
    return mapping(call, items, concurrency, ordered, release)
  }

  /** Options of several calls: `run` of each, the `name` of their export, and those with other names; an error as `name`, with `run` null. */
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
      return { run: { ...this.#defaults, ...run }, name: checkName(name ?? 'default'), rest }
    } catch (error) {
      return { run: null, name: error, rest: null }
    }
  }

  get exports() {
    this.#exports ??= madeWhenAsked((name) => this.#makeExport(name))
    return this.#exports
  }

  #makeExport(name) {
    const shared = this.#shared
    if (this.#defaults !== null || shared.wait) return (...args) => this.#call(name, true, args, undefined)
    return (...args) => shared.submitPlain(name, true, args)
  }

  options(options) {
    const { run } = runOptions(options, true, RUN_OPTIONS)
    this.#shared.check(run)
    return this.view(this.#shared, { ...this.#defaults, ...run })
  }

  resize(options) {
    resize(this.#shared.handle, options)
  }

  get stats() {
    return this.#shared.stats()
  }

  close(options = {}) {
    try {
      return this.#shared.close(closeGrace(options))
    } catch (error) {
      return Promise.reject(error)
    }
  }

  [Symbol.asyncDispose]() {
    return this.close()
  }
}

function checkName(name) {
  if (typeof name !== 'string') throw fail('Invalid', 'name of an export is not text', { got: typeName(name) })
  return name
}

module.exports = { Calls, RUN_OPTIONS, pick }

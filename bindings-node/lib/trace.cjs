'use strict'
// A pool's `trace` hook. The core keeps the times of tasks that are submitted as traced; without a hook none is, and nothing here runs.

const { AsyncResource } = require('node:async_hooks')
const { fail, typeName } = require('./error.cjs')
const { promiseOf, whenSettled } = require('./settle.cjs')
const { textOf } = require('./functions.cjs')

class Tracer {
  #hook
  #pool
  #last = 0
  constructor(hook, pool) {
    this.#hook = hook
    this.#pool = pool
  }

  /**
   * A promise for the outcome of a call, of which the hook is told in the async context of this call: that of `then`. By then `extra.trace` is what
   * native code kept of the task, or null when the call was refused.
   */
  follow(promise, name, extra) {
    const id = ++this.#last
    return promise.then(
      (value) => {
        this.#tell(id, name, extra.trace)
        return value
      },
      (error) => {
        this.#tell(id, name, extra.trace, { error })
        throw error
      },
    )
  }

  /** The same for `count` tasks of one call: a function that is given the place of one, what native code kept of it, and what failed. */
  each(name, count) {
    const first = this.#last + 1
    this.#last += count
    return AsyncResource.bind((index, trace, failed) => this.#tell(first + index, name, trace, failed))
  }

  /** Never throws: it is called between the results of tasks. */
  #tell(id, name, trace, failed) {
    if (trace === null) return
    let [submitted, queueTime, runTime, outcome, worker] = trace
    // The worker had a result, and the caller could not read it.
    if (failed !== undefined && outcome === 'completed') outcome = 'failed'
    try {
      const answer = this.#hook({ id, pool: this.#pool, name, submitted, queueTime, runTime, outcome, worker, ...failed })
      const promise = promiseOf(answer)
      if (promise !== null) whenSettled(promise, undefined, (error) => this.#warn(error))
    } catch (error) {
      this.#warn(error)
    }
  }

  #warn(error) {
    const text = textOf(error)
    process.emitWarning(`the trace hook of pool '${this.#pool}' failed: ${text.split('\n', 1)[0]}`, {
      type: 'OffloopWarning',
      code: 'OFFLOOP_TRACE',
      detail: text,
    })
  }
}

/** The tracer of a pool that is made with option `trace`; null without one. */
function tracerOf(trace, pool = 'pool') {
  if (trace === undefined || trace === null) return null
  if (typeof trace !== 'function')
    throw fail('Invalid', 'option has the wrong type', { option: 'trace', want: 'function', got: typeName(trace) })
  return new Tracer(trace, pool)
}

module.exports = { tracerOf }

'use strict'
// One pool for all workers of a Cluster: its process owns it (`pool` of the options), workers submit to it (`currentWorker().pool`). Each has a channel for that beside the one for
// messages, so neither waits for the other.

const { Channel } = require('./channel.cjs')
const { aborted, fail } = require('./error.cjs')
const { runOptions, wrongType, checkBegin, madeWhenAsked, RUN_OPTIONS } = require('./options.cjs')
const { Calls } = require('./calls.cjs')
const { listen, unlisten } = require('./completion.cjs')

/** Of a worker's environment: where its cluster's pool is. */
const VARIABLE = 'OFFLOOP_POOL'
/** Of a call; what goes on while it runs is told to who owns the pool. */
const OPTIONS = RUN_OPTIONS.filter((name) => name !== 'onProgress')

const FULL = fail('Full', '').code

let served = 0

// ---- the process that owns the pool ----

function checkPool(pool, uid) {
  if (pool === undefined) return
  if (!(pool instanceof Calls)) throw wrongType('pool', 'WorkerPool or ProcessPool', pool)
  const own = process.getuid()
  if (uid !== undefined && uid !== own)
    throw fail('Invalid', 'workers of another user cannot reach the pool', { option: 'pool', uid, own_uid: own })
}

/** Serves `pool` until `close()`; workers find it at `path`. */
const serve = (pool) => Channel.listen(`pool-${process.pid}-${++served}`, (channel) => answer(pool, channel)).unref()

/** A worker's calls. Those that it has given up, or leaves behind, are cancelled. */
function answer(pool, channel) {
  const running = new Map()
  channel.unref()
  channel.on('message', (call) => running.get(call)?.abort())
  channel.on('close', () => {
    for (const over of running.values()) over.abort()
  })
  channel.on('request', async (request) => {
    let call
    try {
      const { name, args, spread, options, kwargs } = request.value
      call = request.value.call
      if (kwargs !== undefined) throw fail('Invalid', 'a function of this pool has no arguments by name', { task: name })
      const over = new AbortController()
      running.set(call, over)
      const given = { ...options, signal: over.signal }
      request.reply(await (spread ? pool.options(given).exports[name](...args) : pool.run(args, { ...given, name })))
    } catch (error) {
      refuse(request, error)
    } finally {
      running.delete(call)
    }
  })
}

/** Tells an error, or why that cannot travel; nobody waits any more where neither does. */
function refuse(request, error) {
  try {
    request.fail(error)
  } catch (why) {
    try {
      request.fail(why)
    } catch {}
  }
}

// ---- a worker ----

/** The pool of the cluster of this process, as far as workers use it; null where there is none. */
class ClusterPool {
  #ask
  #defaults
  #exports = null

  static at(path) {
    return new ClusterPool(asking(path), {})
  }

  constructor(ask, defaults) {
    this.#ask = ask
    this.#defaults = defaults
  }

  /** Runs the default export, or that of `name`, with `task`. */
  async run(task, options) {
    const { run, rest } = runOptions(options ?? {}, false, OPTIONS)
    const { name = 'default', ...unknown } = rest
    runOptions(unknown, true, OPTIONS, 'name')
    return this.#ask({ name, args: task, spread: false }, { ...this.#defaults, ...run })
  }

  /** `await pool.exports.thumbnail(image, 200)`. */
  get exports() {
    this.#exports ??= madeWhenAsked(
      (name) =>
        async (...args) =>
          this.#ask({ name, args, spread: true }, this.#defaults),
    )
    return this.#exports
  }

  /** The same pool, with these options for each call. */
  options(options) {
    return new ClusterPool(this.#ask, { ...this.#defaults, ...runOptions(options, true, OPTIONS).run })
  }
}

function asking(path) {
  let opening = null
  let last = 0
  /** Calls that nobody waits for, of which the pool was not told for want of room. */
  const untold = []
  const giveUp = (channel, call) => {
    if (channel.closed) return
    try {
      channel.send(call)
    } catch (error) {
      if (error.code !== FULL) throw error
      if (untold.push(call) > 1) return
      channel.once('drain', () => {
        for (const call of untold.splice(0)) giveUp(channel, call)
      })
    }
  }
  return async (what, { signal, ...options }) => {
    checkBegin({ signal, ...options })
    opening ??= Channel.connect(path)
    let channel
    try {
      channel = await opening
    } catch (error) {
      opening = null
      throw error
    }
    if (signal?.aborted) throw aborted(signal.reason)
    const call = ++last
    const asked = channel.request({ call, ...what, options }, { signal })
    const onAbort = () => giveUp(channel, call)
    if (signal) listen(signal, onAbort)
    try {
      return await asked
    } finally {
      if (signal) unlisten(signal, onAbort)
    }
  }
}

module.exports = { VARIABLE, ClusterPool, checkPool, serve }

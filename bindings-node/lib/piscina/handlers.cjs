'use strict'
// The worker file of a Piscina's WorkerPools: loads the user's files and runs their functions.
//
// The name of an export says what to run: JSON of [form, filename, name]. In the form `spread` the function gets the parts of a call as
// arguments, in the form `whole` as one array, which is what a transfer list needs.

const os = require('node:os')
const path = require('node:path')
const { pathToFileURL } = require('node:url')
const { threadId } = require('node:worker_threads')
const functions = require('../functions.cjs')
const { move } = require('../move.cjs')
const { promiseOf, whenSettled } = require('../settle.cjs')
const { clock, record } = require('./timing.cjs')
const { movedParts } = require('./transfer.cjs')
const state = require('./state.cjs')

state.isWorkerThread = true

/** A word per call: its ticket until a thread has it, then minus that thread's id. Null if nobody asks. */
let claims = null
let runTime = null
let waitTime = null

/** Functions by `filename` and `name`, null for one that is not there. */
const handlers = new Map()
const keyOf = (filename, name) => JSON.stringify([filename, name])

async function init(context) {
  const { filename, name, niceIncrement } = context
  claims = context.claims
  runTime = context.runTime
  waitTime = context.waitTime
  // On Linux the priority of process 0 is that of the calling thread, elsewhere that of the whole process.
  if (niceIncrement > 0 && process.platform === 'linux') os.setPriority(0, Math.min(os.getPriority(0) + niceIncrement, 19))
  if (filename !== null) await load(filename, name)
}

/** The namespace of a file. Where a loader was registered for `require` alone (ts-node, addons), it is asked. */
async function open(file) {
  const extension = path.extname(file)
  if (!['.js', '.cjs', '.mjs'].includes(extension) && Object.hasOwn(require.extensions, extension)) {
    try {
      return { default: require(file) }
    } catch (error) {
      if (error.code !== 'ERR_REQUIRE_ESM' && error.code !== 'ERR_REQUIRE_ASYNC_MODULE') throw error
    }
  }
  return functions.load(pathToFileURL(file).href)
}

async function load(filename, name) {
  const loaded = await open(path.resolve(filename))
  let found = await loaded[name]
  if (typeof found !== 'function') {
    // `module.exports` with several functions, or what a compiler made of `export default`; each may be a promise.
    const inner = await loaded.default
    found = inner === null || inner === undefined ? null : await inner[name]
  }
  const handler = typeof found === 'function' ? found : null
  handlers.set(keyOf(filename, name), handler)
  return handler
}

function runner(filename, name) {
  const key = keyOf(filename, name)
  return (task, created, index, ticket) => {
    // Given up before it began.
    if (claims !== null && Atomics.compareExchange(claims, index, ticket, -threadId) !== ticket) return undefined
    if (waitTime !== null) record(waitTime, clock() - created)
    const handler = handlers.get(key)
    if (handler === undefined) return load(filename, name).then((found) => call(found, filename, task))
    return call(handler, filename, task)
  }
}

function call(handler, filename, task) {
  if (handler === null) throw new Error(`No handler function exported from ${filename}`)
  const started = runTime === null ? 0 : clock()
  let result
  let promise
  try {
    result = handler(task)
    promise = promiseOf(result)
  } catch (error) {
    ended(started)
    throw error
  }
  if (promise === null) {
    ended(started)
    return withMoved(result)
  }
  return whenSettled(
    promise,
    (value) => {
      ended(started)
      return withMoved(value)
    },
    (error) => {
      ended(started)
      throw error
    },
  )
}

function ended(started) {
  if (runTime !== null) record(runTime, clock() - started)
}

function withMoved(result) {
  const parts = movedParts(result)
  if (parts === null) return result
  const { value, list } = parts
  return typeof value === 'object' && value !== null ? move(value, list) : value
}

const ready = () => {}

function exported(key) {
  if (key === 'init') return init
  if (key === 'ready') return ready
  if (typeof key !== 'string' || !key.startsWith('[')) return undefined
  const [form, filename, name] = JSON.parse(key)
  const run = runner(filename, name)
  return form === 'spread' ? run : (parts) => run(...parts)
}

module.exports = new Proxy(
  {},
  {
    get: (_, key) => exported(key),
    getOwnPropertyDescriptor(_, key) {
      const value = exported(key)
      return value === undefined ? undefined : { value, writable: true, enumerable: true, configurable: true }
    },
  },
)

'use strict'
// The functions of a worker's file, and the errors that they throw.

const { fail } = require('./error.cjs')
const { isNativeError } = require('node:util').types
const { fileURLToPath } = require('node:url')
const { encodeInto, unserializable } = require('./codec.cjs')

/** Codes of what `require` says of a file that only `import` can load, which has failed, or that it cannot load either. */
const NOT_REQUIRED = /^ERR_(REQUIRE_\w+|INTERNAL_ASSERTION|UNKNOWN_FILE_EXTENSION)$/

/** Whether `error` says that `require` has no loader for `file`, and not what is wrong with it; before the stack the parser puts the place. */
const hasNoLoader = (error, file) =>
  NOT_REQUIRED.test(error?.code) || (error instanceof SyntaxError && String(error.stack).startsWith(file))

/** The namespace of the module at `url`, or an object like one. */
async function load(url) {
  try {
    return await import(url)
  } catch (error) {
    if (error?.code !== 'ERR_UNKNOWN_FILE_EXTENSION' || !url.startsWith('file:')) throw error
    // A loader may be there for `require` alone, as tsx is in the threads of Node.js 20.
    const file = fileURLToPath(url)
    let exported
    try {
      exported = require(file)
    } catch (thrown) {
      if (!hasNoLoader(thrown, file)) throw thrown
      // It may be the same one, or say so by its cause: an error that is its own cause cannot leave a thread.
      if (thrown !== error && thrown.cause === undefined) error.cause = thrown
      throw error
    }
    return exported?.__esModule ? exported : { default: exported }
  }
}

/** What JavaScript itself gives to objects and to functions of each kind. */
const BUILT_IN = new Set(
  [{}, () => {}, async () => {}, function* () {}, async function* () {}].map((example) => Object.getPrototypeOf(example)),
)

/** What a file says of `name`, by an object of its own or that object's class. A class is no export for being the `constructor`. */
function memberOf(object, name) {
  if (Object.hasOwn(object, name)) return object[name]
  for (let from = Object.getPrototypeOf(object); from !== null && !BUILT_IN.has(from); from = Object.getPrototypeOf(from)) {
    if (Object.hasOwn(from, name)) return name === 'constructor' ? undefined : object[name]
  }
  return undefined
}

const isObject = (value) => (typeof value === 'object' && value !== null) || typeof value === 'function'

/** The function that is exported as `name`. */
function functionOf(loaded, name) {
  let found = memberOf(loaded, name)
  if (typeof found !== 'function') {
    const inner = loaded.default
    // CommonJS: `module.exports` is the default export, and what a compiler made of `export default` is inside of it.
    if (isObject(inner)) found = memberOf(inner, name)
  }
  if (typeof found !== 'function') {
    const has = Object.keys(loaded).filter((key) => typeof loaded[key] === 'function')
    throw fail('NotFound', 'worker has no function of this name', { name, exports: has.join(' ') || 'none' })
  }
  return found
}

/** `init` or `teardown`, if the file has one. */
function hookOf(loaded, name) {
  const found = memberOf(loaded, name) ?? (isObject(loaded.default) ? memberOf(loaded.default, name) : undefined)
  return typeof found === 'function' ? found : undefined
}

/** Files that calls name, each loaded once by the first of them, with its own `init`. */
class Files {
  #context
  /** By URL: promises of namespaces. */
  #opened = new Map()
  constructor(context) {
    this.#context = context
  }

  #open(url) {
    let opened = this.#opened.get(url)
    if (opened === undefined) {
      opened = this.#load(url)
      this.#opened.set(url, opened)
      // The next call tries it again.
      opened.catch(() => this.#opened.delete(url))
    }
    return opened
  }

  async #load(url) {
    const loaded = await load(url)
    await hookOf(loaded, 'init')?.(this.#context)
    return loaded
  }

  /** A function that calls the one which `url` exports as `name`; `found` is told of that once it is there. */
  functionOf(url, name, found) {
    return async (...args) => {
      const call = functionOf(await this.#open(url), name)
      found(call)
      return call(...args)
    }
  }

  async teardown() {
    for (const opened of this.#opened.values()) await hookOf(await opened, 'teardown')?.(this.#context)
  }
}

const room = Buffer.allocUnsafeSlow(64 * 1024)

/** Most causes of an error that are shown. */
const MAX_CAUSES = 64

function member(error, name) {
  try {
    return error[name]
  } catch {
    return undefined
  }
}

const isError = (value) => isNativeError(value) || value instanceof DOMException

/** An error with name, message and stack of `error`, and its `code` where it is a DOMException, which hides it. */
function bare(error) {
  const text = (name) => String(member(error, name) ?? '')
  const copy = new Error(text('message'))
  for (const name of ['name', 'stack']) Object.defineProperty(copy, name, { value: text(name), writable: true, configurable: true })
  if (error instanceof DOMException) copy.code = member(error, 'code')
  return copy
}

/** Whether threads and processes of Node.js can be given `error`. */
const canTravel = (error) => encodeInto(room, error, 0, room.length) !== false

/** An error of a task that cannot be cloned, as far as it can: with those own properties and causes that `fits` takes. */
function shown(error, fits = canTravel) {
  if (error === null || typeof error !== 'object') return unserializable('what the task threw', error)
  const holds = (value) => {
    try {
      return fits(value)
    } catch {
      return false
    }
  }
  const copies = []
  const seen = new Set()
  let at = error
  while ((isError(at) || at === error) && !seen.has(at) && copies.length < MAX_CAUSES) {
    seen.add(at)
    const copy = bare(at)
    for (const key of Object.keys(at)) {
      if (key === 'cause') continue
      try {
        copy[key] = structuredClone(at[key])
      } catch {
        // Left out, as what follows is.
      }
      if (!holds(copy)) delete copy[key]
    }
    copies.push(copy)
    at = member(at, 'cause')
  }
  // What ends the chain: a value of another kind, or more errors. One that was there before is left out.
  let cause
  if (!seen.has(at)) cause = isError(at) ? new Error(`further causes were left out (max=${MAX_CAUSES})`) : at
  for (const copy of copies.reverse()) {
    if (cause !== undefined) {
      copy.cause = cause
      if (!holds(copy)) delete copy.cause
    }
    cause = copy
  }
  return cause
}

/** Text of an error that ends its worker. */
function textOf(error) {
  try {
    if (typeof error?.stack === 'string' && error.stack !== '') return error.stack
    return error instanceof Error ? `${error.name}: ${error.message}` : `thrown: ${String(error)}`
  } catch {
    return 'an error without text'
  }
}

module.exports = { load, Files, functionOf, hookOf, shown, textOf }

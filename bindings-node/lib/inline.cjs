'use strict'
// Functions that are sent to a worker as their source: `pool.call(fn, ...args)`. In the table of exports such a one is NUL and its source.

const vm = require('node:vm')
const { fail, typeName } = require('./error.cjs')

/** No name of an export that a caller may give begins so. */
const INLINE = '\0'

/** In that table: an export of a file that the call names, as IN_FILE, its URL, NUL and the name. No source begins with NUL. */
const IN_FILE = '\0\0'
const inFile = (url, name) => `${IN_FILE}${url}\0${name}`

/** `[url, name]` of what `inFile` gave. */
function partsOf(text) {
  const at = text.indexOf('\0', IN_FILE.length)
  return [text.slice(IN_FILE.length, at), text.slice(at + 1)]
}

const expression = (source) => `(${source}\n)`

/** The source of `fn`, which means the same elsewhere as far as `fn` uses nothing from outside. */
function sourceOf(fn) {
  if (typeof fn !== 'function') throw fail('Invalid', 'what is called is no function', { got: typeName(fn) })
  const source = Function.prototype.toString.call(fn)
  const refuse = (why) => fail('Unserializable', why, { function: fn.name || 'anonymous' })
  if (/\{\s*\[native code\]\s*\}\s*$/.test(source)) throw refuse('a bound function, or one of the runtime, has no source')
  if (/^class\b/.test(source)) throw refuse('a class cannot be called')
  try {
    new vm.Script(expression(source))
  } catch (error) {
    const refused = refuse('a method has no source of its own: give an arrow function or a function')
    refused.cause = error
    throw refused
  }
  return source
}

/** The function of a `source`. */
// biome-ignore lint/security/noGlobalEval: what this file is for; an indirect one sees the global scope, and `import()` works in it
const functionOf = (source) => globalThis.eval(expression(source))

module.exports = { INLINE, IN_FILE, inFile, partsOf, sourceOf, functionOf }

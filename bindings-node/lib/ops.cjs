'use strict'
// `ops`: one typed wrapper per row of the core's op table, on the default pool. Types: ops.d.ts, made from the same table.

const native = require('./native.cjs')
const { defaultPool } = require('./pool.cjs')

const camel = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase())

function run(name, input, params, options) {
  let pool
  try {
    pool = defaultPool()
  } catch (error) {
    // OFFLOOP_THREADS is no number, for example.
    return Promise.reject(error)
  }
  return pool.run(name, input, params, options)
}

const ops = {}
for (const { name, maxInputs } of native.opTable()) {
  const wrapper =
    maxInputs === 0
      ? (params, options) => run(name, undefined, params, options)
      : (input, params, options) => run(name, input, params, options)
  const parts = name.split('.').map(camel)
  const last = parts.pop()
  let family = ops
  for (const part of parts) family = family[part] ??= {}
  // A family may share its name with an op; functions carry properties.
  Object.defineProperty(wrapper, 'name', { value: last, configurable: true })
  family[last] = wrapper
}

module.exports = { ops }

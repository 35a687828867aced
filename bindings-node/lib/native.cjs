'use strict'
// Finds the native library: an explicit path, then the one that was built here, then the platform package.

const fs = require('node:fs')
const path = require('node:path')
const { version } = require('../package.json')

const triple = process.platform === 'linux' ? `linux-${process.arch}-gnu` : `${process.platform}-${process.arch}`
const root = path.join(__dirname, '..')

function fail(code, message, cause) {
  const error = new Error(message, { cause })
  error.code = code
  return error
}

function find() {
  const explicit = process.env.OFFLOOP_NATIVE_PATH
  if (explicit) {
    try {
      return require(path.resolve(explicit))
    } catch (cause) {
      throw fail('ERR_OFFLOOP_NOT_FOUND', `not found: OFFLOOP_NATIVE_PATH does not load (path=${explicit}): ${cause.message}`, cause)
    }
  }
  const built = path.join(root, `offloop.${triple}.node`)
  const tried = []
  let first
  for (const [what, id] of [
    [built, fs.existsSync(built) ? built : null],
    [`package offloop-${triple}`, `offloop-${triple}`],
  ]) {
    if (id === null) {
      tried.push(`${what}: not there`)
      continue
    }
    try {
      return require(id)
    } catch (cause) {
      first ??= cause
      const missing = cause.code === 'MODULE_NOT_FOUND' && cause.message.includes(id)
      tried.push(`${what}: ${missing ? 'not installed' : cause.message.split('\n')[0]}`)
    }
  }
  throw fail(
    'ERR_OFFLOOP_NOT_FOUND',
    `not found: offloop has no native library for ${triple} on Node ${process.versions.node}\n` +
      tried.map((line) => `  tried ${line}\n`).join('') +
      `Either install the prebuilt one:      npm install offloop-${triple}@${version}\n` +
      `or build it (needs Rust and a linker): npm run build --prefix ${JSON.stringify(root)}\n` +
      'or set OFFLOOP_NATIVE_PATH to an offloop .node file.\n' +
      '(npm install --omit=optional leaves the prebuilt one out; --ignore-scripts leaves out the build.)',
    first,
  )
}

const native = find()
if (native.version() !== version) {
  throw fail(
    'ERR_OFFLOOP_VERSION',
    `version: the native library and the package differ (native=${native.version()}, package=${version}); ` +
      `install offloop and offloop-${triple} of one version, or run: npm run build --prefix ${JSON.stringify(root)}`,
  )
}
module.exports = native

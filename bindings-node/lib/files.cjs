'use strict'
// Worker files, as they are named to a pool.

const fs = require('node:fs')
const path = require('node:path')
const { fileURLToPath, pathToFileURL } = require('node:url')
const { fail, typeName } = require('./error.cjs')

/** Where a worker file is, as a URL. A path is taken from the working directory. */
function urlOf(filename) {
  if (filename instanceof URL) filename = filename.href
  if (typeof filename !== 'string' || filename === '') throw fail('Invalid', 'filename is no path and no URL', { got: typeName(filename) })
  if (/^https?:/.test(filename)) throw fail('Invalid', 'a worker file is not loaded from the network', { filename })
  if (/^(data|node):/.test(filename)) return filename
  let file
  try {
    file = filename.startsWith('file:') ? fileURLToPath(filename) : path.resolve(filename)
  } catch (error) {
    const invalid = fail('Invalid', 'filename is no path and no URL', { filename })
    invalid.cause = error
    throw invalid
  }
  if (!fs.existsSync(file)) throw fail('NotFound', 'worker file is not there', { filename: file })
  return pathToFileURL(file).href
}

module.exports = { urlOf }

#!/usr/bin/env node
'use strict'
// The `offloop` command. This process becomes the native one, so that no Node.js stays beside what runs; without it the core's copy in the native library does what needs no process of its
// own.

const fs = require('node:fs')
const path = require('node:path')
const native = require('../lib/native.cjs')

const args = process.argv.slice(2)
const triple = process.platform === 'linux' ? `linux-${process.arch}-gnu` : `${process.platform}-${process.arch}`
const name = `offloop.${triple}`

/** Where the binary is that belongs to the native library: what was built here, or the platform package. */
function binary() {
  const built = path.join(__dirname, '..', name)
  if (fs.existsSync(built)) return built
  try {
    return path.join(path.dirname(require.resolve(`offloop-${triple}/package.json`)), name)
  } catch {
    return built
  }
}

const file = binary()
const why = native.exec(file, args, ['OFFLOOP_NODE_PRELOAD', process.env.OFFLOOP_NODE_PRELOAD ?? path.join(__dirname, '../lib/register.cjs')])
if (args[0] === 'run') {
  console.error(`offloop: the binary that runs servers cannot be started: ${why}; install offloop-${triple}, or run: npm run build`)
  process.exitCode = 1
} else process.exitCode = native.cli(args)

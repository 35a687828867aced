'use strict'
// Timers and the clock as they are when the package loads: fake timers of a test would stop the results.

const { setImmediate, setTimeout, clearTimeout } = require('node:timers')
const { performance } = require('node:perf_hooks')

const now = performance.now.bind(performance)

/** Longest timer of the runtime. */
const MAX_TIMER = 2 ** 31 - 1

module.exports = { setImmediate, setTimeout, clearTimeout, now, MAX_TIMER }

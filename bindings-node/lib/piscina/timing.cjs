'use strict'
// Run and wait times. The histograms are native memory that threads share: a worker records, the pool reads.

const { createHistogram, performance } = require('node:perf_hooks')

// `performance.now` counts from the start of its thread, `hrtime` from one moment for all of them.
const [seconds, nanoseconds] = process.hrtime()
const offset = seconds * 1e3 + nanoseconds / 1e6 - performance.now()

/** Milliseconds on a clock that all threads of the process share. */
const clock = () => performance.now() + offset

const PERCENTILES = [0.001, 0.01, 0.1, 1, 2.5, 10, 25, 50, 75, 90, 97.5, 99, 99.9, 99.99, 99.999]

/** Histograms hold integers from 1: microseconds. */
const record = (histogram, ms) => histogram.record(Math.max(1, Math.trunc(ms * 1000)))

/** In milliseconds. */
function summary(histogram) {
  const { mean, stddev, min, max } = histogram
  const made = { average: mean / 1000, mean: mean / 1000, stddev: stddev / 1000, min: min / 1000, max: max / 1000 }
  for (const p of PERCENTILES) made[`p${String(p).replace('.', '_')}`] = histogram.percentile(p) / 1000
  return made
}

module.exports = { clock, createHistogram, record, summary }

'use strict'
// The options of a Piscina: what it takes, its defaults, and what it says of a wrong one.

const os = require('node:os')
const { fileURLToPath } = require('node:url')
const { isTaskQueue, FixedQueue } = require('./queues.cjs')

const cores = os.availableParallelism()
const DEFAULTS = {
  filename: null,
  name: 'default',
  minThreads: Math.max(Math.floor(cores / 2), 1),
  maxThreads: cores * 1.5,
  idleTimeout: 0,
  maxQueue: Number.POSITIVE_INFINITY,
  concurrentTasksPerWorker: 1,
  atomics: 'sync',
  niceIncrement: 0,
  trackUnmanagedFds: true,
  closeTimeout: 30_000,
  recordTiming: true,
  stricterFIFO: false,
  workerHistogram: false,
}

const isText = (value) => value === null || typeof value === 'string'
const isBoolean = (value) => typeof value === 'boolean'
const from = (least) => (value) => typeof value === 'number' && value >= least

/** Of each option that is checked: whether a value will do, and what it must be. */
const CHECKS = {
  filename: [isText, 'must be a string or null'],
  name: [isText, 'must be a string or null'],
  minThreads: [from(0), 'must be a non-negative integer'],
  maxThreads: [from(1), 'must be a positive integer'],
  idleTimeout: [from(0), 'must be a non-negative integer'],
  maxQueue: [(value) => value === 'auto' || from(0)(value), 'must be a non-negative integer'],
  concurrentTasksPerWorker: [from(1), 'must be a positive integer'],
  atomics: [(value) => value === null || ['sync', 'async', 'disabled'].includes(value), 'must be sync, async or disabled'],
  useAtomics: [isBoolean, 'must be a boolean value'],
  resourceLimits: [(value) => typeof value === 'object' && value !== null, 'must be an object'],
  taskQueue: [isTaskQueue, 'must be a TaskQueue object'],
  niceIncrement: [from(0), 'must be a non-negative integer'],
  trackUnmanagedFds: [isBoolean, 'must be a boolean value'],
  closeTimeout: [from(0), 'must be a non-negative integer'],
  recordTiming: [isBoolean, 'must be a boolean value'],
  loadBalancer: [(value) => typeof value === 'function' && value.length >= 1, 'must be a function with at least one argument'],
  workerHistogram: [isBoolean, 'must be a boolean'],
  stricterFIFO: [isBoolean, 'must be a boolean'],
}

const pathOf = (filename) => (filename.startsWith('file:') ? fileURLToPath(filename) : filename)

function fill(given) {
  const options = { ...DEFAULTS }
  for (const [option, value] of Object.entries(given)) {
    if (value === undefined) continue
    const check = CHECKS[option]
    if (check !== undefined && !check[0](value)) throw new TypeError(`options.${option} ${check[1]}`)
    if (value !== null || option === 'workerData') options[option] = value
  }
  const { minThreads: min, maxThreads: max } = given
  if (min !== undefined && max !== undefined && min > max) {
    throw new RangeError('options.minThreads and options.maxThreads must not conflict')
  }
  // The one that is a default gives way.
  if (max !== undefined) options.minThreads = Math.min(options.minThreads, max)
  else options.maxThreads = Math.max(options.maxThreads, options.minThreads)
  if (options.filename !== null) options.filename = pathOf(options.filename)
  if (options.maxQueue === 'auto') options.maxQueue = options.maxThreads ** 2
  options.taskQueue ??= new FixedQueue()
  return options
}

module.exports = { fill, pathOf }

'use strict'
// Counter and RateLimiter: what the workers of a Cluster count, and let through, together (core/src/shared).

const native = require('./native.cjs')
const { fail, checkOptions, checkKnown } = require('./error.cjs')
const { wrongType } = require('./options.cjs')
const { Cluster } = require('./clusters.cjs')

/** The native cluster that has what is shared; none in a worker, which asks its own. */
function clusterOf(cluster) {
  if (cluster === undefined || cluster === null) return undefined
  if (!(cluster instanceof Cluster)) throw wrongType('cluster', 'Cluster', cluster)
  return Cluster.handleOf(cluster)
}

function safe(name, n) {
  if (!Number.isSafeInteger(n)) throw fail('Invalid', 'value is no safe integer', { [name]: String(n) })
  return n
}

class Counter {
  #handle
  constructor(name, options = {}) {
    const { cluster, ...unknown } = checkOptions(options)
    checkKnown(unknown, 'cluster')
    this.#handle = native.counterNew(clusterOf(cluster), name)
  }

  /** Adds `n`, which may be negative; what it is then. */
  add(n = 1) {
    return native.counterAdd(this.#handle, safe('n', n))
  }

  get value() {
    return native.counterGet(this.#handle)
  }

  /** Makes it `value`; what it was. */
  set(value) {
    return native.counterSet(this.#handle, safe('value', value))
  }
}

class RateLimiter {
  #handle
  constructor(name, options) {
    const { rate, burst, keys, cluster, ...unknown } = checkOptions(options ?? {})
    checkKnown(unknown, 'rate burst keys cluster')
    this.#handle = native.limiterNew(clusterOf(cluster), name, rate, burst, keys)
  }

  /** Takes `cost` tokens from the bucket of `key`, all or none; 0 looks only. */
  take(key = '', cost = 1) {
    const [allowed, remaining, retryAfter] = native.limiterTake(this.#handle, key, cost)
    return { allowed, remaining, retryAfter }
  }
}

module.exports = { Counter, RateLimiter }

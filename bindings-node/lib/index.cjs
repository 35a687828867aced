'use strict'

const native = require('./native.cjs')

// A loaded native library calls one set of functions. A second evaluation of this package over the same library (a test
// runner that resets its modules) takes the first one's: with functions of its own, it would leave that one's promises pending.
const LOADED = Symbol.for('offloop.loaded')

function load() {
  const { OffloopError } = require('./error.cjs')
  const { TransferBuffer, revokeToken } = require('./buffer.cjs')
  const { ThreadPool, defaultPool } = require('./pool.cjs')
  const { WorkerPool } = require('./workers.cjs')
  const { ProcessPool } = require('./processes.cjs')
  const { move } = require('./move.cjs')
  const { RingBuffer, Producer, Consumer, Delivery } = require('./ring.cjs')
  const { Channel } = require('./channel.cjs')
  const { Cluster } = require('./clusters.cjs')
  const { Counter, RateLimiter } = require('./shared.cjs')
  const { ops } = require('./ops.cjs')

  const metrics = (format) => native.metrics(format)

  return {
    ThreadPool,
    WorkerPool,
    ProcessPool,
    move,
    ops,
    defaultPool,
    TransferBuffer,
    revokeToken,
    RingBuffer,
    Producer,
    Consumer,
    Delivery,
    Channel,
    Cluster,
    Counter,
    RateLimiter,
    OffloopError,
    metrics,
  }
}

if (native[LOADED] === undefined) Object.defineProperty(native, LOADED, { value: load() })
module.exports = native[LOADED]

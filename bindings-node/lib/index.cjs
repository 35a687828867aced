'use strict'

const native = require('./native.cjs')
const { OffloopError } = require('./error.cjs')
const { TransferBuffer, revokeToken } = require('./buffer.cjs')
const { ThreadPool, defaultPool } = require('./pool.cjs')
const { RingBuffer, Producer, Consumer } = require('./ring.cjs')
const { ops } = require('./ops.cjs')

const metrics = (format) => native.metrics(format)

module.exports = { ThreadPool, ops, defaultPool, TransferBuffer, revokeToken, RingBuffer, Producer, Consumer, OffloopError, metrics }

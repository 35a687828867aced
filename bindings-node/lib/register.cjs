'use strict'
// `offloop/register`: what a Cluster loads before a worker's script. In any other process, and in a worker's threads, it does nothing and loads nothing.

if (process.env.OFFLOOP_CLUSTER !== undefined && require('node:worker_threads').isMainThread) require('./member.cjs').enter()

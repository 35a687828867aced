'use strict'
// `offloop/register`: what a Cluster loads before a worker's script. In any other process, and in a worker's threads, it does nothing and loads nothing.

if (process.env.OFFLOOP_CLUSTER !== undefined && require('node:worker_threads').isMainThread) {
  // `offloop run` puts it there, as the last (core/src/cli/run/hooks.rs); what the worker starts does not see it.
  const own = `--require "${__filename.replace(/["\\]/g, '\\$&')}"`
  const options = process.env.NODE_OPTIONS
  const unmodified = options?.endsWith(own) === true
  if (unmodified) {
    const rest = options.slice(0, -own.length).trimEnd()
    if (rest === '') delete process.env.NODE_OPTIONS
    else process.env.NODE_OPTIONS = rest
  }
  require('./member.cjs').enter(unmodified)
  if (process.env.OFFLOOP_WORKER !== undefined) require('./forked.cjs').enter()
}

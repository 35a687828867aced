'use strict'
// `offloop/cluster`: node:cluster's API. A program of it runs with this in place of `node:cluster`.

function load() {
  if (require('./member.cjs').current() !== null) {
    const forked = require('./forked.cjs')
    if (forked.current() !== null) return forked.current()
  }
  return require('./primary.cjs')
}

module.exports = load()

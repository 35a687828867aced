'use strict'
// Does not begin until its file is there.
const fs = require('node:fs')
module.exports = () => 'now'
module.exports.init = () => {
  if (!fs.existsSync(process.env.OFFLOOP_TEST_DOOR)) throw new Error('not yet')
}

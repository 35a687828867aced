'use strict'
// As ts-node does: a loader for `require` alone.
const fs = require('node:fs')
require.extensions['.shout'] = (module, filename) => {
  module._compile(`module.exports = (name) => ${JSON.stringify(fs.readFileSync(filename, 'utf8').trim().toUpperCase())} + name`, filename)
}

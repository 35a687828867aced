'use strict'
// A loader for `require` alone, as `tsx` is one in the threads of Node.js 20: it takes every file that is loaded as JavaScript.
const fs = require('node:fs')
const load = require.extensions['.js']
require.extensions['.js'] = (module, filename) => {
  if (!filename.endsWith('.typed')) return load(module, filename)
  const erased = fs
    .readFileSync(filename, 'utf8')
    .replace(/^interface[^}]*}/m, '')
    .replace(/: (Point|number|Generator<number>)/g, '')
    .replace('export default', 'exports.default =')
    .replace('export function* steps', 'exports.steps = function*')
  module._compile(`Object.defineProperty(exports, '__esModule', { value: true });${erased}`, filename)
}

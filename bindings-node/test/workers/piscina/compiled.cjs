'use strict'
// As compilers write `export default`.
Object.defineProperty(exports, '__esModule', { value: true })
exports.default = ({ a, b }) => a + b
exports.minus = ({ a, b }) => a - b

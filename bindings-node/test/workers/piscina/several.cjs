'use strict'
const add = ({ a, b }) => a + b
add.add = add
add.multiply = ({ a, b }) => a * b
module.exports = add

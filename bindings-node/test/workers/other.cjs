'use strict'
module.exports = (value) => ['common', value]

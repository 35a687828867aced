module.exports = (value) => ['cjs', value]
module.exports.add = (a, b) => a + b
module.exports.later = async (value) => value

'use strict'
let made = 0
async function initialize() {
  await new Promise((resolve) => setTimeout(resolve, 20))
  made++
  return ({ a, b }) => [a + b, made]
}
module.exports = initialize()

'use strict'
module.exports = { twice: (x) => x * 2, wrong: 1 }

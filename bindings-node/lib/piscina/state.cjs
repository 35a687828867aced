'use strict'
// What a thread knows of itself.

module.exports = { isWorkerThread: false }

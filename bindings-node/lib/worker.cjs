'use strict'
// `offloop/worker`: what a function of a worker file may know of its task and its worker.

const { threadId } = require('node:worker_threads')
const { move } = require('./move.cjs')
const member = require('./member.cjs')
const tasks = require('./task.cjs')

const storage = tasks.enable()

const currentTask = () => storage.getStore() ?? null

let worker = null
function currentWorker() {
  if (member.current() !== null) return member.current()
  if (worker === null && tasks.isWorker) worker = Object.freeze({ threadId, pid: process.pid })
  return worker
}

module.exports = { currentTask, currentWorker, move }

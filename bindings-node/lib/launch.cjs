'use strict'
// What a ProcessPool and a Cluster start for each worker.

const fs = require('node:fs')
const path = require('node:path')
const { fail, typeName } = require('./error.cjs')
const { wrongType, texts, checkEnv } = require('./options.cjs')
const { urlOf } = require('./files.cjs')

const MAIN = path.join(__dirname, 'worker-main.cjs')
/** What every worker of a cluster in Node.js loads before its script. */
const PRELOAD = path.join(__dirname, 'register.cjs')
/** Flags of this process that are about itself: its program text, its debugger, its tests. */
const OWN_FLAGS = /^--(input-type|inspect|test|watch|experimental-test|cpu-prof|heap-prof)/

/** What `worker` says, as `{ node: URL }`, `{ python: path }` or `{ command: [...] }`. */
function checkWorker(worker) {
  if (typeof worker === 'string' || worker instanceof URL) return { node: urlOf(worker) }
  const known = ['node', 'python', 'command'].filter((name) => worker?.[name] !== undefined)
  if (worker === null || typeof worker !== 'object' || known.length !== 1 || Object.keys(worker).length !== 1) {
    throw fail('Invalid', 'worker is neither a file nor one of { node }, { python }, { command }', { got: typeName(worker) })
  }
  if (known[0] === 'node') return { node: urlOf(worker.node) }
  if (known[0] === 'python') {
    if (typeof worker.python !== 'string' || worker.python === '') throw wrongType('python', 'path', worker.python)
    const file = path.resolve(worker.python)
    if (!fs.existsSync(file)) throw fail('NotFound', 'worker file is not there', { filename: file })
    return { python: file }
  }
  const { command } = worker
  if (!Array.isArray(command) || command.length === 0 || command.some((part) => typeof part !== 'string')) {
    throw wrongType('command', 'array of text', command)
  }
  return { command }
}

/** Flags that a process of Node.js hands to another one: all but its own. */
function inherited() {
  const flags = []
  for (let i = 0; i < process.execArgv.length; i++) {
    const flag = process.execArgv[i]
    if (/^(-e|-p|-pe|--eval|--print)$/.test(flag)) i++
    else if (!OWN_FLAGS.test(flag)) flags.push(flag)
  }
  return flags
}

function isExecutable(file) {
  try {
    fs.accessSync(file, fs.constants.X_OK)
    return fs.statSync(file).isFile()
  } catch {
    return false
  }
}

/** The interpreter for workers in Python: the option, that of VIRTUAL_ENV, the first one of PATH. */
function pythonOf(option, env) {
  const looked = []
  if (option !== undefined && option !== null) {
    if (typeof option !== 'string' || option === '') throw wrongType('python', 'path or name of an interpreter', option)
    if (option.includes('/')) looked.push(path.resolve(option))
    else looked.push(...inPath(option, env))
  } else {
    if (env.VIRTUAL_ENV) looked.push(path.join(env.VIRTUAL_ENV, 'bin', 'python3'))
    looked.push(...inPath('python3', env))
  }
  const found = looked.find(isExecutable)
  if (found !== undefined) return found
  const error = fail('NotFound', `no Python interpreter: looked for ${looked.join(', ') || 'nothing, PATH is empty'}`)
  error.looked = looked
  throw error
}

const inPath = (name, env) =>
  (env.PATH ?? '')
    .split(path.delimiter)
    .filter((directory) => directory !== '')
    .map((directory) => path.join(directory, name))

/** The command of a worker and its environment, as they are now: names and values by turns. */
function commandOf({ node, python, command }, { argv, execArgv, env = process.env, python: interpreter }) {
  checkEnv(env)
  const args = texts('argv', argv)
  const flags = execArgv === undefined || execArgv === null ? inherited() : texts('execArgv', execArgv)
  const pairs = Object.entries(env).flatMap(([name, value]) => (value === undefined ? [] : [name, String(value)]))
  if (node !== undefined) return { command: [process.execPath, ...flags, MAIN, node, ...args], env: pairs }
  const refuse = (option, given) => {
    if (given !== undefined && given !== null) throw fail('Invalid', 'option is for workers in another language', { option })
  }
  refuse('execArgv', execArgv)
  if (python !== undefined) return { command: [pythonOf(interpreter, env), '-m', 'offloop.worker', python, ...args], env: pairs }
  refuse('python', interpreter)
  return { command: [...command, ...args], env: pairs }
}

module.exports = { PRELOAD, checkWorker, commandOf, inherited }

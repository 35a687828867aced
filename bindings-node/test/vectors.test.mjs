// The known answers of every op, through this face. The format is described in tests/vectors/README.md.

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { OffloopError, ThreadPool } from '../lib/index.mjs'
import { rejection } from './support.mjs'

const root = fileURLToPath(new URL('../../tests/vectors/', import.meta.url))
const hex = (text) => Buffer.from(text.replaceAll(/\s/g, ''), 'hex')
const repeat = ({ text, hex: digits, times }) => Buffer.concat(Array(times).fill(text === undefined ? hex(digits) : Buffer.from(text)))

function lcg({ seed, length }) {
  let x = seed
  return Uint8Array.from({ length }, () => {
    x = (Math.imul(1664525, x) + 1013904223) >>> 0
    return x >>> 24
  })
}

const sources = {
  input_text: (text) => Buffer.from(text),
  input_hex: hex,
  input_base64: (text) => Buffer.from(text, 'base64'),
  input_file: (name) => fs.readFileSync(path.join(root, name)),
  input_repeat: repeat,
  input_numbered: ({ text, times }) => Buffer.from(Array.from({ length: times }, (_, i) => text.replaceAll('%i', String(i))).join('')),
  input_cycle: ({ modulo, length }) => Uint8Array.from({ length }, (_, k) => k % modulo),
  input_lcg: lcg,
}

function input(entry) {
  if (entry.inputs) return entry.inputs.map(input)
  const [name] = Object.keys(entry).filter((key) => key.startsWith('input_'))
  if (name === undefined) return undefined
  assert.ok(sources[name], `unknown kind of input: ${name}`)
  return sources[name](entry[name])
}

const forms = {
  $hex: hex,
  $text: (text) => Buffer.from(text),
  $repeat: repeat,
  $date: (ms) => new Date(ms),
  $float: (word) => ({ nan: Number.NaN, inf: Number.POSITIVE_INFINITY, '-inf': Number.NEGATIVE_INFINITY })[word],
  $int: (text) => BigInt(text),
}

function value(tree) {
  if (Array.isArray(tree)) return tree.map(value)
  if (tree === null || typeof tree !== 'object') return tree
  const entries = Object.entries(tree)
  if (entries.length === 1 && entries[0][0].startsWith('$')) {
    const made = forms[entries[0][0]](entries[0][1])
    return Buffer.isBuffer(made) ? new Uint8Array(made) : made
  }
  return Object.fromEntries(entries.map(([key, item]) => [key, value(item)]))
}

const asBytes = (result) =>
  typeof result === 'string' ? Buffer.from(result) : Buffer.from(result.buffer, result.byteOffset, result.length)

function check(entry, given, result, label) {
  const wanted = []
  if ('output_hex' in entry) wanted.push(hex(entry.output_hex))
  if ('output_base64' in entry) wanted.push(Buffer.from(entry.output_base64, 'base64'))
  if ('output_text' in entry) wanted.push(Buffer.from(entry.output_text))
  if ('output_file' in entry) wanted.push(fs.readFileSync(path.join(root, entry.output_file)))
  if (entry.output_same) wanted.push(Buffer.from(Array.isArray(given) ? given[0] : given))
  for (const want of wanted) assert.ok(asBytes(result).equals(want), `${label}: got ${asBytes(result).subarray(0, 80).toString('hex')}`)
  if ('output_sha256' in entry) assert.equal(createHash('sha256').update(asBytes(result)).digest('hex'), entry.output_sha256, label)
  if ('output_length' in entry) assert.equal(result.length, entry.output_length, label)
  if ('output' in entry) assert.deepEqual(result, value(entry.output), label)
}

/** A message with options named as the table and the vectors do; this face names them as they are typed here. */
function inTheTablesWords(message) {
  const names = message.includes('unknown option') ? /(?<=known=)[\w ]+/ : /(?<=option=)\w+/
  return message.replace(names, (text) => text.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`))
}

for (const file of fs.readdirSync(path.join(root, 'ops')).filter((name) => name.endsWith('.json'))) {
  const suite = JSON.parse(fs.readFileSync(path.join(root, 'ops', file), 'utf8'))
  test(`vectors of ${suite.op}`, async () => {
    const pool = new ThreadPool({ maxWorkers: 2 })
    let checked = 0
    for (const [i, entry] of (suite.cases ?? []).entries()) {
      const given = input(entry)
      check(entry, given, await pool.run(suite.op, given, value(entry.params)), `case ${entry.name ?? i}`)
      checked++
    }
    for (const [i, entry] of (suite.errors ?? []).entries()) {
      const error = await rejection(pool.run(suite.op, input(entry), value(entry.params)))
      const label = `error ${entry.name ?? i}: ${error.stack}`
      assert.ok(error instanceof OffloopError, label)
      assert.equal(error.code, `ERR_OFFLOOP_${entry.kind.replaceAll(/(?<=[a-z])(?=[A-Z])/g, '_').toUpperCase()}`, label)
      for (const part of [entry.contains ?? []].flat()) assert.ok(inTheTablesWords(error.message).includes(part), label)
      checked++
    }
    for (const [i, entry] of (suite.roundtrip ?? []).entries()) {
      const given = input(entry)
      const there = await pool.run(suite.op, given, value(entry.params))
      const back = await pool.run(entry.inverse, asBytes(there), value(entry.inverse_params))
      assert.ok(asBytes(back).equals(Buffer.from(given)), `round trip ${entry.name ?? i}`)
      checked++
    }
    assert.ok(checked > 0, 'the file has entries')
    await pool.close()
  })
}

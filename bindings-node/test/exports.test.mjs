// Which functions of a worker file may be called: those that it exports, and no others.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { openProcesses } from './processes.mjs'
import { openWorkers, rejection } from './support.mjs'

const data = (source) => `data:text/javascript,${encodeURIComponent(source)}`
const FILES = [
  'export default async (x) => x',
  'export default async function* (x) { yield x }',
  'export default (x) => x',
  'export default function (x) { return x }',
  'export default class { static own(x) { return x } }',
  'export default { own: (x) => x }',
  'export const own = (x) => x',
]
const NAMES = [
  'constructor',
  '__proto__',
  'toString',
  'valueOf',
  'hasOwnProperty',
  'call',
  'apply',
  'bind',
  '__defineGetter__',
  'prototype',
]

for (const [kind, open] of [
  ['WorkerPool', (t, file) => openWorkers(t, file, { maxWorkers: 1 })],
  ['ProcessPool', (t, file) => openProcesses(t, file, { maxWorkers: 1 })],
]) {
  test(`${kind}: what every function or object inherits is no export`, async (t) => {
    for (const source of FILES) {
      const pool = open(t, data(source))
      for (const name of NAMES) {
        const error = await rejection(pool.run('', { name }))
        assert.deepEqual(
          [error.code, error.message.includes(`name=${name}`)],
          ['ERR_OFFLOOP_NOT_FOUND', true],
          `${source}: ${name}: ${error}`,
        )
      }
      if (source.includes('own')) assert.equal(await pool.run(5, { name: 'own' }), 5)
      await pool.close()
    }
  })

  test(`${kind}: an export may be of a class, or have the name of what others inherit`, async (t) => {
    const service = open(t, data('class Base { twice(x) { return 2 * x } } export default new (class extends Base {})()'))
    assert.equal(await service.run(5, { name: 'twice' }), 10)
    assert.equal((await rejection(service.run(5, { name: 'constructor' }))).code, 'ERR_OFFLOOP_NOT_FOUND')
    const pool = open(t, data('export const toString = (x) => ["own", x]; const f = (x) => ["f", x]; export { f as constructor }'))
    assert.deepEqual(await pool.run(1, { name: 'toString' }), ['own', 1])
    assert.deepEqual(await pool.run(1, { name: 'constructor' }), ['f', 1])
  })
}

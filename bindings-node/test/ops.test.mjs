// Results that other libraries read, and the wrappers' types.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import crypto from 'node:crypto'
import { createRequire } from 'node:module'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import zlib from 'node:zlib'
import { OffloopError, ops } from '../lib/index.mjs'
import { rejection } from './support.mjs'

const require = createRequire(import.meta.url)
const native = require('../lib/native.cjs')
const has = (name) => native.opTable().some((op) => op.name === name)
const without = (name) => ({ skip: !has(name) && `this build has no op ${name}` })
const text = Buffer.from('the quick brown fox jumps over the lazy dog, '.repeat(5000))
const here = fileURLToPath(new URL('..', import.meta.url))

test('ops.d.ts is what the op table says', () => {
  execFileSync(process.execPath, ['scripts/ops-types.mjs'], { cwd: here, stdio: 'pipe' })
})

test('a strict TypeScript user compiles', () => {
  const tsc = require.resolve('typescript/package.json').replace('package.json', 'bin/tsc')
  execFileSync(process.execPath, [tsc, '-p', 'test/types'], { cwd: here, stdio: 'pipe' })
})

test('both module systems give the same classes', async () => {
  assert.equal(require('../lib/index.cjs').OffloopError, OffloopError)
})

test('hashes agree with node:crypto', without('sha256'), async () => {
  for (const [name, theirs] of [
    ['sha256', 'sha256'],
    ['sha512', 'sha512'],
    ['sha384', 'sha384'],
  ]) {
    assert.equal(Buffer.from(await ops[name](text)).toString('hex'), crypto.createHash(theirs).update(text).digest('hex'))
    assert.equal(await ops[name](text, { encoding: 'hex' }), crypto.createHash(theirs).update(text).digest('hex'))
  }
})

test('node:zlib opens our gzip, and we open theirs', without('gzip'), async () => {
  assert.ok(zlib.gunzipSync(await ops.gzip(text)).equals(text))
  assert.ok(Buffer.from(await ops.gunzip(zlib.gzipSync(text))).equals(text))
  assert.ok(zlib.inflateSync(await ops.zlib(text)).equals(text))
  assert.ok(zlib.inflateRawSync(await ops.deflate(text)).equals(text))
  assert.ok(zlib.brotliDecompressSync(await ops.brotli(text, { quality: 3 })).equals(text))
  const error = await rejection(ops.gunzip(zlib.gzipSync(Buffer.alloc(1 << 20)), { maxOutput: 1000 }))
  assert.equal(error.code, 'ERR_OFFLOOP_TOO_LARGE')
  assert.equal((await rejection(ops.gunzip(Buffer.from('no gzip at all')))).code, 'ERR_OFFLOOP_CORRUPT')
  assert.equal((await rejection(ops.gzip(text, { level: 99 }))).code, 'ERR_OFFLOOP_INVALID')
})

test('another library verifies our password hashes', without('password.hash'), async () => {
  const { argon2Verify, bcryptVerify } = require('hash-wasm')
  const password = Buffer.from('correct horse battery staple')
  const phc = await ops.password.hash(password, { memoryKib: 1024, iterations: 1 })
  assert.match(phc, /^\$argon2id\$/)
  assert.equal(await argon2Verify({ password, hash: phc }), true)
  assert.equal(await argon2Verify({ password: 'wrong', hash: phc }), false)
  const bcrypt = await ops.password.hash(password, { algorithm: 'bcrypt', cost: 4 })
  assert.equal(await bcryptVerify({ password, hash: bcrypt }), true)
  assert.equal(await ops.password.verify(password, { hash: phc }), true)
  assert.equal(await ops.password.verify(Buffer.from('wrong'), { hash: phc }), false)
})

test('apache-arrow reads csv.toArrow', without('csv.to_arrow'), async () => {
  const { tableFromIPC } = require('apache-arrow')
  const table = tableFromIPC(await ops.csv.toArrow(Buffer.from('city,people\nOslo,709037\nBergen,291940\n')))
  assert.equal(table.numRows, 2)
  assert.deepEqual(
    table.schema.fields.map((field) => field.name),
    ['city', 'people'],
  )
  assert.deepEqual([...table.getChild('people')].map(Number), [709037, 291940])
})

test('pngjs and jpeg-js open our images', without('image.convert'), async () => {
  const { PNG } = require('pngjs')
  const jpeg = require('jpeg-js')
  const png = new PNG({ width: 300, height: 200 })
  for (let i = 0; i < png.data.length; i++) png.data[i] = i % 4 === 3 ? 255 : (i * 7) & 255
  const source = PNG.sync.write(png)
  const same = PNG.sync.read(Buffer.from(await ops.image.convert(source, { format: 'png' })))
  assert.deepEqual([same.width, same.height], [300, 200])
  assert.ok(same.data.equals(png.data))
  const small = jpeg.decode(await ops.image.thumbnail(source, { width: 150, format: 'jpeg' }))
  assert.deepEqual([small.width, small.height], [150, 100])
  assert.equal((await rejection(ops.image.thumbnail(source.subarray(0, 200), { width: 10 }))).code, 'ERR_OFFLOOP_CORRUPT')
  assert.equal((await rejection(ops.image.thumbnail(source, { width: 10, maxPixels: 100 }))).code, 'ERR_OFFLOOP_TOO_LARGE')
})

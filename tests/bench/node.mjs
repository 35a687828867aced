// Node.js: ours and the host's own in turns. Prints `R case who value`; the runner knows units and goals.
import crypto from 'node:crypto'
import fs from 'node:fs'
import { promisify } from 'node:util'
import { Worker, isMainThread, parentPort } from 'node:worker_threads'
import zlib from 'node:zlib'
import { ThreadPool, TransferBuffer } from '../../bindings-node/lib/index.mjs'
import { duel, print, single } from './load.mjs'

/** A megabyte of text that compresses about as CSV does. */
function text() {
  const lines = []
  let x = 12345
  for (let i = 0; lines.length * 40 < 1 << 20; i++) {
    x = (Math.imul(x, 1103515245) + 12345) >>> 0
    lines.push(`${i},${x % 1000},station-${x % 97},${(x / 2 ** 32).toFixed(6)},ok\n`)
  }
  return Buffer.from(lines.join('')).subarray(0, 1 << 20)
}

if (isMainThread) {
  const pool = new ThreadPool()
  const one = Buffer.alloc(1)
  const kilobyte = Buffer.alloc(1024, 7)
  const megabyte = text()
  const randomFill = promisify(crypto.randomFill)
  const fstat = promisify(fs.fstat)
  const gzip = promisify(zlib.gzip)

  await duel('node.noop', [['offloop', () => pool.run('noop')], ['randomFill', () => randomFill(one)], ['fstat', () => fstat(1)]], true)
  await duel('node.sha256_1k', [['offloop', () => pool.run('sha256', kilobyte)], ['subtle', () => crypto.subtle.digest('SHA-256', kilobyte)]], true)
  const batch = Array.from({ length: 1000 }, () => kilobyte)
  await single('node.sha256_1k_batch', [['offloop', () => pool.runMany('sha256', batch)], ['createHash', async () => batch.map((b) => crypto.createHash('sha256').update(b).digest())]])
  await single('node.sha256_1m', [['offloop', () => pool.run('sha256', megabyte)], ['subtle', () => crypto.subtle.digest('SHA-256', megabyte)], ['createHash', async () => crypto.createHash('sha256').update(megabyte).digest()]])
  // What the pool's threads do side by side, a loop that hashes by itself does one after another.
  const eight = (call) => () => Promise.all(Array.from({ length: 8 }, () => call(megabyte)))
  await single('node.sha256_8m', [['offloop', eight((b) => pool.run('sha256', b))], ['subtle', eight((b) => crypto.subtle.digest('SHA-256', b))], ['createHash', eight(async (b) => crypto.createHash('sha256').update(b).digest())]])
  await single('node.gzip_1m', [['offloop', () => pool.run('gzip', megabyte, { level: 6 })], ['zlib', () => gzip(megabyte, { level: 6 })]])
  print('node.gzip_1m.bytes', 'offloop', (await pool.run('gzip', megabyte, { level: 6 })).length)
  print('node.gzip_1m.bytes', 'zlib', (await gzip(megabyte, { level: 6 })).length)

  // 16 MiB to a worker thread and back: a token against a transferred ArrayBuffer.
  const worker = new Worker(new URL(import.meta.url))
  const answer = () => new Promise((resolve) => worker.once('message', resolve))
  let ours = TransferBuffer.alloc(16 << 20)
  let theirs = new ArrayBuffer(16 << 20)
  await single('node.transfer_16m', [
    ['offloop', async () => {
      worker.postMessage(ours.transfer())
      ours = TransferBuffer.receive(await answer())
    }],
    ['postMessage', async () => {
      worker.postMessage(theirs, [theirs])
      theirs = await answer()
    }],
  ], 51)
  await worker.terminate()
  await pool.close()
} else {
  parentPort.on('message', (message) => {
    if (typeof message === 'string') {
      const buffer = TransferBuffer.receive(message)
      buffer.bytes()[0] += 1
      parentPort.postMessage(buffer.transfer())
    } else {
      new Uint8Array(message)[0] += 1
      parentPort.postMessage(message, [message])
    }
  })
}

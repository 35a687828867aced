// Hashes and compresses this file off the event loop, which stays free meanwhile.
//
//   node examples/node/quickstart.mjs

import { readFile } from 'node:fs/promises'
import { OffloopError, ops } from 'offloop'

const data = await readFile(new URL(import.meta.url))
console.log('sha256', await ops.sha256(data, { encoding: 'hex' }))

const packed = await ops.gzip(data, { level: 9 })
console.log(`gzip ${data.length} -> ${packed.length} bytes`)

try {
  await ops.gunzip(packed, { maxOutput: 10 })
} catch (error) {
  if (!(error instanceof OffloopError)) throw error
  console.log(error.code, '-', error.message)
}

// Thumbnails of one photo with sharp: prints the median in ms as one JSON line and writes the last result for ssim.py.
// usage: node thumb_sharp.mjs PHOTO WIDTH ROUNDS [OUTPUT.png]      (run where `sharp` is installed)
import { createRequire } from 'node:module'
import { readFileSync, writeFileSync } from 'node:fs'

// Resolved from the working directory, so that the benchmark's own node_modules are used wherever this file lies.
const sharp = createRequire(process.cwd() + '/')('sharp')
const [photo, width = '200', rounds = '15', output] = process.argv.slice(2)
const data = readFileSync(photo)
// An operation cache would answer the second round from memory.
sharp.cache(false)
const thumbnail = () => sharp(data).rotate().resize({ width: Number(width) }).jpeg({ quality: 80 }).toBuffer()
for (let i = 0; i < 3; i++) await thumbnail()
const times = []
for (let i = 0; i < Number(rounds); i++) {
  const start = process.hrtime.bigint()
  await thumbnail()
  times.push(Number(process.hrtime.bigint() - start) / 1e6)
}
times.sort((a, b) => a - b)
if (output) writeFileSync(output, await sharp(data).rotate().resize({ width: Number(width) }).png().toBuffer())
console.log(JSON.stringify({ peer: 'sharp', version: sharp.versions.sharp, rounds: times.length, median_ms: times[times.length >> 1], min_ms: times[0] }))

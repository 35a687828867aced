// Makes a thumbnail of each picture of a folder, on all cores: `thumbnails.mjs FROM TO`. A file that is no picture costs its own line.
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join, parse } from 'node:path'
import { ThreadPool } from 'offloop'

const [from, to] = process.argv.slice(2)
if (to === undefined) {
  console.error('usage: thumbnails.mjs FROM TO')
  process.exit(2)
}
const AHEAD = 2 * availableParallelism() // pictures in memory at once

const pool = new ThreadPool()
await mkdir(to, { recursive: true })
const names = (await readdir(from)).sort()
const left = names.values()
const failed = []
let done = 0

async function work() {
  // All of these loops take from one iterator.
  for (const name of left) {
    try {
      const picture = await readFile(join(from, name))
      const { width, height, format } = await pool.run('image.probe', picture)
      const small = await pool.run('image.thumbnail', picture, { width: 160, height: 160, fit: 'inside', format: 'jpeg' })
      await writeFile(join(to, `${parse(name).name}.jpg`), small)
      console.log(`${name}: ${format} ${width} x ${height}, ${picture.length} bytes to ${small.length}`)
      done++
    } catch (error) {
      failed.push(`${name}: ${error.message}`)
    }
  }
}

await Promise.all(Array.from({ length: AHEAD }, work))
for (const line of failed) console.log(line)
console.log(`${done} of ${names.length} pictures`)
await pool.close()

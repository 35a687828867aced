// A program with a loader, whose pool has the same one.
import { WorkerPool } from '../../lib/index.mjs'

const pool = new WorkerPool(new URL(process.argv[2], import.meta.url))
console.log(await pool.run({ x: 1, y: 2 }))
await pool.close()

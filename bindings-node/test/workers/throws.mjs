import fs from 'node:fs'
import { workerData } from 'node:worker_threads'

if (workerData?.starts) fs.appendFileSync(workerData.starts, 'x')
if (!workerData?.unless || !fs.existsSync(workerData.unless)) throw new RangeError('this file is broken')
export default () => 'started'

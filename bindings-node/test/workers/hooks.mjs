import fs from 'node:fs'
import { workerData } from 'node:worker_threads'

let got = null
export async function init(context) {
  await new Promise(setImmediate)
  got = context
}
export default () => got
export async function teardown(context) {
  await new Promise(setImmediate)
  fs.appendFileSync(workerData, `${context.name}\n`)
}

// A file that calls of another pool name.
import fs from 'node:fs'
import { currentTask } from '../../lib/worker.mjs'

let inits = 0
let got = null
export async function init(context) {
  inits++
  got = context
}
export const teardown = (context) => context?.ended && fs.appendFileSync(context.ended, 'other\n')
export default (value) => ['other', value]
export const add = (a) => ['other add', a]
export const seen = () => [inits, got, currentTask().context, process.pid]

// What the tests of a cluster's pool run in it.
import { currentTask } from '../../lib/worker.mjs'

export default (task) => task.deep.concat(3)
export const pid = () => process.pid
export const add = (a, b) => a + b
export const double = (n) => n * 2
export const reversed = (bytes) => bytes.toReversed()

export function fails(why) {
  throw Object.assign(new RangeError(why, { cause: new Error('root') }), { code: 'E_USER', user: 17 })
}

export const holds = () => new Promise((_, reject) => currentTask().signal.addEventListener('abort', () => reject(new Error('let go'))))

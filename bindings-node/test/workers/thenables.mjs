// What a function may give that is no promise of the runtime's own, and looks like one.
// biome-ignore-all lint/suspicious/noThenProperty: what this file is for
import { setImmediate as turn } from 'node:timers/promises'

const thenable = (then) => ({ then })

export const add = (a, b) => a + b
export const later = async (value) => {
  for (let i = 0; i < 20; i++) await turn()
  return value
}
export const twice = () =>
  thenable((resolve) => {
    resolve('first')
    resolve('second')
  })
export const twiceLate = () =>
  thenable((resolve) => {
    resolve('first')
    setImmediate(resolve, 'of another call')
  })
export const both = () =>
  thenable((resolve, reject) => {
    resolve('first')
    reject(new Error('after it'))
  })
export const settlesThenThrows = () =>
  thenable((resolve) => {
    resolve('first')
    throw new Error('after it')
  })
export const throws = () =>
  thenable(() => {
    throw new Error('then throws')
  })
export const getterThrows = () => ({
  get then() {
    throw new Error('no then')
  },
})
export const rejects = () => thenable((_, reject) => reject(new TypeError('mine')))
export const nested = () => thenable((resolve) => resolve(Promise.resolve(thenable((resolve) => resolve(42)))))
export const isFunction = () =>
  Object.assign(
    () => {},
    thenable((resolve) => resolve('of a function')),
  )
export const imitates = () => Object.create(Promise.prototype)

/** Awaiting one of these does not call its `then`. */
export const overridden = () =>
  Object.assign(Promise.resolve('real'), {
    then(resolve) {
      resolve('first')
      resolve('second')
    },
  })
class Own extends Promise {
  then(resolved, rejected) {
    resolved?.('first')
    return super.then(resolved, rejected)
  }
}
export const subclass = () => Own.resolve('second')
class Plain extends Promise {}
export const plainSubclass = () => Plain.resolve('plain')
export async function* values() {
  yield 1
  yield 2
}
/** An iterator whose results are no objects. */
export const broken = () => ({ [Symbol.iterator]: () => ({ next: () => 5 }) })

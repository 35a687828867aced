// Errors that are hard to send, in threads and processes.
export default (value) => value
export const abortedFetch = () => fetch('http://127.0.0.1:9/', { signal: AbortSignal.abort() })
export const dataClone = () => structuredClone(() => {})
export function wrapped() {
  const cause = Object.assign(new DOMException('inner', { name: 'DataError', cause: new TypeError('innermost') }), { kept: [1] })
  throw Object.assign(new Error('outer', { cause }), { list: [cause] })
}
export function circular() {
  const error = Object.assign(new RangeError('circular'), { kept: 1, code: 'E_CIRCULAR' })
  throw Object.assign(error, { request: { error } })
}
export function circularCause() {
  const [a, b] = [Object.assign(new Error('a'), { kept: 1 }), new TypeError('b')]
  a.cause = b
  b.cause = a
  throw a
}
export function nest(n) {
  let error = new Error('innermost')
  for (let i = n - 1; i > 0; i--) error = Object.assign(new RangeError(`at ${i}`, { cause: error }), { i })
  return error
}
export function throwNested(n) {
  throw nest(n)
}
export function throwInside(n) {
  let error = new Error('innermost')
  for (let i = n - 1; i > 0; i--) error = Object.assign(new Error(`at ${i}`), { i, inner: error })
  throw error
}
export async function* yieldThenThrow(n) {
  yield 1
  throw nest(n)
}
export async function* yieldThenAbort() {
  yield 1
  throw new DOMException('enough', 'AbortError')
}
export const look = (e) => [e instanceof DOMException, e instanceof Error, e.name, e.message, e.code, e.stack.includes('errors.test.mjs')]

// Values that are written on one side and cannot be read on the other, or by a message only.
const deep = (n) => {
  let value = 0
  for (let i = 0; i < n; i++) value = [value]
  return value
}

export const identity = (value) => value
export const isModule = (value) => value.module instanceof WebAssembly.Module && value.module === value.again
export const compile = (bytes) => [{ module: new WebAssembly.Module(bytes) }]
export const depth = (value) => {
  let n = 0
  for (let at = value; Array.isArray(at); at = at[0]) n++
  return n
}
/** Deeper than the other side's stack. */
export const tooDeep = (n) => deep(n)
export const tooDeepBeside = (n) => [deep(n), new SharedArrayBuffer(1)]
export function* tooDeepAfter([n, beside]) {
  yield 'one'
  yield beside ? tooDeepBeside(n) : deep(n)
}
export const throwsDeep = (n) => {
  throw Object.assign(new Error('deep'), { value: deep(n) })
}

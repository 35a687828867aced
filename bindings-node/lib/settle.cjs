'use strict'
// Promises that code of the user gives.

// Of the beginning: what is on the prototype later may be the user's, too.
const { then: nativeThen } = Promise.prototype
const resolve = Promise.resolve.bind(Promise)

/**
 * What `await` would wait for in `value`, null where that is nothing: for `whenSettled`. A thenable of any other kind is taken as `await` takes it, so
 * that it settles once, an error of its `then` rejects, and a promise in its result is waited for. Throws what a getter of it throws.
 */
function promiseOf(value) {
  if ((typeof value !== 'object' && typeof value !== 'function') || value === null) return null
  const { then } = value
  if (typeof then !== 'function') return null
  return then === nativeThen ? value : resolve(value)
}

/** Calls one of both, once and later; throws if `promise`, of `promiseOf`, only looks like one. */
const whenSettled = (promise, fulfilled, rejected) => nativeThen.call(promise, fulfilled, rejected)

/** The result of an iterator's `next`, as a loop checks it. */
function checkNext(next) {
  if ((typeof next !== 'object' && typeof next !== 'function') || next === null) throw new TypeError('iterator result is not an object')
  return next
}

module.exports = { promiseOf, whenSettled, checkNext }

'use strict'
// `map` of a WorkerPool: calls for the items of an iterable, a bounded number of them ahead of whoever takes the results.

const { checkNext } = require('./settle.cjs')

/** Items that are under way or wait to be taken, as long as nothing else is said. */
const WINDOW = 256

/** Something that one side waits for and the other rings, at once if that was since the last wait. */
function bell() {
  let ring = null
  let rung = false
  return {
    wait: () =>
      new Promise((resolve) => {
        if (rung) resolve()
        else ring = resolve
        rung = false
      }),
    ring() {
      if (ring === null) rung = true
      else ring()
      ring = null
    },
  }
}

/**
 * Results of `call(item)` for each of `items`, in their order or as they come. At most `window` items are taken beyond what was yielded.
 * The first error ends it; `end()` is called when it ends, whichever way, for what is still under way.
 */
async function* mapping(call, items, window, ordered, end) {
  const iterator = items[Symbol.asyncIterator]?.() ?? items[Symbol.iterator]()
  /** In the order of the items, or of their ends: { state: 0 pending, 1 result, 2 error; value }. */
  const line = []
  const came = bell()
  const taken = bell()
  let held = 0
  let over = false
  let exhausted = false

  const begin = (item) => {
    const entry = { state: 0, value: undefined }
    const settled = (state) => (value) => {
      entry.state = state
      entry.value = value
      if (!ordered) line.push(entry)
      came.ring()
    }
    held++
    if (ordered) line.push(entry)
    call(item).then(settled(1), settled(2))
  }

  const pull = async () => {
    try {
      while (!over) {
        if (held >= window) {
          await taken.wait()
          continue
        }
        const next = iterator.next()
        const { done, value } = checkNext(typeof next?.then === 'function' ? await next : next)
        if (done || over) break
        begin(typeof value?.then === 'function' ? await value : value)
      }
    } catch (error) {
      // Of the items' own iterator, after the results of what it gave before.
      held++
      line.push({ state: 2, value: error })
    }
    exhausted = true
    came.ring()
  }

  let failed = false
  try {
    pull()
    for (;;) {
      if (line.length > 0 && line[0].state !== 0) {
        const { state, value } = line.shift()
        held--
        taken.ring()
        if (state === 2) {
          failed = true
          throw value
        }
        yield value
      } else if (exhausted && held === 0) return
      else await came.wait()
    }
  } finally {
    over = true
    const early = !exhausted
    taken.ring()
    end()
    // Before its end, as a loop that is left does; what it throws then matters only if nothing else went wrong.
    if (early) {
      const closed = (async () => iterator.return?.())()
      if (failed) closed.catch(() => {})
      else await closed
    }
  }
}

module.exports = { mapping, bell, WINDOW }

// Stands for a database: rows are safe once it was closed, and it takes none afterwards.
import { appendFile } from 'node:fs/promises'

export class Store {
  #rows = []
  #closed = false

  constructor(path) {
    this.path = path
  }

  add(row) {
    if (this.#closed) throw new Error('the store is closed')
    this.#rows.push(`${JSON.stringify(row)}\n`)
  }

  /** Resolves with how many rows it has written. */
  async close() {
    this.#closed = true
    await appendFile(this.path, this.#rows.join(''))
    return this.#rows.length
  }
}

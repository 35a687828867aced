import { ThreadWorker } from 'poolifier'
import echo, { later, noop } from './workers_task.mjs'

export default new ThreadWorker({ echo, noop, later })

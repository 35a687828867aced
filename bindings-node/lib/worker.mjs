// One implementation for both module systems, so that they share their state.
import worker from './worker.cjs'

export const { currentTask, currentWorker, move } = worker

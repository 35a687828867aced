// One implementation for both module systems, so that they share their state.
import cluster from './cluster.cjs'

export const { disconnect, fork, isMaster, isPrimary, isWorker, SCHED_NONE, SCHED_RR, setupMaster, setupPrimary, Worker, worker, workers } =
  cluster
export default cluster

import type { Cluster } from 'node:cluster'

/** As `node:cluster`; what is not there, and what is meant otherwise: docs/cluster.md. */
declare const cluster: Cluster
export default cluster
export type * from 'node:cluster'
export const disconnect: Cluster['disconnect']
export const fork: Cluster['fork']
export const isMaster: Cluster['isMaster']
export const isPrimary: Cluster['isPrimary']
export const isWorker: Cluster['isWorker']
export const SCHED_NONE: Cluster['SCHED_NONE']
export const SCHED_RR: Cluster['SCHED_RR']
export const setupMaster: Cluster['setupMaster']
export const setupPrimary: Cluster['setupPrimary']
export const worker: Cluster['worker']
export const workers: Cluster['workers']

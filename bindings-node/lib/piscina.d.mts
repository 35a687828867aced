import Piscina from './piscina.js'

export default Piscina
export { Piscina }
export {
  ArrayTaskQueue,
  FixedQueue,
  isWorkerThread,
  move,
  queueOptionsSymbol,
  transferableSymbol,
  valueSymbol,
  version,
  workerData,
} from './piscina.js'
export type {
  AbortSignalAny,
  FilledOptions,
  Options,
  PiscinaHistogram,
  PiscinaHistogramSummary,
  PiscinaLoadBalancer,
  PiscinaTask,
  PiscinaWorker,
  RunOptions,
  Task,
  TaskQueue,
  Transferable,
} from './piscina.js'

// One implementation for both module systems, so that classes are the same in both.
import Piscina from './piscina.cjs'

export default Piscina
export const {
  ArrayTaskQueue,
  FixedQueue,
  isWorkerThread,
  move,
  queueOptionsSymbol,
  transferableSymbol,
  valueSymbol,
  version,
  workerData,
} = Piscina
export { Piscina }

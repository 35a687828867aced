import Piscina from '../../../lib/piscina.mjs'

const pool = new Piscina({ filename: new URL('functions.mjs', import.meta.url).href, maxThreads: 1 })

export default async (task) => [Piscina.isWorkerThread, await pool.run(task)]
export const leave = () => pool.close()

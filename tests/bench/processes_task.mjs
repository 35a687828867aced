// What the benchmark of ProcessPool runs: a worker file of ours and of piscina, or the program of a child of `fork`.
export default (value) => value
export const length = (bytes) => bytes.byteLength

if (process.send) process.on('message', ({ id, value, short }) => process.send({ id, value: short ? value.byteLength : value }))

// Writes as it starts, and when it is asked to.
process.stdout.write('first\n')
export const write = (stream, text) => new Promise((resolve) => process[stream].write(text, () => resolve(text.length)))
export const print = (stream, text) => {
  process[stream].write(text)
  return text.length
}

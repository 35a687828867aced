export default (value) => value
export const noop = () => {}
export const later = async (value) => {
  await null
  return value
}

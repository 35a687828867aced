export default Promise.resolve((x) => ['esm', x])

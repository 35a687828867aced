// Without a loader a syntax error.
interface Point {
  x: number
  y: number
}
export default (point: Point): number => point.x + point.y
export function* steps(n: number): Generator<number> {
  for (let i: number = 0; i < n; i++) yield i
}

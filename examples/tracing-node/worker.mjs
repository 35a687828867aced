// Runs on worker threads.
import { setTimeout as sleep } from 'node:timers/promises'

const PRICES = { chair: 40, desk: 120 }

export async function price(item) {
  await sleep(item === 'sofa' ? 60_000 : 30)
  if (!(item in PRICES)) throw new Error(`no price for ${item}`)
  return PRICES[item]
}

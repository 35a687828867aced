// A loader as `tsx` is one, for the little TypeScript that the tests have.
import { register } from 'node:module'

register(new URL('./typescript-hooks.mjs', import.meta.url))

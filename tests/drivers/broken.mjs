// A worker file that does not load.
throw new Error('no model')

import { basename, resolve } from 'node:path';
import { modelPath } from '@llamavid/tiny';

/** What the embedded model is called. */
export const EMBEDDED = 'tiny';

/** Where a model is: a folder is taken as it is, `tiny` is the embedded model; a folder of that name is `./tiny`. */
export function locateModel(nameOrFolder: string): { name: string; folder: string } {
  if (nameOrFolder === EMBEDDED) return { name: EMBEDDED, folder: modelPath };
  return { name: basename(resolve(nameOrFolder)), folder: nameOrFolder };
}

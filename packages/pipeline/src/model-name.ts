import { existsSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';
import { parseModelName, pulledFolder } from '@llamavid/hub/pulled';
import { modelPath } from '@llamavid/tiny';

/** What the embedded model is called. */
export const EMBEDDED = 'tiny';

/**
 * Where a model is: `tiny` is the embedded one (a folder of that name is `./tiny`), a folder is taken as it is, and
 * anything else is the name of a model that was pulled from the hub.
 *
 * @throws `MODEL_NOT_FOUND` if it is none of these. Nothing is fetched here: that takes gigabytes, and is `llamavid pull`'s.
 */
export function locateModel(nameOrFolder: string): { name: string; folder: string } {
  if (nameOrFolder === EMBEDDED) return { name: EMBEDDED, folder: modelPath };
  const folder = existsSync(nameOrFolder) ? nameOrFolder : pulledFolder(nameOrFolder);
  if (folder === undefined) {
    const pull = parseModelName(nameOrFolder) === undefined ? 'organisation/name' : nameOrFolder;
    throw new LlamaVidError(
      'MODEL_NOT_FOUND',
      `${nameOrFolder}: there is no such folder, and no model of this name was pulled`,
      {
        hint: `Give the folder that holds config.json and the weights; \`llamavid pull ${pull}\` fetches a model of the Hugging Face hub.`,
      },
    );
  }
  return { name: basename(resolve(folder)), folder };
}

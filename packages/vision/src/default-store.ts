// Where features are stored when nobody says where, and how much.
import { homedir, platform } from 'node:os';
import { join, resolve } from 'node:path';
import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';

/** Bytes that the usual store may take: some eight hours of video with the published models. */
const USUAL_LIMIT = 20e9;

export interface StoreSetting {
  folder: string;
  /** Bytes that it may take; what was not used for longest goes. */
  limitBytes: number;
}

/**
 * What the environment says: `LLAMAVID_STORE` is a folder or `none`, `LLAMAVID_STORE_LIMIT` a size such as `50GB`. Without them
 * the store is in the user's folder of caches and takes up to 20 GB. Undefined for `none`.
 *
 * @throws `INVALID_ARGUMENT` for a size that is none.
 */
export function defaultStore(): StoreSetting | undefined {
  const folder = process.env['LLAMAVID_STORE'] || join(cacheFolder(), 'features');
  const limitBytes = parseBytes('LLAMAVID_STORE_LIMIT', process.env['LLAMAVID_STORE_LIMIT']) ?? USUAL_LIMIT;
  return folder === 'none' ? undefined : { folder: resolve(folder), limitBytes };
}

/**
 * Bytes of a size such as `800MB`, `20GB` or `1e9`; `name` is what errors call it.
 *
 * @throws `INVALID_ARGUMENT` for another text.
 */
export function parseBytes(name: string, text: string | undefined): number | undefined {
  if (text === undefined || text === '') return undefined;
  const [, number = '', unit = ''] = /^([\d.]+(?:e\d+)?)\s*([kMGT]?)B?$/i.exec(text.trim()) ?? [];
  const factor = { '': 1, k: 1e3, m: 1e6, g: 1e9, t: 1e12 }[unit.toLowerCase()] ?? Number.NaN;
  const bytes = Math.floor(Number(number || Number.NaN) * factor);
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new LlamaVidError('INVALID_ARGUMENT', `${name} is ${text}, which is no size`, {
    hint: 'Give bytes, or a number with kB, MB, GB or TB behind it.',
  });
}

/** @internal Where hashes of large files are remembered. */
export function digestFolder(): string {
  return join(cacheFolder(), 'digests');
}

function cacheFolder(): string {
  const usual =
    platform() === 'win32'
      ? process.env['LOCALAPPDATA'] || join(homedir(), 'AppData', 'Local')
      : platform() === 'darwin'
        ? join(homedir(), 'Library', 'Caches')
        : join(homedir(), '.cache');
  return join(process.env['XDG_CACHE_HOME'] || usual, 'llamavid');
}

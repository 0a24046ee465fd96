// What the environment says, in the variables of Python's huggingface_hub, so that one setting serves both.
import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';

export interface HubSettings {
  /** Base address, without a slash at its end. */
  readonly endpoint: string;
  readonly token: string | undefined;
  /** Whether the cache alone may be used. */
  readonly offline: boolean;
  /** Milliseconds without a byte after which a connection counts as broken. */
  readonly silenceMs: number;
}

/** @throws `INVALID_ARGUMENT` for a variable that cannot be used. */
export function hubSettings(): HubSettings {
  const endpoint = process.env['HF_ENDPOINT'] || 'https://huggingface.co';
  if (!/^https?:$/.test(URL.parse(endpoint)?.protocol ?? '')) {
    throw new LlamaVidError('INVALID_ARGUMENT', `HF_ENDPOINT is ${endpoint}, which is no http address`, {
      hint: 'Give the address of the hub or of a mirror, such as https://huggingface.co.',
    });
  }
  const seconds = Number(process.env['HF_HUB_DOWNLOAD_TIMEOUT'] || 30);
  if (!(seconds > 0 && seconds <= 86_400)) {
    throw new LlamaVidError('INVALID_ARGUMENT', `HF_HUB_DOWNLOAD_TIMEOUT is not a number of seconds`);
  }
  return {
    endpoint: endpoint.replace(/\/+$/, ''),
    token: token(),
    offline: /^(1|on|yes|true)$/i.test(
      process.env['HF_HUB_OFFLINE'] || process.env['TRANSFORMERS_OFFLINE'] || '',
    ),
    silenceMs: seconds * 1000,
  };
}

/** Where repositories are cached. */
export function hubCache(): string {
  return folder(process.env['HF_HUB_CACHE'] || process.env['HUGGINGFACE_HUB_CACHE'] || join(home(), 'hub'));
}

/** Where files are cached that come from elsewhere than the hub. */
export function fileCache(): string {
  return folder(join(process.env['HF_ASSETS_CACHE'] || join(home(), 'assets'), 'llamavid'));
}

function home(): string {
  return (
    process.env['HF_HOME'] || join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'huggingface')
  );
}

/** A shell leaves `~` as it is where a variable is set in a file. */
function folder(path: string): string {
  return resolve(path.replace(/^~(?=[/\\]|$)/, homedir()));
}

function token(): string | undefined {
  const path = folder(process.env['HF_TOKEN_PATH'] || join(home(), 'token'));
  const written = process.env['HF_TOKEN'] || process.env['HUGGING_FACE_HUB_TOKEN'] || readIfThere(path);
  return written.trim() || undefined;
}

function readIfThere(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return '';
    throw new LlamaVidError('INVALID_ARGUMENT', `${path} cannot be read: ${(error as Error).message}`, {
      hint: 'Make the file with the token readable, or set HF_TOKEN.',
      cause: error,
    });
  }
}

import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { LlamaVidError } from '@llamavid/errors';
import type * as Binding from './binding.js';

type Addon = typeof Binding;

/** The platform's name in file and package names: `linux-x64-gnu`, `darwin-arm64`, `win32-x64-msvc`. */
function platformName(): string {
  const name = `${process.platform}-${process.arch}`;
  if (process.platform === 'win32') return `${name}-msvc`;
  return process.platform === 'linux' ? `${name}-${usesMusl() ? 'musl' : 'gnu'}` : name;
}

/** The script says which C library it belongs to; images without it have glibc. */
function usesMusl(): boolean {
  try {
    return readFileSync('/usr/bin/ldd', 'latin1').includes('musl');
  } catch {
    return false;
  }
}

/**
 * Loads the addon: `LLAMAVID_NATIVE_PATH` if it is set, else the one that this source tree built, else that of the platform's
 * package.
 */
export function loadAddon(): Addon {
  const require = createRequire(import.meta.url);
  const platform = platformName();
  const chosen = process.env['LLAMAVID_NATIVE_PATH'];
  const built = fileURLToPath(new URL(`../llamavid.${platform}.node`, import.meta.url));
  const published = `@llamavid/native-${platform}`;
  const source = chosen || (existsSync(built) ? built : published);
  try {
    return require(source);
  } catch (cause) {
    throw new LlamaVidError(
      'DEVICE_UNAVAILABLE',
      `the native addon ${source} cannot be loaded on ${platform}`,
      {
        hint: advice(source === published, published, cause),
        cause,
      },
    );
  }
}

function advice(isPublished: boolean, published: string, cause: unknown): string {
  const reason = cause instanceof Error ? cause.message.split('\n')[0] : String(cause);
  if (isPublished && (cause as NodeJS.ErrnoException).code === 'MODULE_NOT_FOUND') {
    return `Install ${published} (it is an optional dependency, which \`--omit=optional\` leaves out); other platforms need a build from source.`;
  }
  return `The system says: ${reason}`;
}

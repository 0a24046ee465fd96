import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { LlamaVidError } from '@llamavid/errors';
import type * as Binding from './binding.js';

const require = createRequire(import.meta.url);

/** `linux-x64-gnu`, `darwin-arm64`, …: how the addon's files and packages are named. */
function platformName(): string {
  const { platform, arch } = process;
  if (platform === 'linux') return `linux-${arch}-${usesMusl() ? 'musl' : 'gnu'}`;
  if (platform === 'win32') return `win32-${arch}-msvc`;
  return `${platform}-${arch}`;
}

function usesMusl(): boolean {
  try {
    return readFileSync('/usr/bin/ldd', 'latin1').includes('musl');
  } catch {
    return false;
  }
}

/** Loads the addon: the one named by `LLAMAVID_NATIVE_PATH`, one built in this checkout, or the platform's package. */
export function loadAddon(): typeof Binding {
  const name = platformName();
  const named = process.env['LLAMAVID_NATIVE_PATH'];
  const local = fileURLToPath(new URL(`../llamavid.${name}.node`, import.meta.url));
  const place = named ?? (existsSync(local) ? local : `@llamavid/native-${name}`);
  try {
    return require(place) as typeof Binding;
  } catch (cause) {
    throw new LlamaVidError('INTERNAL', `the addon for ${name} cannot be loaded from ${place}: ${String(cause)}`, {
      hint: 'Install without --omit=optional, or build it from the source (npm start in the repository).',
      cause,
    });
  }
}

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

/** The addon of this process. */
export interface LoadedAddon {
  readonly binding: Addon;
  /** Its path or its package. */
  readonly source: string;
  /** Why it and no other, in words. */
  readonly reason: string;
}

const require = createRequire(import.meta.url);

/**
 * Loads the addon: `LLAMAVID_NATIVE_PATH` if it is set; else, where a package with CUDA is installed and everything that it needs is
 * there, that one; else the one that this source tree built; else that of the platform's package.
 */
export function loadAddon(): LoadedAddon {
  const chosen = process.env['LLAMAVID_NATIVE_PATH'];
  if (chosen) return { binding: load(chosen), source: chosen, reason: 'LLAMAVID_NATIVE_PATH names it' };
  const platform = platformName();
  const built = fileURLToPath(new URL(`../llamavid.${platform}.node`, import.meta.url));
  const source = existsSync(built) ? built : `@llamavid/native-${platform}`;
  const binding = load(source);
  const cuda = chooseCuda(binding);
  return typeof cuda === 'string' ? { binding, source, reason: cuda } : cuda;
}

/** The addon with CUDA that runs here, or why there is none. The packages are this one's optional peers. */
function chooseCuda(cpu: Addon): LoadedAddon | string {
  const { version, peerDependencies } = require('../package.json');
  const installed = Object.keys(peerDependencies).filter(resolves);
  const [first] = installed;
  if (first === undefined) return 'no package with CUDA is installed';
  const { packages, devices, problem } = cpu.cudaSupport();
  if (problem !== undefined) return `${first} is installed, but ${problem}`;
  const source = packages.find((name) => installed.includes(name));
  if (source === undefined) return `${installed.join(' and ')} does not run on ${devices[0]}`;
  const found = require(`${source}/package.json`).version;
  if (found !== version) return `${source} has the version ${found}, and ${version} is needed`;
  try {
    return { binding: require(source), source, reason: `it runs on ${devices[0]}` };
  } catch (cause) {
    return `${source} cannot be loaded: ${systemReason(cause)}`;
  }
}

function resolves(name: string): boolean {
  try {
    require.resolve(name);
    return true;
  } catch {
    return false;
  }
}

function load(source: string): Addon {
  try {
    return require(source);
  } catch (cause) {
    throw new LlamaVidError(
      'DEVICE_UNAVAILABLE',
      `the native addon ${source} cannot be loaded on ${platformName()}`,
      { hint: advice(source, cause), cause },
    );
  }
}

function advice(source: string, cause: unknown): string {
  if (source.startsWith('@') && (cause as NodeJS.ErrnoException).code === 'MODULE_NOT_FOUND') {
    return `Install ${source} (it is an optional dependency, which \`--omit=optional\` leaves out); other platforms need a build from source.`;
  }
  return `The system says: ${systemReason(cause)}`;
}

function systemReason(cause: unknown): string {
  const [line = ''] = (cause instanceof Error ? cause.message : String(cause)).split('\n');
  // An addon with CUDA calls functions that nothing provides before its first use.
  const eager = process.env['LD_BIND_NOW'] && line.includes('undefined symbol');
  return eager ? `${line}; unset LD_BIND_NOW, with which no addon with CUDA can be loaded` : line;
}

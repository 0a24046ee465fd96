/** Where the programs of this folder find their parts: in the repository, or in a bundle, whose folders lie alike. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { LlamaVidError } from '../../packages/errors/dist/index.js';
import {
  callNative,
  cudaSupport,
  Device,
  loadedAddon,
  ncclLibrary,
} from '../../packages/native/dist/index.js';

export const root = join(import.meta.dirname, '../..');

/** How these programs end. */
export const ended = { passed: 0, failed: 1, usage: 2, noDevice: 3 } as const;

const target = 'x86_64-unknown-linux-gnu/release';

/** A program of the core. Built by `pnpm build` for the CPU and by `pnpm build:cuda` for graphics processors; a bundle brings it. */
export function program(name: string, device: string): string | undefined {
  const built = device.startsWith('cuda') ? ['cuda-sm_90a', 'cuda-sm_89', 'cuda-sm_80'] : ['.'];
  const folders = ['programs', ...built.map((folder) => join('target', folder, target))];
  return folders.map((folder) => join(root, folder, name)).find((path) => existsSync(path));
}

/** The device, as it is shown; undefined, with the reason written out, when it cannot be used. */
export function describe(device: string): string | undefined {
  try {
    using opened = callNative(() => Device.open(device));
    if (opened.kind === 'cpu') return opened.name;
    const index = Number(/\d+/.exec(opened.name)?.[0] ?? 0);
    return `${opened.name}: ${cudaSupport().devices[index]}`;
  } catch (error) {
    const { message, hint } = error as LlamaVidError;
    console.error(`${message}${hint === undefined ? '' : `\nhint: ${hint}`}`);
    console.error(`The addon is ${loadedAddon.source}: ${loadedAddon.reason}.`);
    return undefined;
  }
}

/** Two devices that can share each layer of a language model; none, with the reason written out, where there are not. `what` is skipped then. */
export function twoDevices(device: string, what: string): string | undefined {
  if (device === 'cpu') return 'cpu,cpu';
  try {
    const count = cudaSupport().devices.length;
    if (count < 2) throw new Error(`there is ${count === 1 ? 'one graphics processor' : 'none'}`);
    callNative(ncclLibrary);
    return 'cuda:0,cuda:1';
  } catch (error) {
    console.log(`skipped: ${what}: ${(error as Error).message}`);
    return undefined;
  }
}

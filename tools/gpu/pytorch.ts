/** The reference's way: PyTorch, a module at a time, on the same device. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { objects, run } from '../bench/peers/process.ts';

/** What a device does at most. */
export interface Limits {
  /** Multiplications and additions a second, each counted. */
  readonly multiply: number;
  /** Bytes of memory read a second. */
  readonly read: number;
}

export class PyTorch {
  readonly versions: Readonly<Record<string, string>>;
  readonly #python: string;
  readonly #device: string;

  private constructor(python: string, device: string, version: string) {
    this.#python = python;
    this.#device = device;
    this.versions = { PyTorch: version };
  }

  /** Undefined where there is no PyTorch that can use the device. */
  static find(python: string, device: string): PyTorch | undefined {
    const place = `torch.zeros(1, device=${JSON.stringify(device)})`;
    try {
      const text = execFileSync(python, ['-c', `import torch; ${place}; print(torch.__version__)`], {
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'ignore'],
      });
      return new PyTorch(python, device, text.trim());
    } catch {
      return undefined;
    }
  }

  /** Runs a program of this folder or of the peers' on a task; gives the objects that it writes. */
  async run<T>(script: string, task: object): Promise<T[]> {
    const text = JSON.stringify({ ...task, device: this.#device });
    const { stdout } = await run(this.#python, this.#python, [join(import.meta.dirname, script), text]);
    return objects<T>(stdout);
  }

  async limits(size: 'full' | 'tiny'): Promise<Limits | undefined> {
    const task = size === 'full' ? { rows: 8192, bytes: 2 ** 31 } : { rows: 256, bytes: 2 ** 24 };
    return (await this.run<Limits>('limits.py', task))[0];
  }
}

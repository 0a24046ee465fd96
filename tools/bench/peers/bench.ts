/** What every row of the comparison works with. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, renameSync, rmSync, statfsSync } from 'node:fs';
import { totalmem } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import type { Comparison } from './comparison.ts';
import type { PeerFolder } from './peer-folder.ts';
import { type Finished, objects, run } from './process.ts';

const root = join(import.meta.dirname, '../../..');

/** What the caller chose. */
export interface Choice {
  readonly threads: number;
  readonly sizes: readonly string[];
  readonly formats: readonly string[];
  /** Whether generated weights stay for the next run. */
  readonly keep: boolean;
}

/** Of all threads that are compared. */
interface Limits {
  /** Gigabytes a second. */
  readonly read: number;
  /** Billions of multiplications and additions in 32 bits a second, each counted. */
  readonly multiply: number;
  /** Whether weights in blocks are read quicker with their rows interleaved. */
  readonly interleaving: boolean;
}

/** A part of the table: comparisons that are made one after the other, so that their weights need not exist together. */
export type Row = (bench: Bench) => AsyncGenerator<Comparison, void, void>;

/** Programs, weights and threads for a row. */
export class Bench {
  readonly peers: PeerFolder;
  readonly choice: Choice;
  /** Comparisons that this machine is too small for, and why. */
  readonly skipped: string[] = [];
  #limits: Limits | undefined;
  readonly #built = join(root, 'target', hostTarget(), 'release');

  constructor(peers: PeerFolder, choice: Choice) {
    this.peers = peers;
    this.choice = choice;
    const programs = ['--bin', 'llamavid-scale', '--example', 'speed'];
    const flags = ['--release', '--locked', '--quiet', '--target', hostTarget(), '--workspace', ...programs];
    execFileSync('cargo', ['build', ...flags], { cwd: root, stdio: 'inherit' });
  }

  /** Our program for one task, as `crates/llamavid-runtime/examples/speed.rs` reads it. */
  async ours<T>(task: object): Promise<Finished & { objects: T[] }> {
    const done = await this.measured(join(this.#built, 'examples/speed'), [JSON.stringify(task)]);
    return { ...done, objects: objects<T>(done.stdout) };
  }

  /** A program with as many threads as are compared, whichever way it takes their number. */
  measured(program: string, args: readonly string[]): Promise<Finished> {
    const count = String(this.choice.threads);
    const threads = {
      LLAMAVID_THREADS: count,
      RAYON_NUM_THREADS: count,
      OMP_NUM_THREADS: count,
      MKL_NUM_THREADS: count,
    };
    return run(this.peers.python(), program, args, threads);
  }

  /** Random weights, as `tools/scale` writes them. */
  weights(name: string, bytes: number, ...kind: readonly string[]): Material | undefined {
    const scale = join(this.#built, 'llamavid-scale');
    const reread = join(import.meta.dirname, 'reread.py');
    return this.material(name, bytes, (path) => {
      execFileSync(scale, [path, ...kind], { stdio: 'inherit' });
      execFileSync(this.peers.python(), [reread, path]);
    });
  }

  /** What this machine can do at most, measured once. */
  async limits(): Promise<Limits> {
    this.#limits ??= (await this.ours<Limits>({ kind: 'limits' })).objects[0];
    if (this.#limits === undefined) throw new Error('the limits of the machine were not measured');
    return this.#limits;
  }

  /**
   * Something large for one comparison: a folder or file that is written if it is not there, and goes when the returned thing is
   * disposed of.
   *
   * @param bytes about how large it is; undefined is returned where disk or memory are too small for it
   */
  material(name: string, bytes: number, write: (path: string) => void): Material | undefined {
    const folder = join(this.peers.path, 'material');
    mkdirSync(folder, { recursive: true });
    const path = join(folder, name);
    const gigabytes = (bytes / 1e9).toFixed(1);
    if (bytes > 0.8 * totalmem()) {
      this.skipped.push(`${name}: its ${gigabytes} GB do not fit into this machine's memory`);
      return undefined;
    }
    if (!existsSync(path)) {
      const { bavail, bsize } = statfsSync(folder);
      if (bytes > 0.9 * bavail * bsize) {
        this.skipped.push(`${name}: there is no room for its ${gigabytes} GB in ${folder}`);
        return undefined;
      }
      console.error(`writing ${path}`);
      const unfinished = join(folder, `unfinished-${name}`);
      rmSync(unfinished, { recursive: true, force: true });
      write(unfinished);
      // Or the system writes them to the disk while they are measured.
      execFileSync('sync');
      renameSync(unfinished, path);
    }
    const { keep } = this.choice;
    return {
      path,
      [Symbol.dispose]() {
        if (!keep) rmSync(path, { recursive: true, force: true });
      },
    };
  }
}

/** What a comparison works on; deleted when it is disposed of, unless it is to be kept. */
export type Material = Disposable & { readonly path: string };

function hostTarget(): string {
  return execFileSync('rustc', ['--print', 'host-tuple'], { encoding: 'utf8' }).trim();
}

/** The commit that is measured, and whether files differ from it. */
export function commit(): string {
  const git = (...args: string[]) => execFileSync('git', args, { cwd: root, encoding: 'utf8' }).trim();
  const changed = git('status', '--porcelain', '--untracked-files=no') !== '';
  return `${git('rev-parse', '--short', 'HEAD')}${changed ? ', changed' : ''}`;
}

/** `LLAMAVID_CPU` forces a path of our kernels. */
export const forcedPath = process.env['LLAMAVID_CPU'];

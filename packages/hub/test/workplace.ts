// A cache folder and a hub for one test, and the environment that leads there.
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';
import { type PulledModel, type PullOptions, pull } from '../src/index.js';
import { HubServer } from './hub-server.js';

const VARIABLES = [
  ...['HF_HOME', 'HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'HF_ASSETS_CACHE', 'XDG_CACHE_HOME'],
  ...['HF_ENDPOINT', 'HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_TOKEN_PATH', 'HF_HUB_OFFLINE'],
  ...['TRANSFORMERS_OFFLINE', 'HF_HUB_DOWNLOAD_TIMEOUT', 'LLAMAVID_CATALOGUE'],
];

export class Workplace implements AsyncDisposable {
  readonly home = mkdtempSync(join(tmpdir(), 'llamavid-hub-'));
  readonly server: HubServer;
  readonly #before = VARIABLES.map((name) => [name, process.env[name]] as const);

  private constructor(server: HubServer) {
    this.server = server;
    for (const name of VARIABLES) delete process.env[name];
    process.env['HF_HOME'] = this.home;
    process.env['HF_ENDPOINT'] = server.url;
  }

  static async start(): Promise<Workplace> {
    return new Workplace(await HubServer.start());
  }

  get hub(): string {
    return join(this.home, 'hub');
  }

  /** The cache folder of a repository. */
  repository(name: string): string {
    return join(this.hub, `models--${name.replaceAll('/', '--')}`);
  }

  blob(name: string, hash: string): string {
    return join(this.repository(name), 'blobs', hash);
  }

  /** Pulls without waiting between attempts. */
  pull(name: string, options: PullOptions = {}): Promise<PulledModel> {
    return pull(name, { retryDelayMs: 1, ...options });
  }

  /** The error of a pull that fails. */
  async failure(name: string, options: PullOptions = {}): Promise<LlamaVidError> {
    try {
      await this.pull(name, options);
    } catch (error) {
      if (LlamaVidError.is(error)) return error;
      throw error;
    }
    throw new Error(`pulling ${name} did not fail`);
  }

  /** All files below the home, without locks. */
  files(folder = this.home): string[] {
    return readdirSync(folder, { recursive: true, encoding: 'utf8' })
      .filter((name) => !name.includes('.locks') && !statSync(join(folder, name)).isDirectory())
      .sort();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server[Symbol.asyncDispose]();
    for (const [name, value] of this.#before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
    rmSync(this.home, { recursive: true, force: true });
  }
}

/** Bytes that repeat nowhere. */
export function noise(bytes: number, seed = 1): Buffer {
  const data = Buffer.alloc(bytes);
  let state = seed;
  for (let index = 0; index < bytes; index += 1) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    data[index] = state >>> 24;
  }
  return data;
}

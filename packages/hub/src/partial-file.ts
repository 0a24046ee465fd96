import { createHash, type Hash } from 'node:crypto';
import { type FileHandle, mkdir, open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { onDisk } from './disk.js';

/** A checksum; `git-sha1` is that of git's blobs, which counts the length too. */
export interface Digest {
  readonly algorithm: 'sha256' | 'git-sha1' | 'md5';
  /** Lower case. */
  readonly hex: string;
}

/** A file that is being fetched: bytes are only ever added at its end, and it has a name of its own until it is whole. */
export class PartialFile implements AsyncDisposable {
  readonly #path: string;
  readonly #handle: FileHandle;
  readonly #bytes: number;
  readonly #digest: Digest | undefined;
  #hash: Hash | undefined;
  #offset = 0;
  #inherited = false;

  private constructor(path: string, handle: FileHandle, bytes: number, digest: Digest | undefined) {
    this.#path = path;
    this.#handle = handle;
    this.#bytes = bytes;
    this.#digest = digest;
    this.#hash = this.#newHash();
  }

  /** Opens or makes the partial file of a file of `bytes` bytes; `keep` says whether what is there may be used. */
  static async open(
    path: string,
    bytes: number,
    digest: Digest | undefined,
    keep: boolean,
  ): Promise<PartialFile> {
    const handle = await onDisk(path, async () => {
      await mkdir(dirname(path), { recursive: true });
      return await open(path, 'a+');
    });
    const partial = new PartialFile(path, handle, bytes, digest);
    try {
      await onDisk(path, () => partial.#takeOver(keep));
    } catch (error) {
      await handle.close();
      throw error;
    }
    return partial;
  }

  /** Bytes that are there. */
  get offset(): number {
    return this.#offset;
  }

  /** Whether some of its bytes were there when it was opened. */
  get inherited(): boolean {
    return this.#inherited;
  }

  async append(chunk: Uint8Array): Promise<void> {
    await onDisk(this.#path, async () => {
      for (let done = 0; done < chunk.length; ) {
        done += (await this.#handle.write(chunk, done)).bytesWritten;
      }
    });
    this.#hash?.update(chunk);
    this.#offset += chunk.length;
  }

  /** Begins anew. */
  async restart(): Promise<void> {
    if (this.#offset > 0) await onDisk(this.#path, () => this.#handle.truncate(0));
    this.#hash = this.#newHash();
    this.#offset = 0;
    this.#inherited = false;
  }

  /** Whether its checksum is the expected one. Nothing can be added behind this. */
  isRight(): boolean {
    return this.#hash?.digest('hex') === this.#digest?.hex;
  }

  /** Gives it its own name. */
  async finish(path: string): Promise<void> {
    await onDisk(path, async () => {
      await this.#handle.sync();
      await rename(this.#path, path);
    });
  }

  async remove(): Promise<void> {
    await rm(this.#path, { force: true });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }

  async #takeOver(keep: boolean): Promise<void> {
    const { size } = await this.#handle.stat();
    if (size === 0) return;
    if (!keep || size > this.#bytes) return await this.#handle.truncate(0);
    if (this.#hash !== undefined) {
      const stream = this.#handle.createReadStream({ start: 0, autoClose: false, highWaterMark: 1 << 20 });
      for await (const chunk of stream) this.#hash.update(chunk);
    }
    this.#offset = size;
    this.#inherited = true;
  }

  #newHash(): Hash | undefined {
    switch (this.#digest?.algorithm) {
      case undefined:
        return undefined;
      case 'git-sha1':
        return createHash('sha1').update(`blob ${this.#bytes}\0`);
      case 'sha256':
      case 'md5':
        return createHash(this.#digest.algorithm);
    }
  }
}

import { mkdir, readFile, stat, statfs } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';
import { type Catalogue, readCatalogue } from './catalogue.js';
import { Connection, throwIfAborted } from './connection.js';
import { diskFull, link, onDisk, writeWhole } from './disk.js';
import {
  bytesBegun,
  type CacheFile,
  type FileProgress,
  fetchFile,
  isCached,
  type Source,
} from './fetch-file.js';
import { assemble } from './model-folder.js';
import { type Part, PartFinder, type RepositoryPart } from './parts.js';
import { repositoryFolder } from './pulled.js';
import { hubSettings } from './settings.js';

export interface PullOptions {
  /** What is known of models. Default: the built-in catalogue with the file that `LLAMAVID_CATALOGUE` names. */
  readonly catalogue?: Catalogue | undefined;
  /** Files that are fetched at once. Default 4. */
  readonly parallel?: number | undefined;
  /** Failures of a connection in a row before giving up. Default 5. */
  readonly attempts?: number | undefined;
  /** Milliseconds behind the first of them; they double. Default 1000. */
  readonly retryDelayMs?: number | undefined;
  /** Stops with `ABORTED`; what has arrived is kept and continued next time. */
  readonly signal?: AbortSignal | undefined;
  /** Called once, when it is known what has to be fetched. */
  readonly onPlan?: ((plan: PullPlan) => void) | undefined;
  /** Called with each piece of each file. */
  readonly onProgress?: ((progress: FileProgress) => void) | undefined;
  /** Called with what the user should know. */
  readonly onNote?: ((note: string) => void) | undefined;
}

/** What a pull has to do. */
export interface PullPlan {
  readonly files: number;
  readonly bytes: number;
  /** Those that are not in the cache yet. */
  readonly bytesToFetch: number;
}

export interface PulledFile {
  /** Repository and path, or the catalogue's name. */
  readonly name: string;
  readonly bytes: number;
  readonly state: 'fetched' | 'cached';
  /** What was compared now: for a file of the cache, and where nobody publishes a checksum, the size alone. */
  readonly checkedBy: 'sha256' | 'git-sha1' | 'md5' | 'size';
}

export interface PulledModel {
  readonly name: string;
  /** The folder that loads; for an entry that is one file, the file. */
  readonly path: string;
  /** The revision's commit; `undefined` for a plain file. */
  readonly commit: string | undefined;
  /** All files, those of side entries too. */
  readonly files: readonly PulledFile[];
}

/**
 * Brings a model and the side files that it needs into the cache, and lays them out as the loader reads them.
 *
 * @param name `organisation/name`, with `@revision` or without, or the name of an entry of the catalogue.
 * @throws `MODEL_NOT_FOUND`, `MODEL_FILE_MISSING`, `HUB_ERROR`, `DISK_FULL`, `INVALID_ARGUMENT`, `ABORTED`.
 */
export async function pull(name: string, options: PullOptions = {}): Promise<PulledModel> {
  const { parallel = 4, attempts = 5, retryDelayMs = 1000, signal } = options;
  for (const [what, value] of Object.entries({ parallel, attempts, retryDelayMs })) {
    if (!Number.isSafeInteger(value) || value < 1) {
      throw new LlamaVidError('INVALID_ARGUMENT', `${what} is ${value}, but must be a whole number above 0`);
    }
  }
  const catalogue = options.catalogue ?? (await readCatalogue());
  const failed = new AbortController();
  const stop = AbortSignal.any([failed.signal, ...(signal === undefined ? [] : [signal])]);
  throwIfAborted(stop);
  try {
    const connection = new Connection(hubSettings(), stop, { attempts, delayMs: retryDelayMs });
    const part = await new PartFinder(catalogue, connection).find(name);
    const sources = [...new Map(sourcesOf(part).map((source) => [source.path, source])).values()];
    const plan = await planFor(sources);
    options.onPlan?.(plan);

    const files: PulledFile[] = [];
    await inParallel(sources, parallel, failed, async (source) => {
      const { name, bytes } = source;
      const report = (done: number, state: FileProgress['state']) =>
        options.onProgress?.({ name, bytes, done, state });
      if (!('url' in source)) {
        report(bytes, 'cached');
        files.push({ name, bytes, state: 'cached', checkedBy: 'size' });
        return;
      }
      const state = await fetchFile(source, connection, report);
      const checkedBy = state === 'cached' ? 'size' : (source.digest?.algorithm ?? 'size');
      files.push({ name, bytes, state, checkedBy });
    });
    noteDoubts(part, catalogue, files, options.onNote);
    const path = await layOut(part, stop);
    return { name, path, commit: part.kind === 'repository' ? part.commit : undefined, files };
  } finally {
    // Whatever still runs when something has failed.
    failed.abort();
  }
}

function sourcesOf(part: Part): (Source | CacheFile)[] {
  if (part.kind === 'file') return [part.source];
  return [...part.files.map(({ source }) => source), ...part.needs.flatMap((need) => sourcesOf(need.part))];
}

/** Counts what is missing, and compares it with the room on the disks. */
async function planFor(sources: readonly (Source | CacheFile)[]): Promise<PullPlan> {
  const disks = new Map<number, { folder: string; bytes: number }>();
  let [bytes, bytesToFetch] = [0, 0];
  for (const source of sources) {
    bytes += source.bytes;
    if (!('url' in source) || (await isCached(source))) continue;
    const left = source.bytes - (await bytesBegun(source));
    bytesToFetch += left;
    const folder = dirname(source.path);
    const { dev } = await onDisk(folder, async () => {
      await mkdir(folder, { recursive: true });
      return await stat(folder);
    });
    disks.set(dev, { folder, bytes: left + (disks.get(dev)?.bytes ?? 0) });
  }
  for (const disk of disks.values()) {
    const { bavail, bsize } = await statfs(disk.folder);
    if (disk.bytes > bavail * bsize) {
      const [needed, free] = [disk.bytes, bavail * bsize].map((each) => `${(each / 1e9).toFixed(2)} GB`);
      throw diskFull(`${disk.folder}: ${needed} are needed, ${free} are free`);
    }
  }
  return { files: sources.length, bytes, bytesToFetch };
}

/** Does `work` for all items, a few at once; the first failure ends the others and is the one that is thrown. */
async function inParallel<T>(
  items: readonly T[],
  limit: number,
  failed: AbortController,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const queue = items.values();
  let failure: { error: unknown } | undefined;
  const worker = async () => {
    for (const item of queue) {
      if (failure !== undefined) return;
      try {
        await work(item);
      } catch (error) {
        failure ??= { error };
        failed.abort();
      }
    }
  };
  await Promise.all(Array.from({ length: limit }, worker));
  if (failure !== undefined) throw failure.error;
}

function noteDoubts(
  part: Part,
  catalogue: Catalogue,
  files: readonly PulledFile[],
  note: PullOptions['onNote'],
): void {
  for (const { name, state, checkedBy } of files) {
    if (state === 'fetched' && checkedBy === 'size') {
      note?.(`${name}: no checksum is published for it, so only its size was checked`);
    }
  }
  if (part.kind === 'file') return;
  const { repository } = part.name;
  if (catalogue[repository] === undefined) {
    note?.(`${repository} is not in the catalogue: it was taken as it is, without side files`);
  }
  if (!part.confirmed) {
    note?.(
      `HF_HUB_OFFLINE is set: what the cache has of ${repository} was taken, and the hub was not asked whether that is all`,
    );
  }
}

/** Writes the cache's own layout, then the folders that load. Gives the path of `part`. */
async function layOut(part: Part, signal: AbortSignal): Promise<string> {
  if (part.kind === 'file') return part.source.path;
  const needs: { place: string; target: string; kind: 'file' | 'dir' }[] = [];
  for (const { place, part: need } of part.needs) {
    needs.push({ place, target: await layOut(need, signal), kind: need.kind === 'file' ? 'file' : 'dir' });
  }
  await writeSnapshot(part);
  await assemble(part, needs, signal);
  return part.folder;
}

/** `snapshots/<commit>` and `refs/<revision>`, where huggingface_hub looks for them. */
async function writeSnapshot({ name, commit, files }: RepositoryPart): Promise<void> {
  const folder = repositoryFolder(name.repository);
  for (const { path, source } of files) {
    const place = join(folder, 'snapshots', commit, path);
    if ('url' in source && !(await isLinked(place, source.path))) await link(place, source.path, folder);
  }
  const ref = join(folder, 'refs', name.revision);
  const written = await readFile(ref, 'utf8').catch(() => '');
  if (name.revision !== commit && written !== commit) await writeWhole(ref, commit);
}

async function isLinked(path: string, target: string): Promise<boolean> {
  const [there, wanted] = await Promise.all([path, target].map((each) => stat(each).catch(() => undefined)));
  return there !== undefined && there.ino === wanted?.ino && there.dev === wanted.dev;
}

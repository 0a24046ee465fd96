// What a model is made of: its repository, and the entries of the catalogue that it needs, however far down.
import { readdir, readFile, realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';
import type { Catalogue, FileEntry, RepositoryEntry } from './catalogue.js';
import type { Connection } from './connection.js';
import { fileSize } from './disk.js';
import type { CacheFile, Source } from './fetch-file.js';
import { cachedPlainFile, plainFile } from './plain-file.js';
import { type ModelName, modelFolder, parseModelName, repositoryFolder } from './pulled.js';
import { commitHash, commitOf, filesOf, fileUrl } from './repository.js';
import { hubCache } from './settings.js';

/** A file's path in its repository, and where it is. */
export interface PlacedFile {
  readonly path: string;
  readonly source: Source | CacheFile;
}

/** One file at a plain address. */
export interface FilePart {
  readonly kind: 'file';
  readonly name: string;
  readonly source: Source | CacheFile;
}

/** A repository at one commit. */
export interface RepositoryPart {
  readonly kind: 'repository';
  readonly name: ModelName;
  readonly commit: string;
  readonly files: readonly PlacedFile[];
  /** Whether the list of files is the hub's, not what happens to be in the cache. */
  readonly confirmed: boolean;
  /** The folder that the loader reads. */
  readonly folder: string;
  readonly needs: readonly { readonly place: string; readonly part: Part }[];
}

export type Part = FilePart | RepositoryPart;

/** Finds out what has to be fetched, from the hub or, offline, from the cache. */
export class PartFinder {
  readonly #catalogue: Catalogue;
  readonly #connection: Connection;
  readonly #found = new Map<string, Promise<Part>>();

  constructor(catalogue: Catalogue, connection: Connection) {
    this.#catalogue = catalogue;
    this.#connection = connection;
  }

  /** The part of an entry, or of a repository that the catalogue does not know; each is looked up once. */
  find(name: string): Promise<Part> {
    const found = this.#found.get(name) ?? this.#look(name);
    this.#found.set(name, found);
    return found;
  }

  async #look(name: string): Promise<Part> {
    const whole = this.#catalogue[name];
    if (whole !== undefined && 'url' in whole) {
      return { kind: 'file', name, source: await this.#plainFile(name, whole) };
    }
    const parsed = parseModelName(name);
    if (parsed === undefined) {
      throw new LlamaVidError('INVALID_ARGUMENT', `${name} is no name of a model`, {
        hint: 'Names look like organisation/name or organisation/name@revision; `llamavid pull --list` has the published ones.',
      });
    }
    const entry = this.#catalogue[parsed.repository] ?? {};
    return await this.#repository(parsed, 'url' in entry ? {} : entry);
  }

  async #plainFile(name: string, entry: FileEntry): Promise<Source | CacheFile> {
    if (!this.#connection.settings.offline) return await plainFile(name, entry, this.#connection);
    const cached = await cachedPlainFile(name, entry);
    if (cached === undefined) throw notCached(name);
    return cached;
  }

  async #repository(name: ModelName, entry: RepositoryEntry): Promise<RepositoryPart> {
    const { offline } = this.#connection.settings;
    const { commit, files } = await (offline ? cachedFiles(name) : this.#listedFiles(name));
    const chosen = entry.files?.map((path) => {
      const file = files.find((each) => each.path === path);
      if (file !== undefined) return file;
      throw offline ? notCached(`${name.repository}/${path}`) : missing(name, path);
    });
    const needed = Object.entries(entry.needs ?? {}).filter(
      ([place]) => !files.some(({ path }) => path === place || path.startsWith(`${place}/`)),
    );
    const needs = needed.map(async ([place, need]) => ({ place, part: await this.find(need) }));
    return {
      ...{ kind: 'repository', name, commit },
      files: chosen ?? files,
      confirmed: !offline || chosen !== undefined,
      folder: modelFolder(name),
      needs: await Promise.all(needs),
    };
  }

  async #listedFiles(name: ModelName): Promise<{ commit: string; files: PlacedFile[] }> {
    const commit = await commitOf(name, this.#connection);
    const { endpoint } = this.#connection.settings;
    const { repository, revision } = name;
    const folder = repositoryFolder(repository);
    // Beside the locks of huggingface_hub, which are files of another kind.
    const locks = join(hubCache(), '.locks', `models--${repository.replaceAll('/', '--')}`);
    const files = (await filesOf(name, commit, this.#connection)).map(({ path, bytes, digest }) => ({
      path,
      source: {
        name: `${repository}/${path}`,
        url: fileUrl(name, commit, path, endpoint),
        asked: { repository, revision, file: path },
        ...{ bytes, digest },
        // A commit's files do not change, and the checksum watches over it.
        validator: undefined,
        path: join(folder, 'blobs', digest.hex),
        lock: join(locks, `${digest.hex}.llamavid.lock`),
      },
    }));
    return { commit, files };
  }
}

/** What the cache has of a repository, whoever fetched it. */
async function cachedFiles(name: ModelName): Promise<{ commit: string; files: PlacedFile[] }> {
  const { repository, revision } = name;
  const folder = repositoryFolder(repository);
  const written = await readFile(join(folder, 'refs', revision), 'utf8').catch(() => revision);
  const commit = written.trim();
  const snapshot = join(folder, 'snapshots', commit);
  if (!commitHash.safeParse(commit).success) throw notCached(repository);
  const entries = await readdir(snapshot, { recursive: true }).catch(() => [] as string[]);
  const files: PlacedFile[] = [];
  for (const entry of entries.sort()) {
    const path = entry.replaceAll('\\', '/');
    const bytes = await fileSize(join(snapshot, entry));
    if (bytes === undefined) continue;
    const source = { name: `${repository}/${path}`, bytes, path: await realpath(join(snapshot, entry)) };
    files.push({ path, source });
  }
  if (files.length === 0) throw notCached(repository);
  return { commit, files };
}

function notCached(what: string): LlamaVidError {
  return new LlamaVidError('MODEL_NOT_FOUND', `${what} is not in the cache, and HF_HUB_OFFLINE is set`, {
    hint: 'Run the command once without HF_HUB_OFFLINE.',
  });
}

function missing({ repository }: ModelName, path: string): LlamaVidError {
  return new LlamaVidError(
    'MODEL_FILE_MISSING',
    `${repository} has no file ${path}, which the catalogue names`,
    {
      hint: 'Correct the entry in your catalogue, or report it if it is a built-in one.',
    },
  );
}

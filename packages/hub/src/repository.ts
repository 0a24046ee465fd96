import { listFiles, modelInfo } from '@huggingface/hub';
import { LlamaVidError } from '@llamavid/errors';
import { z } from 'zod';
import { type Connection, LARGEST_ANSWER, Passing } from './connection.js';
import type { Digest } from './partial-file.js';
import type { ModelName } from './pulled.js';

/** A file of a repository at one commit. */
export interface RepositoryFile {
  readonly path: string;
  readonly bytes: number;
  /** Its checksum, which is also its name in the cache. */
  readonly digest: Digest;
}

export const commitHash = z.string().regex(/^[0-9a-f]{40}$/);
const size = z.int().nonnegative();
const listedFile = z.object({
  path: z.string().max(1024).refine(isPlainPath, 'leaves the folder'),
  size,
  oid: z.string().regex(/^[0-9a-f]{40}$/),
  lfs: z.object({ oid: z.string().regex(/^[0-9a-f]{64}$/), size }).optional(),
});

const MOST_FILES = 100_000;
const MOST_PAGES = 1_000;

/** The commit that a revision is now. */
export async function commitOf(name: ModelName, connection: Connection): Promise<string> {
  if (commitHash.safeParse(name.revision).success) return name.revision;
  const { repository, revision } = name;
  const { sha } = await answered(name, connection, () =>
    modelInfo({ name: repository, revision, additionalFields: ['sha'], ...throughIt(name, connection) }),
  );
  if (!commitHash.safeParse(sha).success) throw garbage(connection, 'the model has no commit');
  return sha;
}

/** All files at a commit. */
export async function filesOf(
  name: ModelName,
  commit: string,
  connection: Connection,
): Promise<RepositoryFile[]> {
  const files = new Map<string, RepositoryFile>();
  const listing = listFiles({
    repo: name.repository,
    revision: commit,
    recursive: true,
    ...throughIt(name, connection),
  });
  await answered(name, connection, async () => {
    for await (const entry of listing) {
      if (entry.type === 'directory') continue;
      const { success, data, error } = listedFile.safeParse(entry);
      if (!success) throw garbage(connection, z.prettifyError(error).replaceAll('\n', ' '));
      const { path, lfs, oid } = data;
      const bytes = lfs?.size ?? data.size;
      const digest: Digest = lfs
        ? { algorithm: 'sha256', hex: lfs.oid }
        : { algorithm: 'git-sha1', hex: oid };
      if (files.has(path) || files.size >= MOST_FILES)
        throw garbage(connection, `the list of files does not end`);
      files.set(path, { path, bytes, digest });
    }
  });
  return [...files.values()];
}

/** Where a file of a commit is fetched. */
export function fileUrl({ repository }: ModelName, commit: string, path: string, endpoint: string): URL {
  return new URL(
    `${endpoint}/${repository}/resolve/${commit}/${path.split('/').map(encodeURIComponent).join('/')}`,
  );
}

/** Has the library ask through our connection, for whole answers only. */
function throughIt(name: ModelName, connection: Connection) {
  let pages = 0;
  const fetch = (input: string | URL | Request, init?: RequestInit): Promise<Response> => {
    const url = new URL(input instanceof Request ? input.url : input);
    if (++pages > MOST_PAGES) throw garbage(connection, 'the list of files does not end');
    const headers = Object.fromEntries(new Headers(init?.headers));
    return connection.persist(() => connection.get(url, headers, name, wholeAnswer));
  };
  return { fetch, hubUrl: connection.settings.endpoint };
}

async function wholeAnswer(response: Response, alive: () => void): Promise<Response> {
  const chunks: Uint8Array<ArrayBuffer>[] = [];
  let bytes = 0;
  for await (const chunk of response.body ?? []) {
    alive();
    bytes += chunk.length;
    if (bytes > LARGEST_ANSWER) {
      throw new LlamaVidError('HUB_ERROR', `${response.url}: the answer does not end`);
    }
    chunks.push(chunk);
  }
  const { status, headers } = response;
  return new Response(new Blob(chunks), { status, headers });
}

/** What the library makes of an answer that is none is an error of any kind. */
async function answered<T>(
  { repository }: ModelName,
  connection: Connection,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (LlamaVidError.is(error) || error instanceof Passing) throw error;
    throw garbage(connection, `${repository}: ${(error as Error).message}`, error);
  }
}

function garbage(connection: Connection, problem: string, cause?: unknown): LlamaVidError {
  const message = `${connection.settings.endpoint} does not answer as a hub does: ${problem}`;
  return new LlamaVidError('HUB_ERROR', message, {
    hint: 'Is HF_ENDPOINT the address of a hub, and does a proxy or a login page answer in its place?',
    cause,
  });
}

/** Paths come from the network and are joined to a folder: none may leave it, on any system. */
function isPlainPath(path: string): boolean {
  return path
    .split('/')
    .every((part) => part !== '' && !/^\.{1,2}$/.test(part) && !/[\\:\p{Cc}]/u.test(part));
}

// A file at a plain address: no list tells its size and checksum, so the server is asked first.
import { createHash } from 'node:crypto';
import { readdir, rm, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';
import type { FileEntry } from './catalogue.js';
import type { Connection } from './connection.js';
import { type CacheFile, partialPath, type Source } from './fetch-file.js';
import type { Digest } from './partial-file.js';
import { fileCache } from './settings.js';

interface Version {
  bytes: number;
  digest: Digest | undefined;
  validator: string | undefined;
}

/** The file as its server has it now. Each version has a place of its own in the cache. */
export async function plainFile(name: string, entry: FileEntry, connection: Connection): Promise<Source> {
  const url = new URL(entry.url);
  const version = await connection.persist(() =>
    connection.get(url, { range: 'bytes=0-0', 'accept-encoding': 'identity' }, {}, async (response) => {
      await response.body?.cancel();
      return versionOf(name, response);
    }),
  );
  if (entry.bytes !== undefined && entry.bytes !== version.bytes) {
    throw new LlamaVidError(
      'HUB_ERROR',
      `${name}: ${url} has ${version.bytes} bytes, the catalogue says ${entry.bytes}`,
      {
        hint: 'Something else may answer in its place; else the file has changed, and the catalogue has to.',
      },
    );
  }
  const digest: Digest | undefined =
    entry.sha256 === undefined ? version.digest : { algorithm: 'sha256', hex: entry.sha256 };
  const place = placeOf(url);
  const folder = shortHash(JSON.stringify([version.bytes, digest?.hex, version.validator]));
  const path = join(place.folder, folder, place.file);
  // What was begun of another version can never be finished.
  for (const other of await readdir(place.folder).catch(() => [])) {
    if (other !== folder) await rm(partialPath(join(place.folder, other, place.file)), { force: true });
  }
  return { name, url, asked: {}, ...version, digest, path, lock: `${path}.lock` };
}

/** The newest version that is in the cache. */
export async function cachedPlainFile(name: string, entry: FileEntry): Promise<CacheFile | undefined> {
  const { folder, file } = placeOf(new URL(entry.url));
  let newest: { path: string; bytes: number; time: number } | undefined;
  for (const version of await readdir(folder).catch(() => [])) {
    const path = join(folder, version, file);
    const facts = await stat(path).catch(() => undefined);
    if (facts?.isFile() && facts.mtimeMs > (newest?.time ?? 0)) {
      newest = { path, bytes: facts.size, time: facts.mtimeMs };
    }
  }
  return newest && { name, bytes: newest.bytes, path: newest.path };
}

function placeOf(url: URL): { folder: string; file: string } {
  const file = basename(url.pathname).replace(/[^\w.-]/g, '_') || 'file';
  return { folder: join(fileCache(), shortHash(url.href)), file };
}

function versionOf(name: string, { status, headers, url }: Response): Version {
  // A login page answers everything, and with success.
  if (/^text\/html/i.test(headers.get('content-type') ?? '')) {
    throw new LlamaVidError('HUB_ERROR', `${name}: ${url} is a web page, not the file`, {
      hint: 'Does a proxy or a login page answer in its place?',
    });
  }
  const partial = status === 206;
  const length = partial
    ? /\/(\d+)$/.exec(headers.get('content-range') ?? '')?.[1]
    : headers.get('content-length');
  const bytes = Number(length ?? Number.NaN);
  if (!Number.isSafeInteger(bytes) || bytes < 1) {
    throw new LlamaVidError('HUB_ERROR', `${name}: ${url} does not tell its size`, {
      hint: 'Fetch the file by hand and put it where the model needs it.',
    });
  }
  // Google's storage tells the checksum of files that were uploaded in one piece.
  const md5 = /(?:^|[\s,])md5=([\w+/]{22}==)/.exec(headers.get('x-goog-hash') ?? '')?.[1];
  const digest: Digest | undefined =
    md5 === undefined ? undefined : { algorithm: 'md5', hex: Buffer.from(md5, 'base64').toString('hex') };
  const etag = headers.get('etag') ?? '';
  // A weak tag promises the same meaning, not the same bytes.
  const validator = etag.startsWith('"') ? etag : (headers.get('last-modified') ?? undefined);
  return { bytes, digest, validator: partial ? validator : undefined };
}

function shortHash(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 16);
}

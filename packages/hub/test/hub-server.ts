// A hub on this machine: the API that the real one has, with its error codes, redirects to another origin and pages, and
// with faults on demand.
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

export interface ServedRepository {
  files: Map<string, Buffer>;
  commit: string;
  /** Branches and tags beside `main`, by their commits. */
  refs: Map<string, string>;
  access: 'public' | 'private' | 'gated';
}

export interface ServedFile {
  data: Buffer;
  etag?: string | undefined;
  lastModified?: string | undefined;
  headers?: Record<string, string>;
  /** Whether `Range` is understood. Default true. */
  ranges?: boolean;
}

export interface Logged {
  origin: 'hub' | 'cdn';
  path: string;
  headers: IncomingMessage['headers'];
}

type Intercept = (origin: Logged['origin'], path: string, response: ServerResponse) => boolean | undefined;

/** Files of so many bytes or more are kept as the hub keeps large ones: by their sha256, at another origin. */
const LARGE = 1000;
const TOKEN = 'hf_right';

export class HubServer implements AsyncDisposable {
  readonly repositories = new Map<string, ServedRepository>();
  /** Old name to new. */
  readonly renamed = new Map<string, string>();
  /** Files at plain addresses of the other origin, by path. */
  readonly plain = new Map<string, ServedFile>();
  readonly log: Logged[] = [];
  /** The body of the next answers to a path that holds the key ends behind so many bytes, the connection with it. */
  readonly cuts = new Map<string, number[]>();
  /** What a path that holds the key gives in the place of its bytes. */
  readonly corrupt = new Map<string, Buffer>();
  /** Answers in the place of this server. */
  intercept: Intercept = () => undefined;
  /** Entries on a page of a list. */
  pageSize = 1000;
  /** Bodies come in pieces of 64 KB with so many milliseconds between them. */
  paceMs = 0;
  readonly token = TOKEN;
  readonly #hub: Server;
  readonly #cdn: Server;

  private constructor() {
    this.#hub = createServer((request, response) => this.#serve('hub', request, response));
    this.#cdn = createServer((request, response) => this.#serve('cdn', request, response));
  }

  static async start(): Promise<HubServer> {
    const server = new HubServer();
    for (const each of [server.#hub, server.#cdn]) {
      await new Promise<void>((resolve) => each.listen(0, '127.0.0.1', resolve));
    }
    return server;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#hub.address() as AddressInfo).port}`;
  }

  get cdnUrl(): string {
    return `http://127.0.0.1:${(this.#cdn.address() as AddressInfo).port}`;
  }

  add(
    name: string,
    files: Record<string, Buffer | string>,
    access: ServedRepository['access'] = 'public',
  ): ServedRepository {
    const buffers = new Map(Object.entries(files).map(([path, data]) => [path, Buffer.from(data)]));
    const repository = {
      files: buffers,
      commit: sha1(`${name} ${[...buffers].join()}`),
      refs: new Map(),
      access,
    };
    this.repositories.set(name, repository);
    return repository;
  }

  /** Requests for the content of a file, by a part of the path. */
  contentRequests(part: string): Logged[] {
    return this.log.filter(({ path }) => path.includes(part) && !path.startsWith('/api/'));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of [this.#hub, this.#cdn]) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  async #serve(origin: Logged['origin'], request: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = request.url ?? '/';
    this.log.push({ origin, path, headers: request.headers });
    response.on('error', () => {});
    if (this.intercept(origin, path, response)) return;
    if (origin === 'cdn') return await this.#serveCdn(request, response, path);
    const url = new URL(path, this.url);
    const [, api, repository, rest] =
      /^(\/api\/models)?\/((?:[\w.-]+\/)?[\w.-]+)\/((?:revision|tree|resolve)\/.*)$/.exec(url.pathname) ?? [];
    const [, verb = '', revision = '', file = ''] = /^(\w+)\/([^/]+)\/?(.*)$/.exec(rest ?? '') ?? [];
    if (repository === undefined) return refuse(response, 404, undefined, 'Not Found');
    const moved = this.renamed.get(repository);
    if (moved !== undefined) {
      response.writeHead(307, { location: path.replace(repository, moved) }).end();
      return;
    }
    const found = this.#admitted(repository, request, response);
    if (found === undefined) return;
    const wanted = decodeURIComponent(revision);
    const known = new Map([...found.refs, ['main', found.commit], ['HEAD', found.commit]]);
    const commit = [...known.values()].includes(wanted) ? wanted : known.get(wanted);
    if (commit === undefined) return refuse(response, 404, 'RevisionNotFound', `Invalid rev id: ${wanted}`);
    if (api !== undefined && verb === 'revision') return json(response, describe(repository, found, commit));
    if (api !== undefined && verb === 'tree') return this.#list(response, url, repository, found);
    await this.#resolve(request, response, found, commit, decodeURIComponent(file));
  }

  /** The repository, if it is there and this caller may see it; as the real hub, it does not tell which of both. */
  #admitted(name: string, request: IncomingMessage, response: ServerResponse): ServedRepository | undefined {
    const found = this.repositories.get(name);
    const { authorization } = request.headers;
    if (authorization !== undefined && authorization !== `Bearer ${TOKEN}`) {
      refuse(response, 401, undefined, 'Invalid credentials in Authorization header');
    } else if (found === undefined || (found.access === 'private' && authorization === undefined)) {
      if (authorization === undefined) refuse(response, 401, 'RepoNotFound', 'Invalid username or password.');
      else refuse(response, 404, 'RepoNotFound', 'Repository not found');
    } else if (found.access === 'gated' && request.url?.includes('/resolve/')) {
      // The description of a gated repository is for everyone; its files are not.
      refuse(
        response,
        authorization === undefined ? 401 : 403,
        'GatedRepo',
        `Access to model ${name} is restricted.`,
      );
    } else return found;
    return undefined;
  }

  #list(response: ServerResponse, url: URL, name: string, { files }: ServedRepository): void {
    const entries: object[] = [];
    const folders = new Set<string>();
    for (const [path, data] of files) {
      const folder = path.slice(0, Math.max(0, path.lastIndexOf('/')));
      if (folder !== '' && !folders.has(folder)) {
        folders.add(folder);
        entries.push({ type: 'directory', oid: sha1(folder), size: 0, path: folder });
      }
      entries.push(
        data.length < LARGE
          ? { type: 'file', oid: gitHash(data), size: data.length, path }
          : {
              type: 'file',
              oid: sha1(`pointer ${path}`),
              size: data.length,
              lfs: { oid: sha256(data), size: data.length, pointerSize: 134 },
              path,
            },
      );
    }
    const from = Number(url.searchParams.get('cursor') ?? 0);
    const to = from + this.pageSize;
    if (to < entries.length) {
      url.searchParams.set('cursor', String(to));
      response.setHeader('link', `<${url.href}>; rel="next"`);
    }
    response.setHeader('x-repo', name);
    json(response, entries.slice(from, to));
  }

  async #resolve(
    request: IncomingMessage,
    response: ServerResponse,
    { files }: ServedRepository,
    commit: string,
    path: string,
  ): Promise<void> {
    const data = files.get(path);
    response.setHeader('x-repo-commit', commit);
    if (data === undefined) return refuse(response, 404, 'EntryNotFound', 'Entry not found');
    if (data.length < LARGE)
      return await this.#send(request, response, path, { data, etag: `"${gitHash(data)}"` });
    response
      .writeHead(302, {
        location: `${this.cdnUrl}/lfs/${sha256(data)}/${encodeURIComponent(path)}?Expires=1&Signature=x`,
        'x-linked-etag': `"${sha256(data)}"`,
        'x-linked-size': String(data.length),
      })
      .end();
  }

  async #serveCdn(request: IncomingMessage, response: ServerResponse, path: string): Promise<void> {
    const plain = this.plain.get(path);
    if (plain !== undefined) return await this.#send(request, response, path, plain);
    const hash = /^\/lfs\/(\w+)\//.exec(path)?.[1];
    for (const { files } of this.repositories.values()) {
      const data = [...files.values()].find((each) => each.length >= LARGE && sha256(each) === hash);
      if (data !== undefined)
        return await this.#send(request, response, path, { data, etag: `"cdn-${hash}"` });
    }
    refuse(response, 404, undefined, 'NoSuchKey');
  }

  async #send(
    request: IncomingMessage,
    response: ServerResponse,
    path: string,
    file: ServedFile,
  ): Promise<void> {
    const { etag, lastModified, headers = {}, ranges = true } = file;
    const [, wrong] = [...this.corrupt].find(([part]) => path.includes(part)) ?? [];
    const data = wrong ?? file.data;
    for (const [name, value] of Object.entries({ etag, 'last-modified': lastModified, ...headers })) {
      if (value !== undefined) response.setHeader(name, value);
    }
    let begin = 0;
    let end = data.length;
    const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '') ?? [];
    const condition = request.headers['if-range'];
    if (
      ranges &&
      first !== undefined &&
      (condition === undefined || [etag, lastModified].some((each) => each === condition))
    ) {
      begin = Number(first);
      if (last) end = Math.min(end, Number(last) + 1);
      if (begin >= data.length) return refuse(response, 416, undefined, 'Range Not Satisfiable');
      response.writeHead(206, {
        'content-range': `bytes ${begin}-${end - 1}/${data.length}`,
        'content-length': end - begin,
      });
    } else response.writeHead(200, { 'content-length': data.length });
    const [, cuts] = [...this.cuts].find(([part]) => path.includes(part)) ?? [];
    const stop = Math.min(end, begin + (cuts?.shift() ?? Number.POSITIVE_INFINITY));
    for (let at = begin; at < stop && !response.destroyed; at += 65_536) {
      if (this.paceMs > 0) await sleep(this.paceMs);
      response.write(data.subarray(at, Math.min(stop, at + 65_536)));
    }
    if (stop === end) response.end();
    else if (!response.destroyed) response.write('', () => sleep(100).then(() => response.destroy()));
  }
}

function describe(name: string, { files, access }: ServedRepository, commit: string): object {
  return {
    _id: sha1(name).slice(0, 24),
    id: name,
    sha: commit,
    private: access === 'private',
    gated: access === 'gated' ? 'manual' : false,
    downloads: 1,
    likes: 0,
    lastModified: '2023-12-05T00:00:00.000Z',
    siblings: [...files.keys()].map((rfilename) => ({ rfilename })),
  };
}

function refuse(response: ServerResponse, status: number, code: string | undefined, message: string): void {
  if (code !== undefined) response.setHeader('x-error-code', code);
  response.setHeader('x-error-message', message);
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify({ error: message }));
}

function json(response: ServerResponse, value: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json; charset=utf-8' }).end(JSON.stringify(value));
}

function sha1(text: string): string {
  return createHash('sha1').update(text).digest('hex');
}

export function sha256(data: Buffer): string {
  return createHash('sha256').update(data).digest('hex');
}

export function gitHash(data: Buffer): string {
  return createHash('sha1').update(`blob ${data.length}\0`).update(data).digest('hex');
}

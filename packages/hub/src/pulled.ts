// Where a pulled model lies. Imported by whoever loads models, so it needs nothing of the network's side.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { hubCache } from './settings.js';

/** The file that is written last into a pulled model's folder. */
export const PULLED = 'pulled.json';

/** A repository of the hub and one of its revisions. */
export interface ModelName {
  readonly repository: string;
  /** Branch, tag or commit. */
  readonly revision: string;
}

/** Reads `organisation/name` or `name`, with `@revision` or without; `undefined` for what can be no such name. */
export function parseModelName(text: string): ModelName | undefined {
  const [, repository = '', revision = 'main'] = /^([^@]+)(?:@(.+))?$/.exec(text) ?? [];
  const named = /^([\w.-]+\/)?[\w.-]+$/.test(repository) && repository.length <= 96;
  if (!named || /\.\.|--|(^|\/)[.-]|[.-](\/|$)/.test(repository)) return undefined;
  if (!/^[\w./+-]+$/.test(revision) || /(^|\/)\.*(\/|$)/.test(revision)) return undefined;
  return { repository, revision };
}

/** The cache folder of a repository, as huggingface_hub names it. */
export function repositoryFolder(repository: string): string {
  return join(hubCache(), `models--${repository.replaceAll('/', '--')}`);
}

/**
 * The folder in which a repository and its side files lie as the loader wants them. It is inside the repository's cache
 * folder, so that clearing the cache takes it along, and is made of links.
 */
export function modelFolder({ repository, revision }: ModelName): string {
  const name = repository.slice(repository.indexOf('/') + 1);
  const folder = revision === 'main' ? name : `${name}@${encodeURIComponent(revision)}`;
  return join(repositoryFolder(repository), 'llamavid', folder);
}

/** The folder of a model that was pulled, by its name; `undefined` if it was not. */
export function pulledFolder(name: string): string | undefined {
  const parsed = parseModelName(name);
  if (parsed === undefined) return undefined;
  const folder = modelFolder(parsed);
  return existsSync(join(folder, PULLED)) ? folder : undefined;
}

import { readFile } from 'node:fs/promises';
import process from 'node:process';
import { LlamaVidError } from '@llamavid/errors';
import { z } from 'zod';
import { parseModelName } from './pulled.js';

const about = z.string().optional();

const repositoryEntry = z.strictObject({
  about,
  /** The files that are fetched, from the repository's root; all of them where this is absent. */
  files: z.array(z.string().min(1)).min(1).optional(),
  /** Where another entry has to lie in the model's folder. The repository's own files go before. */
  needs: z.record(z.string().regex(/^[\w-][\w.-]*$/, 'must be a plain name'), z.string()).optional(),
});

const fileEntry = z.strictObject({
  about,
  url: z.url({ protocol: /^https?$/ }),
  bytes: z.int().positive().optional(),
  sha256: z
    .string()
    .regex(/^[0-9a-f]{64}$/)
    .optional(),
});

const catalogueFile = z.strictObject({ entries: z.record(z.string(), z.looseObject({})) });

/** A repository of the hub; its name in the catalogue is its name there. */
export type RepositoryEntry = z.infer<typeof repositoryEntry>;
/** One file at a plain address. */
export type FileEntry = z.infer<typeof fileEntry>;
/** What is known of the published models, by name. */
export type Catalogue = Readonly<Record<string, RepositoryEntry | FileEntry>>;

/**
 * The built-in catalogue and the entries of `file`, or of the file that `LLAMAVID_CATALOGUE` names, which win.
 *
 * @throws `INVALID_ARGUMENT` for a file that is not there or not a catalogue.
 */
export async function readCatalogue(
  file: string | undefined = process.env['LLAMAVID_CATALOGUE'] || undefined,
): Promise<Catalogue> {
  const builtIn = await read(new URL('../catalogue.json', import.meta.url));
  if (file === undefined) return builtIn;
  const catalogue = { ...builtIn, ...(await read(file)) };
  for (const [name, entry] of Object.entries(catalogue)) checkNeeds(catalogue, name, entry, [], file);
  return catalogue;
}

async function read(file: string | URL): Promise<Catalogue> {
  let written: unknown;
  try {
    written = JSON.parse(await readFile(file, 'utf8'));
  } catch (error) {
    throw wrong(file, (error as Error).message, error);
  }
  const valid = <T>(schema: z.ZodType<T>, value: unknown, where: string): T => {
    const { success, data, error } = schema.safeParse(value);
    if (!success) throw wrong(file, `${where}${z.prettifyError(error).replaceAll('\n', ' ')}`, error);
    return data;
  };
  const { entries } = valid(catalogueFile, written, '');
  return Object.fromEntries(
    Object.entries(entries).map(([name, entry]) => {
      if ('url' in entry) return [name, valid(fileEntry, entry, `${name}: `)];
      if (parseModelName(name)?.repository !== name) throw wrong(file, `${name} is no name of a repository`);
      return [name, valid(repositoryEntry, entry, `${name}: `)];
    }),
  );
}

/** That every need is an entry, and that none needs itself. */
function checkNeeds(
  catalogue: Catalogue,
  name: string,
  entry: RepositoryEntry | FileEntry,
  above: readonly string[],
  file: string,
): void {
  if (above.includes(name)) throw wrong(file, `${[...above, name].join(' needs ')}`);
  if ('url' in entry) return;
  for (const needed of Object.values(entry.needs ?? {})) {
    const next = catalogue[needed];
    if (next === undefined) throw wrong(file, `${name} needs ${needed}, which is no entry`);
    checkNeeds(catalogue, needed, next, [...above, name], file);
  }
}

function wrong(file: string | URL, problem: string, cause?: unknown): LlamaVidError {
  return new LlamaVidError('INVALID_ARGUMENT', `catalogue ${file}: ${problem}`, {
    hint: 'The README of @llamavid/hub shows what a catalogue looks like.',
    cause,
  });
}
